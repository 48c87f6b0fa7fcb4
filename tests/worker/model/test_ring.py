"""Attention over shards of a sequence: its definition, parts merged, and the exchange give the same."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from scheduler.mixers import Sight
from tests.worker.model.shapes import layers_of, spec, tokens_of
from worker.model import ModelError, build_layer
from worker.model.attention import attend
from worker.model.partial_attention import (
    Part,
    attend_part,
    attend_part_in_tiles,
    merge,
    part_gradients,
    part_gradients_in_tiles,
)
from worker.model.ring import Shard, ring_attention, ring_attention_reference

torch.set_num_threads(1)
WAIT_S = 20.0


class Loop:
    """An exchange between threads: what is sent waits under its name, and how many bytes were."""

    def __init__(self, shards: int) -> None:
        self.boxes: dict[tuple[str, int, int, int], queue.Queue[Tensor]] = {}
        self.sent_bytes = [0] * shards
        self._lock = threading.Lock()

    def box(self, kind: str, dst: int, call: int, block: int) -> queue.Queue[Tensor]:
        with self._lock:
            return self.boxes.setdefault((kind, dst, call, block), queue.Queue())


class End:
    """One shard's end of the loop."""

    def __init__(self, loop: Loop, index: int) -> None:
        self.loop, self.index = loop, index

    def _send(self, kind: str, dst: int, call: int, block: int, x: Tensor) -> None:
        self.loop.sent_bytes[self.index] += x.numel() * x.element_size()
        self.loop.box(kind, dst, call, block).put(x.detach().clone())

    def _receive(
        self, kind: str, call: int, block: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        x = self.loop.box(kind, self.index, call, block).get(timeout=WAIT_S)
        assert x.shape == shape
        assert x.dtype == dtype
        return x

    def send_keys(self, call: int, block: int, x: Tensor) -> None:
        self._send("keys", self.index + 1, call, block, x)

    def receive_keys(self, call: int, block: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._receive("keys", call, block, shape, dtype)

    def send_gradient(self, call: int, block: int, x: Tensor) -> None:
        self._send("gradient", self.index - 1, call, block, x)

    def receive_gradient(self, call: int, block: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._receive("gradient", call, block, shape, dtype)


def all_at_once(work: Sequence[Callable[[], None]]) -> None:
    """Run callables, a thread each; the first error is raised."""
    errors: list[BaseException] = []

    def guarded(f: Callable[[], None]) -> None:
        try:
            f()
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=guarded, args=(f,)) for f in work]
    for t in threads:
        t.start()
    for t in threads:
        t.join(2 * WAIT_S)
    if errors:
        raise errors[0]


def bounds_of(lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return tuple((end - n, end) for end, n in zip(ends, lengths, strict=True))


def shards_of(x: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    return list(torch.split(x, list(lengths), 2))


def inputs(length: int, kv_heads: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(length)
    q, g = torch.randn(2, 2, 4, length, 8, generator=rng, dtype=torch.float64).to(dtype)
    k, v = torch.randn(2, 2, kv_heads, length, 8, generator=rng, dtype=torch.float64).to(dtype)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), g


SIGHTS = [Sight(), Sight(window=1), Sight(window=5), Sight(window=9), Sight(window=40)]


@pytest.mark.parametrize("sight", SIGHTS, ids=str)
@pytest.mark.parametrize("lengths", [(16,), (8, 8), (5, 5, 4), (1, 7, 2, 6)], ids=str)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_shards_are_the_whole(lengths: tuple[int, ...], sight: Sight, kv_heads: int) -> None:
    q, k, v, g = inputs(sum(lengths), kv_heads)
    whole = attend(q, k, v, sight).view(2, -1, 4, 8).transpose(1, 2)
    expected = torch.autograd.grad(whole, (q, k, v), g)

    qs, ks, vs = (shards_of(x, lengths) for x in (q, k, v))
    parts = ring_attention_reference(qs, ks, vs, sight)
    merged = torch.cat(parts, 2)
    torch.testing.assert_close(merged, whole, atol=1e-12, rtol=1e-10)
    for ours, theirs in zip(torch.autograd.grad(merged, (q, k, v), g), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)

    outputs, gradients = exchanged(lengths, sight, (q, k, v), g)
    torch.testing.assert_close(outputs, whole.detach(), atol=1e-12, rtol=1e-10)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


def exchanged(
    lengths: Sequence[int], sight: Sight, inputs: Sequence[Tensor], g: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Outputs and gradients of shards that each know their own positions alone."""
    bounds, loop = bounds_of(lengths), Loop(len(lengths))
    found: dict[int, tuple[Tensor, tuple[Tensor, ...]]] = {}

    def work(d: int) -> None:
        start, stop = bounds[d]
        q, k, v = (x.detach()[:, :, start:stop].clone().requires_grad_() for x in inputs)
        y = ring_attention(q, k, v, sight, Shard(bounds, d, End(loop, d)))
        found[d] = y.detach(), torch.autograd.grad(y, (q, k, v), g[:, :, start:stop])

    all_at_once([partial(work, d) for d in range(len(lengths))])
    in_order = [found[d] for d in range(len(lengths))]
    return torch.cat([y for y, _ in in_order], 2), [
        torch.cat([grads[i] for _, grads in in_order], 2) for i in range(3)
    ]


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)])
def test_narrow_types_stay_near_float64(dtype: torch.dtype, atol: float) -> None:
    q, k, v, g = inputs(600)
    narrow = [x.detach().to(dtype) for x in (q, k, v)]
    outputs, gradients = exchanged((200, 200, 200), Sight(), narrow, g.to(dtype))
    whole = ring_attention_reference([q], [k], [v], Sight())[0]
    for ours, theirs in zip(
        [outputs, *gradients], [whole, *torch.autograd.grad(whole, (q, k, v), g)], strict=True
    ):
        assert ours.dtype == dtype
        torch.testing.assert_close(
            ours.double(), theirs, atol=atol * theirs.detach().abs().max().item(), rtol=0.0
        )


@pytest.mark.parametrize(("q_first", "k_first"), [(0, 0), (300, 0), (300, 300)])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_the_fused_part_is_the_part_in_tiles(q_first: int, k_first: int, kv_heads: int) -> None:
    q, k, v, g = (x.detach() for x in inputs(300, kv_heads))
    fused, tiled = (f(q, k, v, Sight(), q_first, k_first) for f in (attend_part, attend_part_in_tiles))
    for ours, theirs in zip(fused, tiled, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)
    # As if other keys, seen by all, were merged in.
    more = attend_part_in_tiles(q, k[:, :, :7].flip(2), v[:, :, :7], Sight(), 999, 0)
    whole = merge(tiled, more)
    for ours, theirs in zip(
        part_gradients(g, q, k, v, whole, Sight(), q_first, k_first),
        part_gradients_in_tiles(g, q, k, v, whole, Sight(), q_first, k_first),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-9)


def test_a_part_that_a_query_does_not_see_changes_nothing() -> None:
    q, k, v, _ = (x.detach() for x in inputs(8))
    own = attend_part(q, k, v, Sight(window=3), 100, 100)
    far = attend_part(q, k, v, Sight(window=3), 100, 0)
    assert not far.y.any()
    assert (far.logs == -torch.inf).all()
    torch.testing.assert_close(merge(own, far), Part(*own))


def test_a_window_asks_only_for_shards_that_it_reaches() -> None:
    first, last = (Shard(bounds_of((4, 4, 4, 4)), d, End(Loop(4), d)) for d in (0, 3))
    assert list(last.earlier(Sight())) == [2, 1, 0]
    assert list(last.earlier(Sight(window=1))) == []
    assert list(last.earlier(Sight(window=5))) == [2]
    assert list(last.earlier(Sight(window=6))) == [2, 1]
    assert list(first.earlier(Sight())) == []
    assert list(last.hands_on(Sight())) == []
    assert list(first.hands_on(Sight())) == [0]
    assert list(first.hands_on(Sight(window=1))) == []


def test_each_block_passes_each_link_once_in_each_direction() -> None:
    q, k, v, _ = inputs(12)
    bounds, loop = bounds_of((4, 4, 4)), Loop(3)

    def work(d: int) -> None:
        own = [x.detach()[:, :, slice(*bounds[d])].clone().requires_grad_() for x in (q, k, v)]
        y = ring_attention(own[0], own[1], own[2], Sight(), Shard(bounds, d, End(loop, d)))
        torch.autograd.backward(y.sum())

    all_at_once([partial(work, d) for d in range(3)])
    block = 2 * 2 * 2 * 4 * 8 * 8  # keys and values, samples, heads, positions, width, float64
    assert loop.sent_bytes == [1 * block, (2 + 1) * block, 2 * block]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_layers_take_a_shard_as_positions_that_follow(family: str) -> None:
    """Embedding and blocks, learned and rotary positions, through two calls of the exchange."""
    model = spec(family=family, layers=2)
    layers, tokens = layers_of(model, 0, 3), tokens_of(model, length=12)
    whole: Tensor = tokens
    for layer in layers:
        whole = layer(whole)[0]
    bounds, loop, found = bounds_of((5, 4, 3)), Loop(3), {}

    def work(d: int) -> None:
        x = tokens[:, slice(*bounds[d])]
        shard = Shard(bounds, d, End(loop, d))
        for layer in layers:
            x, _ = layer(x, layer.in_shard(shard))
        found[d] = x.detach()

    all_at_once([partial(work, d) for d in range(3)])
    torch.testing.assert_close(
        torch.cat([found[d] for d in range(3)], 1), whole.detach(), atol=1e-10, rtol=1e-8
    )


@pytest.mark.parametrize("part", ["hyena", "ssd", "attention butterfly=4", "attention causal=false"])
def test_what_cannot_be_divided_says_so(part: str) -> None:
    layer = build_layer(spec(family="llama", layers=((part, "mlp"),)), 1)
    with pytest.raises(ModelError, match="required attention"):
        layer.in_shard(Shard(bounds_of((4, 4)), 0, End(Loop(2), 0)))
