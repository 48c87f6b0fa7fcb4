"""A donor's half of following: gives one follower its layers while the steps go on.

The step's thread hands over what is there anyway, right before weights change: a copy of the next layer, if
what was handed over before has nearly left, and the gradients of all that the follower has. A thread of its
own sends it, no faster than it is told, so that a step's own tensors find room. What waits is bounded: a
follower that falls behind is given up, and its layers travel when the run stands still.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from scheduler.following import BACKLOG_STEPS
from worker.follow_items import Item, Stepped, Whole, packed, send_item
from worker.held_layers import HeldLayer
from worker.optimizer import StageOptimizer
from worker.stage import Stage
from worker.transport import Transport, TransportAborted


class FellBehind(Exception):
    """The follower does not get a step's gradients in a step's time."""


class Pace:
    """At most so many bytes a second, in the long run; none at all once it is lifted."""

    def __init__(self, rate_Bps: float) -> None:
        self._rate_Bps = rate_Bps
        self._lifted = threading.Event()

    def sent(self, n_bytes: int) -> None:
        """Wait as long as so many bytes take."""
        self._lifted.wait(n_bytes / self._rate_Bps)

    def lift(self) -> None:
        self._lifted.set()


class Feed:
    """To the rank `to`, in the order of `layers`. `failed` is told once, on the feed's own thread."""

    def __init__(
        self,
        transport: Transport,
        version: int,
        rank: int,
        to: int,
        layers: Sequence[int],
        pace: Pace,
        failed: Callable[[Exception], None],
    ) -> None:
        self._transport, self._version, self._rank, self._to = transport, version, rank, to
        self._to_come, self._given = deque(layers), list[int]()
        self._pace, self._failed = pace, failed
        self._changed = threading.Condition()
        self._queue: deque[Item] = deque()
        self._waiting_bytes = self._step_bytes = self._largest_bytes = 0
        """Of what is not sent, of the last step's gradients, of the largest layer so far."""
        self._error: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    @property
    def layers(self) -> list[int]:
        """All that are given, and to be given."""
        return [*self._given, *self._to_come]

    def take(
        self,
        step: int,
        stage: Stage,
        optimizer: StageOptimizer,
        first_layer: int,
        lr: float,
        frozen: int | None,
    ) -> None:
        """Step `step` is committed, its gradients are there, and no weight has changed yet."""
        with self._changed:
            if self._closed or self._error is not None:
                return
            items: list[Item] = []
            if self._to_come and self._waiting_bytes <= self._step_bytes:
                layer = self._to_come.popleft()
                self._given.append(layer)
                whole = _copied(stage, optimizer, layer - first_layer)
                items.append(Whole(layer, step, whole))
                self._largest_bytes = max(self._largest_bytes, _bytes_of(items[0]))
            stepped = [
                Stepped(layer, step, lr, frozen, _gradients(stage, layer - first_layer))
                for layer in self._given
            ]
            items += stepped
            self._step_bytes = sum(x.n_bytes for x in stepped)
            self._waiting_bytes += sum(map(_bytes_of, items))
            if self._waiting_bytes > self._largest_bytes + BACKLOG_STEPS * self._step_bytes:
                self._queue.clear()
                self._error = FellBehind(
                    f"{self._waiting_bytes} bytes wait after step {step}, of {self._step_bytes} a step"
                )
            else:
                self._queue.extend(items)
            self._changed.notify_all()

    @property
    def waiting_bytes(self) -> int:
        """Of what was handed over and has not left."""
        with self._changed:
            return self._waiting_bytes

    def hurry(self) -> None:
        """The run stands still: the rest goes as fast as it can."""
        self._pace.lift()

    def close(self) -> None:
        """Give nothing more. Whoever closes has aborted the transport."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()
        self._pace.lift()
        self._thread.join()

    def _next(self) -> Item | None:
        """What is to be sent; None: nothing any more. Raises what the feed failed by."""
        with self._changed:
            while not self._queue and not self._closed and self._error is None:
                self._changed.wait()
            if self._error is not None:
                raise self._error
            return self._queue.popleft() if self._queue else None

    def _run(self) -> None:
        number = 0
        try:
            while (item := self._next()) is not None:
                blob = packed(item)
                send_item(self._transport, self._version, self._rank, self._to, number, blob, self._pace.sent)
                number += 1
                with self._changed:
                    self._waiting_bytes -= _bytes_of(item)
        except TransportAborted:
            pass  # whoever aborted knows why
        except Exception as error:  # nobody waits here: the coordinator must hear of it
            self._failed(error)
        with self._changed:
            self._closed = True
            self._queue.clear()


def _bytes_of(item: Item) -> int:
    if isinstance(item, Stepped):
        return item.n_bytes
    return sum(t.nbytes for t in (*item.held.weights.values(), *item.held.state.values()))


def _copied(stage: Stage, optimizer: StageOptimizer, i: int) -> HeldLayer:
    """The stage's i-th layer, in memory of its own."""

    def clones(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}

    return HeldLayer(clones(stage.layers[i].state_dict()), clones(optimizer.layer_state(i)))


def _gradients(stage: Stage, i: int) -> dict[str, Tensor]:
    """Of the i-th layer's parameters, also of one that an earlier layer steps. Not copied: an optimizer reads
    them and forgets them, and the next step makes others."""
    named = stage.layers[i].named_parameters()
    return {name: p.grad.detach() for name, p in named if p.grad is not None}
