"""A follower's half of following: layers that are not its own yet, kept as they are after the last committed
step.

Each comes from one donor, once as it is after some step, and from there on by the gradients of every step,
which the same optimizer takes here. So its bits are the donor's, if both compute alike; whether they do is
not believed but compared, layer by layer, before anything is made of them. Decides nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from scheduler.job import OptimizerSpec
from worker.checkpoint import LayerFileError, load_state, load_weights
from worker.follow_items import Item, Stepped, Whole, digest_of, receive_item
from worker.held_layers import HeldLayer
from worker.model import Layer
from worker.optimizer import StageOptimizer
from worker.transport import Transport, TransportAborted

MARGIN_BYTES = 1 << 20
"""Of a layer's files beside its tensors."""
STATES = 4
"""A layer as it is is at most so many times its weights: AdamW's are three times."""


class Shadow:
    """One layer, its optimizer, and how far it is."""

    def __init__(self, index: int, layer: Layer, spec: OptimizerSpec) -> None:
        self.index, self.layer = index, layer
        self.optimizer = StageOptimizer([layer], spec)
        self.step = -1
        """Steps that it has seen; -1: it is not here yet."""

    @property
    def most_bytes(self) -> int:
        n_bytes: int = sum(t.nbytes for t in self.layer.state_dict().values())
        return STATES * n_bytes + MARGIN_BYTES

    def take(self, item: Item) -> None:
        """Raises LayerFileError for what does not fit."""
        match item:
            case Whole(_, step, held):
                name = f"layer {self.index} after step {step}"
                load_weights(self.layer, dict(held.weights), name)
                load_state(self.optimizer, 0, held.state, name)
                self.step = step
            case Stepped(_, step, lr, frozen_after, gradients):
                if step != self.step:
                    raise LayerFileError(
                        f"layer {self.index}: found the gradients of step {step}, required those of"
                        f" {self.step}"
                    )
                self._put(gradients)
                if frozen_after is None:
                    self.optimizer.step_layer(0, lr)
                else:
                    self.optimizer.step_by_momentum(lr, frozen_after)
                self.step += 1

    def _put(self, gradients: Mapping[str, Tensor]) -> None:
        parameters = dict(self.layer.named_parameters())
        for name, gradient in gradients.items():
            p = parameters.get(name)
            if p is None or p.shape != gradient.shape or p.dtype != gradient.dtype:
                raise LayerFileError(
                    f"layer {self.index}: found a gradient of {name!r}, {gradient.dtype}"
                    f" {tuple(gradient.shape)}, required those of its parameters"
                )
            p.grad = gradient.to(p.device)

    def held(self) -> HeldLayer:
        return HeldLayer(self.layer.state_dict(), self.optimizer.layer_state(0))


class Follower:
    """Follows `of`: donor's rank -> layers, each donor on a thread of its own.

    `build(i)` makes layer i. Told, from those threads: `reached(step)` when the last layer has seen so many
    steps, `met(step, digests)` once all have seen those of `meet`, `failed(error)` once, if it cannot go on.
    """

    def __init__(
        self,
        transport: Transport,
        of: Mapping[int, Sequence[int]],
        build: Callable[[int], Layer],
        spec: OptimizerSpec,
        reached: Callable[[int], None],
        met: Callable[[int, Mapping[int, bytes]], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._transport, self._build, self._spec = transport, build, spec
        self._reached, self._met, self._failed = reached, met, failed
        self._changing = threading.Lock()
        self._shadows: dict[int, Shadow] = {}
        self._wanted = {layer for layers in of.values() for layer in layers}
        self._step = -1
        self._meeting: int | None = None
        self._has_met = self._ended = False
        self._threads = [
            threading.Thread(target=self._run, args=(donor, layers), name="follower", daemon=True)
            for donor, layers in of.items()
        ]
        for thread in self._threads:
            thread.start()

    def meet(self, step: int) -> None:
        """No step follows this one: say what the layers are when they have seen it."""
        with self._changing:
            self._meeting = step
        self._tell()

    def at(self, step: int) -> dict[int, HeldLayer]:
        """The layers as they are after `step` steps; {}: not all have seen just those."""
        with self._changing:
            if self._step != step or any(x.step != step for x in self._shadows.values()):
                return {}
            return {i: x.held() for i, x in self._shadows.items()}

    def close(self) -> None:
        """Follow no more. Whoever closes has aborted the transport."""
        for thread in self._threads:
            thread.join()

    def _run(self, donor: int, layers: Sequence[int]) -> None:
        try:
            own = {i: Shadow(i, self._build(i), self._spec) for i in layers}
            with self._changing:
                self._shadows |= own
            caps, number = {i: x.most_bytes for i, x in own.items()}, 0
            while True:
                item = receive_item(self._transport, donor, number, caps, threading.TIMEOUT_MAX)
                number += 1
                with self._changing:
                    own[item.layer].take(item)
                self._tell()
        except TransportAborted:
            pass  # whoever aborted knows why
        except Exception as error:  # nobody waits here: the coordinator must hear of it
            with self._changing:
                first, self._ended = not self._ended, True
            if first:
                self._failed(error)

    def _tell(self) -> None:
        """How far the last layer is, if it has come further; and what all are, if they have met."""
        with self._changing:
            if self._ended or set(self._shadows) != self._wanted:
                return
            step = min(x.step for x in self._shadows.values())
            further, self._step = step > self._step, step
            meets = step == self._meeting and not self._has_met
            self._has_met |= meets
            digests = {i: digest_of(x.held()) for i, x in self._shadows.items()} if meets else {}
        if further:
            self._reached(step)
        if meets:
            self._met(step, digests)
