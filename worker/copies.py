"""Copies of layers as they were after some step: this worker's own, and those it keeps for a neighbour.

The step's thread takes its own in no time but a copy in memory; what goes to the neighbour and comes from
another goes beside the steps. Two steps' copies at most are here: the last that everybody has, and the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from worker.held_layers import HeldLayer, HeldLayers
from worker.layer_exchange import packed, receive_layer, send_part
from worker.optimizer import StageOptimizer
from worker.stage import Stage
from worker.transport import Transport, TransportAborted


def _clones(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}


class Copies:
    """By step. Any thread may call."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._steps: dict[int, HeldLayers] = {}

    def take(
        self, step: int, complete: int, stage: Stage, optimizer: StageOptimizer, first_layer: int
    ) -> tuple[HeldLayer, ...]:
        """Copy the stage's layers, which stand at `step`; of others only those of step `complete` stay."""
        own = {
            first_layer + i: HeldLayer(_clones(layer.state_dict()), _clones(optimizer.layer_state(i)))
            for i, layer in enumerate(stage.layers)
        }
        with self._changing:
            self._steps = {s: held for s, held in self._steps.items() if s == complete}
            self._steps[step] = HeldLayers(step, own)
        return tuple(own.values())

    def put(self, step: int, layer: int, held: HeldLayer) -> None:
        """Keep a neighbour's layer, unless that step's copies are not wanted any more."""
        with self._changing:
            if step in self._steps:
                self._steps[step].layers[layer] = held

    def at(self, step: int) -> HeldLayers | None:
        """What is here as it was after `step`: to be loaded from, and given to others."""
        with self._changing:
            found = self._steps.get(step)
            return HeldLayers(step, dict(found.layers)) if found is not None else None


@dataclass(frozen=True, slots=True)
class Kept:
    """A neighbour's layers start .. stop - 1, which come from its rank."""

    rank: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """What one rank sends to its keepers, and keeps for others, in one plan."""

    transport: Transport
    plan_version: int
    rank: int
    first_layer: int
    keepers: Sequence[int]
    kept: Sequence[Kept]
    most_bytes: int
    timeout_s: float

    def start(
        self,
        step: int,
        own: Sequence[HeldLayer],
        copies: Copies,
        done: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> tuple[threading.Thread, ...]:
        """Send and receive on threads of their own; `done` is called once all that is kept is there."""

        def send() -> None:
            for i, layer in enumerate(own):
                blob = packed(layer)
                for keeper in self.keepers:
                    key = (step, self.first_layer + i)
                    send_part(self.transport, self.plan_version, self.rank, keeper, key, blob, (0, 1))

        def receive() -> None:
            for neighbour in self.kept:
                for layer in range(neighbour.start, neighbour.stop):
                    found = receive_layer(
                        self.transport, [neighbour.rank], step, layer, self.most_bytes, self.timeout_s
                    )
                    copies.put(step, layer, found)
            done()

        def carefully(work: Callable[[], None]) -> None:
            try:
                work()
            except TransportAborted:
                pass  # the plan is over, and this step's copies with it
            except Exception as error:  # nobody waits here: the coordinator must hear of it
                failed(error)

        works = [w for w, wanted in ((send, self.keepers), (receive, self.kept)) if wanted]
        threads = tuple(
            threading.Thread(target=carefully, args=(w,), name="copies", daemon=True) for w in works
        )
        for thread in threads:
            thread.start()
        return threads
