"""The sum of a stage's gradients over its replicas, by sharded exchange, layer by layer.

A layer's gradients, laid end to end, are cut in D shards for D replicas; shard j goes to replica j,
which adds the D versions in replica order and sends the sum to all. Each rank so sends and receives
2 (D - 1) / D of the gradient's bytes, and because there is one sum of each value, all replicas hold
the same bits.

An exchange starts when the layer's last backward is done, while earlier layers are still being
computed. Adding needs no thread: whenever a layer is handed over, shards of earlier ones that are
complete are added and sent on; what is left is added in `finish`. Compute never waits for a peer.

Knows nothing of tied weights, norms and optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from worker.peers import Peers
from worker.recorder import Recorder


class GradientReduction:
    """One step's exchange between the ranks of `group` (the replicas of a stage, in replica order).

    `owned[i]` are the parameters of the stage's i-th layer, whose index in the model is
    `first_layer + i`. After `finish` their gradients are the sums, views of one tensor a layer.
    """

    def __init__(
        self,
        peers: Peers,
        recorder: Recorder,
        rank: int,
        group: Sequence[int],
        owned: Sequence[Sequence[nn.Parameter]],
        first_layer: int,
    ) -> None:
        self._peers, self._recorder, self._group, self._rank = peers, recorder, tuple(group), rank
        self._me = self._group.index(rank)
        self._owned, self._first_layer = owned, first_layer
        self._mine: dict[int, Tensor] = {}
        """By layer: this rank's version of the shard that it owns, until it is added."""
        self._reduced: dict[int, Callable[[], Tensor]] = {}
        """By layer: gives the sum of that shard, as all replicas read it."""
        self._bounds = [
            shard_bounds(sum(p.numel() for p in parameters), len(self._group)) for parameters in owned
        ]
        self._own_squares: list[Tensor] = []

    def expect(self) -> None:
        """Announce what the others will send, last layer first."""
        for layer in reversed(range(len(self._owned))):
            if not self._owned[layer]:
                continue
            dtype, tag = self._owned[layer][0].dtype, self._tag(layer)
            for src, (start, stop) in zip(self._group, self._bounds[layer], strict=True):
                own, reduced = self._bounds[layer][self._me], stop - start
                if src != self._rank and own[1] > own[0]:
                    self._peers.expect("shard", src, (own[1] - own[0],), dtype, tag=tag)
                if src != self._rank and reduced:
                    self._peers.expect("reduced", src, (reduced,), dtype, tag=tag)

    def start(self, layer: int) -> None:
        """The layer's gradients are final on this rank: send the shards that others own. Never waits."""
        flat = torch.cat([_gradient(p).flatten() for p in self._owned[layer]])
        self._own_squares.append(torch.linalg.vector_norm(flat).double().square())
        for p in self._owned[layer]:
            p.grad = None  # its values are in `flat`, its memory is free for the layers to come
        for dst, (start, stop) in zip(self._group, self._bounds[layer], strict=True):
            if dst == self._rank:
                self._mine[layer] = flat[start:stop]
            elif start < stop:
                self._peers.send("shard", dst, flat[start:stop], tag=self._tag(layer), quiet=True)
        self._add_what_is_there()

    @property
    def own_square(self) -> float:
        """Squares of what this rank put in, summed: whose numbers are bad cannot be told from the sums."""
        return float(torch.stack(self._own_squares).sum()) if self._own_squares else 0.0

    def finish(self) -> None:
        """Wait for all sums. Raises what `Peers.receive` raises.

        Until the shards of the layer that came first are there, nobody is known to have come, and the
        time is a `wait`; from then on it is `reduce`.
        """
        for layer in list(self._mine)[:1]:
            self._add(layer, quiet=False)
        start_s = self._recorder.now_s()
        for layer in list(self._mine):
            self._add(layer)
        n_bytes = sum(self._gather(layer) for layer in self._reduced)
        self._recorder.add("reduce", start_s, n_bytes=n_bytes)

    def _add_what_is_there(self) -> None:
        """Layer by layer in the order of their start, so that every rank sends its sums in that order."""
        for layer in list(self._mine):
            others = [src for src in self._group if src != self._rank]
            tag, empty = self._tag(layer), not self._mine[layer].numel()
            if not empty and not all(self._peers.ready("shard", src, tag=tag) for src in others):
                return
            self._add(layer)

    def _add(self, layer: int, quiet: bool = True) -> None:
        """Sum the owned shard, in replica order, and send it to all."""
        mine = self._mine.pop(layer)
        tag = self._tag(layer)
        self._reduced[layer] = lambda: mine
        if mine.numel():
            shape = (mine.numel(),)
            versions = [
                mine
                if src == self._rank
                else self._peers.receive("shard", src, shape, mine.dtype, tag=tag, quiet=quiet)
                for src in self._group
            ]
            total = versions[0].clone()
            for version in versions[1:]:
                total += version
            # A codec changes the sum: what the others will read is what this rank goes on with too.
            others = [r for r in self._group if r != self._rank]
            self._reduced[layer] = self._peers.broadcast("reduced", others, total, tag)

    def _gather(self, layer: int) -> int:
        """Put the layer's sums together and make them its gradients; their bytes."""
        own = self._reduced[layer]()
        bounds = self._bounds[layer]
        flat = own.new_empty(bounds[-1][1])
        for src, (start, stop) in zip(self._group, bounds, strict=True):
            if src == self._rank:
                flat[start:stop] = own
            elif start < stop:
                shape, tag = (stop - start,), self._tag(layer)
                flat[start:stop] = self._peers.receive("reduced", src, shape, own.dtype, tag=tag, quiet=True)
        parameters = self._owned[layer]
        for p, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)
        return flat.numel() * flat.element_size()

    def _tag(self, layer: int) -> int:
        return self._first_layer + layer


def shard_bounds(n: int, shards: int) -> list[tuple[int, int]]:
    """[start, stop) of each shard of `n` values: contiguous, all of them, sizes that differ by at most 1."""
    return [(n * j // shards, n * (j + 1) // shards) for j in range(shards)]


def _gradient(p: nn.Parameter) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad
