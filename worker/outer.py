"""Local steps: where a rank's weights were, and the outer step that brings replicas together.

All weights of a layer, end to end, are cut in `every` pieces; in step s piece s mod `every` of each layer is
exchanged. With a the anchor, which all replicas hold alike, w a replica's own weights and b the momentum:

    d = sum over replicas of share x (a - w)       as it stands when the step begins
    b' = momentum b + d,   a' = a - lr (d + momentum b')        Nesterov, as torch.optim.SGD has it
    w' = a' + what the replica's own optimizer did in this very step

so the exchange goes beside a whole step's compute and its result is one step late. A tied weight whose other
copy is in another stage is a unit of its own, of one tag at both ends, so that both copies take the same
steps. Knows no transport. DiLoCo: Douillard et al., 2023; in pieces: Streaming DiLoCo, 2025.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scheduler.job import LocalStepsSpec
from scheduler.sequence import shard_bounds
from worker.optimizer import StageOptimizer
from worker.sharded import Unit
from worker.stage import Stage


@dataclass(slots=True)
class _Part:
    """Parameters that are exchanged as one, end to end."""

    layer: int
    """Index in the stage."""
    parameters: list[nn.Parameter]
    anchor: Tensor
    momentum: Tensor
    pieces: list[tuple[int, int]]
    """[start, stop) of each."""


class OuterOptimizer:
    """Of one stage of one replica, whose weights are now those that all replicas begin with."""

    def __init__(self, stage: Stage, spec: LocalStepsSpec, first_layer: int, n_layers: int) -> None:
        self._stage, self._spec = stage, spec
        self._parts: dict[int, _Part] = {}
        """By tag: the layer's index in the model; `n_layers` for a tied weight."""
        for i, owned in enumerate(stage.owned):
            own = [p for p in owned if p is not stage.tied]
            for tag, parameters in (
                (first_layer + i, own),
                (n_layers, [p for p in owned if p is stage.tied]),
            ):
                if parameters:
                    anchor = torch.cat([p.detach().flatten() for p in parameters]).clone()
                    pieces = shard_bounds(anchor.numel(), spec.every)
                    self._parts[tag] = _Part(i, parameters, anchor, torch.zeros_like(anchor), pieces)
        self._began: dict[int, Tensor] = {}

    def units(self, step: int) -> dict[int, Unit]:
        """What is exchanged in `step`, by the tag of its frames: layer x every + piece."""
        piece = step % self._spec.every
        sizes = {tag: part.pieces[piece] for tag, part in self._parts.items()}
        return {
            self._tag(tag, piece): Unit(stop - start, self._parts[tag].anchor.dtype)
            for tag, (start, stop) in sizes.items()
            if stop > start
        }

    def begin(self, step: int, share: float) -> dict[int, Tensor]:
        """This replica's share of d, by the tags of `units`. Changes nothing that a checkpoint holds."""
        piece, found = step % self._spec.every, {}
        self._began = {}
        for tag, part in self._parts.items():
            start, stop = part.pieces[piece]
            if stop > start:
                now = torch.cat([own.clone() for own, _ in _within(part, start, stop)])
                self._began[tag] = now
                found[self._tag(tag, piece)] = (part.anchor[start:stop] - now).mul_(share)
        return found

    @torch.no_grad()
    def apply(self, step: int, sums: Mapping[int, Tensor]) -> None:
        """The outer step, behind the replica's own step."""
        piece = step % self._spec.every
        for tag, began in self._began.items():
            part = self._parts[tag]
            start, stop = part.pieces[piece]
            d = sums[self._tag(tag, piece)]
            momentum, anchor = part.momentum[start:stop], part.anchor[start:stop]
            momentum.mul_(self._spec.momentum).add_(d)
            anchor.sub_(torch.add(d, momentum, alpha=self._spec.momentum), alpha=self._spec.lr)
            moved = anchor - began
            for own, at in _within(part, start, stop):
                own.add_(moved[at : at + own.numel()])
        self._began = {}

    def anchored(self, i: int) -> dict[str, Tensor]:
        """The i-th layer's weights as all replicas hold them, by name: the model, for whoever asks."""
        at: dict[int, Tensor] = {}
        for part in self._parts.values():
            sizes = [p.numel() for p in part.parameters]
            for p, flat in zip(part.parameters, torch.split(part.anchor, sizes), strict=True):
                at[id(p)] = flat.view_as(p)
        layer = self._stage.layers[i]
        return {**layer.state_dict(), **{name: at[id(p)] for name, p in layer.named_parameters()}}

    def layer_state(self, i: int, optimizer: StageOptimizer) -> dict[str, Tensor]:
        """What of the i-th layer this replica alone knows: weights, optimizer's state; and the momentum."""
        found = {f"weight:{name}": p.detach() for name, p in self._stage.layers[i].named_parameters()}
        found |= {f"optimizer:{name}": value for name, value in optimizer.layer_state(i).items()}
        for name, part in self._named(i):
            found[f"momentum:{name}"] = part.momentum
        return found

    @torch.no_grad()
    def load_layer_state(self, i: int, state: Mapping[str, Tensor], optimizer: StageOptimizer) -> None:
        """Go on with what `layer_state` gave of this replica; the stage was loaded with the anchor."""
        self.load_momentum(i, state)
        for name, p in self._stage.layers[i].named_parameters():
            p.copy_(state[f"weight:{name}"])
        kind = "optimizer:"
        own = {name.removeprefix(kind): value for name, value in state.items() if name.startswith(kind)}
        optimizer.load_layer_state(i, own)

    def load_momentum(self, i: int, state: Mapping[str, Tensor]) -> None:
        """Only what all replicas hold alike, as when there are more or fewer of them now."""
        for name, part in self._named(i):
            saved = state.get(f"momentum:{name}")
            if saved is not None and saved.shape == part.momentum.shape:
                part.momentum.copy_(saved)

    def _named(self, i: int) -> Iterator[tuple[str, _Part]]:
        for part in self._parts.values():
            if part.layer == i:
                tied = part.parameters[0] is self._stage.tied
                yield ("tied" if tied else "own"), part

    def _tag(self, tag: int, piece: int) -> int:
        return tag * self._spec.every + piece


def _within(part: _Part, start: int, stop: int) -> Iterator[tuple[Tensor, int]]:
    """The parameters' values within [start, stop), as flat views, and how far behind `start` each begins."""
    at = 0
    for p in part.parameters:
        first, last = max(start, at), min(stop, at + p.numel())
        if first < last:
            yield p.detach().view(-1)[first - at : last - at], first - start
        at += p.numel()
