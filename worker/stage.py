"""A stage: a slice of the model's layers, and the activations saved between forward and backward.

Knows no ranks, no schedule and no optimizer: micro-batches may come in any order. Shapes: B samples
of a micro-batch, T positions, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from worker.model import Head, Layer, tied_parameter
from worker.model.ring import Shard
from worker.model.training import training


class StageError(Exception):
    """A stage that is asked for what it cannot do: says which micro-batch, what was found and required."""


class Stage:
    """Consecutive layers. The first stage takes tokens, the last has the loss, others pass (B,T,D) on.

    Tensors that cross a boundary are detached: autograd never sees more than one stage. With
    `autocast` (bfloat16) the products run in that type, boundaries are of that type, and weights,
    their gradients and the residual stream within a stage stay float32. With `recompute`, forward
    saves its input alone and backward does the forward again: no layer draws random numbers, so it
    is the same to the last bit. T is the positions of a `shard`, where sequences are so divided.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        is_first: bool,
        is_last: bool,
        autocast: torch.dtype | None = None,
        recompute: bool = False,
    ) -> None:
        if not layers:
            raise StageError("found a stage without layers; required at least one")
        if is_last and not isinstance(layers[-1], Head):
            raise StageError(f"found {layers[-1].name} at the end of the last stage; required the head")
        self.layers = list(layers)
        self.is_first, self.is_last = is_first, is_last
        self.owned = owned_parameters(self.layers)
        """Per layer, its parameters; one that an earlier layer of the stage shares is left to that one."""
        self._autocast = autocast
        self._recompute = recompute
        self._saved: dict[int, _Saved] = {}

    @property
    def device(self) -> torch.device:
        return self.owned[0][0].device

    @property
    def in_flight(self) -> int:
        """Micro-batches whose activations are saved."""
        return len(self._saved)

    @property
    def tied(self) -> nn.Parameter | None:
        """The weight whose other copy is in another stage, if there is one."""
        if self.is_first and self.is_last:
            return None
        weight = tied_parameter(self.layers[0]) if self.is_first else None
        return tied_parameter(self.layers[-1]) if self.is_last else weight

    def forward(
        self,
        mb: int,
        x: Tensor,
        targets: Tensor | None = None,
        shard: Shard | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Run micro-batch `mb` on tokens (B,T) or the boundary (B,T,D), and save what backward needs.
        `documents_BT`: the number of each position's document, where documents are kept apart.

        Returns the next boundary (B,T,D), or the loss summed over all targets (B,T) in the last stage.
        """
        if mb in self._saved:
            raise StageError(f"micro-batch {mb}: found a second forward; required its backward first")
        if not self.is_first:
            x = x.detach().requires_grad_(True)
        with torch.set_grad_enabled(not self._recompute), training() as losses:
            y = self._run(x, targets, shard, documents_BT)
        if self._recompute:
            self._saved[mb] = _Saved(x, targets, shard, documents_BT)
        else:
            self._saved[mb] = _Saved(x, y=y, losses=losses)
        return y.detach()

    def backward(
        self,
        mb: int,
        gradient: Tensor | None,
        loss_scale: float,
        done: Callable[[int], None] | None = None,
    ) -> Tensor | None:
        """Add micro-batch `mb`'s part to the weights' gradients, and forget its activations.

        `gradient` is that of the boundary behind the stage; None in the last stage, where the summed
        loss counts `loss_scale`, as do losses that layers of any stage have of their own. `done(i)` is
        called as soon as layer i has its gradient, last layer first. Returns the gradient of the stage's
        input, None in the first stage.
        """
        if mb not in self._saved:
            raise StageError(f"micro-batch {mb}: found a backward; required its forward first")
        if (gradient is None) != self.is_last:
            found = "no gradient" if gradient is None else "a gradient for the loss"
            raise StageError(f"micro-batch {mb}: found {found}; required one exactly behind inner stages")
        x, targets, shard, documents_BT, y, losses = self._saved.pop(mb)
        if y is None:
            with training() as losses:
                y = self._run(x, targets, shard, documents_BT)
        if gradient is None:
            gradient = torch.full_like(y, loss_scale)
        watch = None if done is None else _Watch(self.owned, done)
        try:
            scales = [torch.full_like(loss, loss_scale) for loss in losses]
            torch.autograd.backward([y, *losses], [gradient, *scales])
        finally:
            if watch is not None:
                watch.close()
        if watch is not None:
            watch.finish()
        return x.grad

    def again(
        self,
        x: Tensor,
        targets: Tensor | None,
        documents_BT: Tensor | None,
        gradient: Tensor | None,
        loss_scale: float,
    ) -> tuple[Tensor, Tensor | None]:
        """Forward and backward of a micro-batch that another replica has done: what comes of its input, and
        that input's gradient (None in the first stage). As `forward` and `backward` take them; nothing is
        saved, and the weights' gradients stay as they are."""
        if self.is_first:
            with torch.no_grad(), training():
                return self._run(x, targets, None, documents_BT), None
        x = x.detach().requires_grad_(True)
        with torch.enable_grad(), training() as losses:
            y = self._run(x, targets, None, documents_BT)
        if gradient is None:
            gradient = torch.full_like(y, loss_scale)
        scales = [torch.full_like(loss, loss_scale) for loss in losses]
        (x_gradient,) = torch.autograd.grad([y, *losses], x, [gradient, *scales])
        return y.detach(), x_gradient

    @contextmanager
    def copies_held(self) -> Iterator[None]:
        """Within it, autocast's 16-bit copies of the weights are made once and serve every micro-batch; else
        each in flight keeps its own. No forward may follow a change of weights in it.

        Not where forwards are done again: a copy that the first of them made would know no gradient.
        """
        if self._autocast is None or self._recompute:
            yield
            return
        torch.autocast_increment_nesting()  # the cache lasts as long as anything is nested
        try:
            yield
        finally:
            if torch.autocast_decrement_nesting() == 0:
                torch.clear_autocast_cache()

    @torch.no_grad()
    def evaluate(
        self,
        x: Tensor,
        targets: Tensor | None = None,
        shard: Shard | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """As forward, but nothing is saved."""
        return self._run(x, targets, shard, documents_BT)

    def clear(self) -> None:
        """Forget activations and gradients, as after a step that failed."""
        self._saved.clear()
        for parameters in self.owned:
            for p in parameters:
                p.grad = None

    def _run(
        self, x: Tensor, targets: Tensor | None, shard: Shard | None, documents_BT: Tensor | None
    ) -> Tensor:
        if (targets is None) == self.is_last:
            raise StageError("found targets in an inner stage or none in the last; required in the last only")
        if self._autocast is not None and x.is_floating_point():
            x = x.float()  # within a stage the residual stream is float32
        with torch.autocast(self.device.type, self._autocast, enabled=self._autocast is not None):
            for layer in self.layers[: -1 if self.is_last else None]:
                x, _ = layer(x, None if shard is None else layer.in_shard(shard), documents_BT)
            if targets is not None:
                head = self.layers[-1]
                assert isinstance(head, Head)
                return head.loss(x, targets)
        return x if self._autocast is None else x.to(self._autocast)


class _Saved(NamedTuple):
    """What a micro-batch leaves for its backward: its input, and either the result and its layers' own
    losses, whose graph holds the activations, or nothing but the targets (None but in the last stage) and
    the shard and the documents to compute it again."""

    x: Tensor
    targets: Tensor | None = None
    shard: Shard | None = None
    documents_BT: Tensor | None = None
    y: Tensor | None = None
    losses: Sequence[Tensor] = ()


class _Watch:
    """Counts, during one backward, each layer's parameters that still lack their gradient."""

    def __init__(self, owned: Sequence[Sequence[nn.Parameter]], done: Callable[[int], None]) -> None:
        self._left = [len(parameters) for parameters in owned]
        self._done = done
        self._handles: list[RemovableHandle] = [
            p.register_post_accumulate_grad_hook(partial(self._count, i))  # type: ignore[no-untyped-call]
            for i, parameters in enumerate(owned)
            for p in parameters
        ]

    def _count(self, layer: int, _: Tensor) -> None:
        self._left[layer] -= 1
        if self._left[layer] == 0:
            self._done(layer)

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def finish(self) -> None:
        """Layers with a parameter that this backward did not reach are done now."""
        for layer in reversed(range(len(self._left))):
            if self._left[layer] > 0:
                self._done(layer)


def owned_parameters(layers: Sequence[Layer]) -> list[list[nn.Parameter]]:
    """Each layer's parameters in the order of their names in the layer, every object once: with the first."""
    seen: set[int] = set()
    owned: list[list[nn.Parameter]] = []
    for layer in layers:
        owned.append([p for p in layer.parameters() if id(p) not in seen])
        seen.update(map(id, owned[-1]))
    return owned
