"""Layers that are followed while steps go on: the donor's bits after every step, or a reason why not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch

from scheduler.job import JobSpec, OptimizerSpec
from scheduler.plan import Plan
from tests.worker.pipelines import fresh_layers, in_threads, make_job, make_plan, make_ranks
from tests.worker.test_compressed import compressed
from worker.checkpoint import LayerFileError
from worker.feed import Feed, Pace
from worker.follow_items import Stepped, Whole, digest_of, packed, receive_item, send_item
from worker.follower import Follower
from worker.held_layers import HeldLayer, HeldLayers
from worker.memory_transport import MemoryHub, MemoryTransport
from worker.transport import FrameError, Transport, TransportAborted, beside

VERSION = beside(7)
WAIT_S = 20.0


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


class Followed:
    """A plan whose ranks feed a follower of all layers, over a transport beside the plan's."""

    def __init__(self, job: JobSpec, plan: Plan, pace: Callable[[], Pace] = lambda: Pace(1e12)) -> None:
        self.job, self.plan = job, plan
        self.ranks = make_ranks(job, plan)
        donors = [plan.rank(0, s) for s in range(plan.n_stages)]
        hub = MemoryHub()
        self.lines: list[Transport] = [MemoryTransport(hub, i, VERSION) for i in range(len(donors) + 1)]
        self.reached: list[int] = []
        self.met: dict[int, Mapping[int, bytes]] = {}
        self.errors: list[Exception] = []
        self.feeds: dict[int, Feed] = {}
        of = {i: list(range(*plan.partition[plan.stage_of(r)])) for i, r in enumerate(donors)}
        for i, r in enumerate(donors):
            feed = Feed(self.lines[i], VERSION, i, len(donors), of[i], pace(), self.errors.append)
            self.feeds[r] = feed
            context = self.ranks[r].context
            self.ranks[r].context = replace(context, stepping=partial(self._take, r))
        self.follower = Follower(
            self.lines[-1],
            of,
            lambda i: fresh_layers(job, i, i + 1)[0],
            job.optimizer,
            self.reached.append,
            self.met.__setitem__,
            self.errors.append,
        )

    def _take(self, r: int, step: int, lr: float, frozen: int | None) -> None:
        rank = self.ranks[r]
        first = self.plan.partition[self.plan.stage_of(r)][0]
        self.feeds[r].take(step, rank.stage, rank.optimizer, first, lr, frozen)

    def run(self, steps: range) -> None:
        in_threads(self.ranks, lambda rank: [rank.run_step(s) for s in steps])

    def held(self, step: int) -> HeldLayers:
        held = HeldLayers(step)
        for r in self.feeds:
            held.keep(
                self.ranks[r].stage, self.ranks[r].optimizer, self.plan.partition[self.plan.stage_of(r)][0]
            )
        return held

    def close(self) -> None:
        for line in self.lines:
            line.abort("the test is over")
        for feed in self.feeds.values():
            feed.close()
        self.follower.close()


@contextmanager
def followed(job: JobSpec, plan: Plan, **options: Callable[[], Pace]) -> Iterator[Followed]:
    found = Followed(job, plan, **options)
    try:
        yield found
    finally:
        found.close()


SGD = OptimizerSpec(name="sgd", lr=1e-2, momentum=0.9, clip_norm=0.1, warmup_steps=2)


MOMENTUM = "momentum:bits=4,group=32,warmup_steps=4"


@pytest.mark.parametrize(
    ("job", "stages", "micro_batches", "reduce", "least"),
    [
        (make_job(), 2, (4,), "", 0),
        (make_job(), 1, (4,), "", 0),
        (make_job(), 2, (2, 2), "", 0),
        (make_job("llama"), 3, (1, 3), "", 0),
        (make_job(optimizer=SGD), 2, (2, 2), "", 0),
        (make_job(), 2, (2, 2), MOMENTUM, 8),
        (make_job(steps=30), 1, (2, 2), MOMENTUM, 8),
    ],
    ids=[
        "two stages", "a tied weight in one", "replicas", "unequal replicas", "sgd", "momentum in few bits",
        "momentum, all layers in one",
    ],
)  # fmt: skip
def test_a_follower_has_the_donors_bits_after_every_step(
    job: JobSpec, stages: int, micro_batches: tuple[int, ...], reduce: str, least: int
) -> None:
    """Clipping, warm-up, decay and moments included; begun in the middle of a run, layer after layer. For
    `least` steps."""
    with followed(job, compressed(make_plan(job, stages, micro_batches), reduce=reduce)) as f:
        at = 0
        while not f.reached or f.reached[-1] < at or at < least:
            f.run(range(at, at + 1))
            at += 1
            until(lambda: not any(feed.waiting_bytes for feed in f.feeds.values()))
            assert at < job.steps, f.errors
        f.follower.meet(at)
        until(lambda: at in f.met)
        true = f.held(at)
        assert f.met[at] == {i: digest_of(x) for i, x in true.layers.items()}
        mine = f.follower.at(at)
        assert sorted(mine) == list(range(job.n_layers))
        for i, layer in true.layers.items():
            assert same(mine[i], layer), f"layer {i}"
        assert at >= job.n_layers // stages, "a layer a step"
        assert f.follower.at(at - 1) == {}
        assert f.errors == []


def same(a: HeldLayer, b: HeldLayer) -> bool:
    pairs = [(a.weights, b.weights), (a.state, b.state)]
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in pairs)


def test_a_step_that_is_rolled_back_is_not_followed_and_done_again_it_is() -> None:
    job = make_job()
    with followed(job, make_plan(job, 1, (4,))) as f:
        for step in range(8):
            f.run(range(step, step + 1))
            until(lambda: not f.feeds[0].waiting_bytes)
        true = [rank.context for rank in f.ranks]
        for rank in f.ranks:
            rank.context = replace(rank.context, agreement=_Never())
        with pytest.raises(TransportAborted, match="no consent"):
            f.ranks[0].run_step(8)
        assert max(f.reached) == 8
        for rank, context in zip(f.ranks, true, strict=True):
            rank.context = context
        f.run(range(8, 9))
        f.follower.meet(9)
        until(lambda: 9 in f.met)
        assert f.met[9] == {i: digest_of(x) for i, x in f.held(9).layers.items()}


class _Never:
    def commit(self, vote: object) -> float:
        raise TransportAborted(f"no consent to {vote}")


def test_a_follower_that_gets_too_little_is_given_up_and_nothing_piles_up() -> None:
    job = make_job()
    with followed(job, make_plan(job, 1, (4,)), pace=lambda: Pace(1000.0)) as f:
        f.run(range(job.steps))
        feed = f.feeds[0]
        assert feed._error is not None
        assert "bytes wait after step" in str(feed._error)
        assert not feed._queue
        feed.hurry()
        until(lambda: bool(f.errors))
        assert "bytes wait after step" in str(f.errors[0])


def test_bits_that_differ_are_told_by_the_digest() -> None:
    weights = {"w": torch.arange(4.0)}
    state = {"w.exp_avg": torch.zeros(4)}
    digest = digest_of(HeldLayer(weights, state))
    assert digest == digest_of(HeldLayer({"w": torch.arange(4.0)}, dict(state)))
    flipped = torch.arange(4.0).view(torch.int32)
    flipped[3] ^= 1
    for other in (
        HeldLayer({"w": flipped.view(torch.float32)}, state),
        HeldLayer({"v": torch.arange(4.0)}, state),
        HeldLayer({"w": torch.arange(4.0).view(2, 2)}, state),
        HeldLayer({"w": torch.arange(4.0).double()}, state),
        HeldLayer(weights | state, {}),
    ):
        assert digest_of(other) != digest


# ---- items


def pair() -> list[MemoryTransport]:
    hub = MemoryHub()
    return [MemoryTransport(hub, r, VERSION) for r in (0, 1)]


def a_step(layer: int = 3, n: int = 600_000) -> Stepped:
    return Stepped(layer, 12, 0.01, 4, {"w": torch.arange(n, dtype=torch.float32)})


def test_items_come_as_they_were_sent_in_pieces() -> None:
    a, b = pair()
    whole = Whole(3, 11, HeldLayer({"w": torch.ones(5)}, {"w.step": torch.tensor(11.0)}))
    items: list[Whole | Stepped] = [whole, a_step()]
    for number, item in enumerate(items):
        sent: list[int] = []
        send_item(a, VERSION, 0, 1, number, packed(item), sent.append)
        assert sum(sent) == len(packed(item))
        assert len(sent) == (1 if item is whole else 3)
        found = receive_item(b, 0, number, {3: 1 << 24}, WAIT_S)
        assert (found.layer, found.step) == (item.layer, item.step)
        match found:
            case Whole(_, _, held):
                assert same(held, whole.held)
            case Stepped(_, _, lr, frozen, gradients):
                assert (lr, frozen) == (0.01, 4)
                assert torch.equal(gradients["w"], a_step().gradients["w"])


@pytest.mark.parametrize(
    ("caps", "spoiled", "error"),
    [
        ({4: 1 << 24}, None, "found layer 3, required one of"),
        ({3: 100}, None, "required 0 or 1 of at most 100"),
        ({3: 1 << 24}, slice(0, 40), "required a header"),
        ({3: 1 << 24}, 0, "found kind 9"),
        ({3: 1 << 24}, -1, "another hash"),
    ],
)
def test_what_cannot_be_is_refused(caps: dict[int, int], spoiled: int | slice | None, error: str) -> None:
    a, b = pair()
    data = bytearray(packed(a_step(n=10)))
    if isinstance(spoiled, slice):
        data = data[spoiled]
    elif spoiled is not None:
        data[spoiled] = 9
    send_item(a, VERSION, 0, 1, 0, memoryview(data), lambda _: None)
    with pytest.raises((FrameError, LayerFileError), match=error):
        receive_item(b, 0, 0, caps, WAIT_S)


def fresh() -> Whole:
    return Whole(0, 3, HeldLayer(fresh_layers(make_job(), 0, 1)[0].state_dict(), {}))


@pytest.mark.parametrize(
    ("items", "error"),
    [
        ([a_step(0, 10)], "found the gradients of step 12, required those of -1"),
        ([fresh(), Stepped(0, 3, 0.1, None, {"nobody": torch.ones(1)})], "found a gradient of 'nobody'"),
        ([fresh(), Stepped(0, 4, 0.1, None, {})], "found the gradients of step 4, required those of 3"),
        ([Whole(0, 3, HeldLayer({"w": torch.ones(1)}, {}))], "found the tensors w"),
    ],
)
def test_a_follower_that_is_told_nonsense_says_so_once(items: list[Whole | Stepped], error: str) -> None:
    job = make_job()
    a, b = pair()
    errors: list[Exception] = []
    heard = threading.Event()

    def failed(e: Exception) -> None:
        errors.append(e)
        heard.set()

    follower = Follower(
        b, {0: [0]}, lambda i: fresh_layers(job, i, i + 1)[0], job.optimizer,
        lambda _: None, lambda _, __: None, failed,
    )  # fmt: skip
    for number, item in enumerate(items):
        send_item(a, VERSION, 0, 1, number, packed(item), lambda _: None)
    assert heard.wait(WAIT_S)
    b.abort("over")
    follower.close()
    assert [error in str(e) for e in errors] == [True]
