"""A rank's part in a spot check of one step: telling what it saw of the checked rank, or computing it again.

Which micro-batch of whom is checked comes with the commit before (`scheduler/spot_checks.py`); a rank that
has no part in it is told nothing. Judges nothing: the checker says how far off the result is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scheduler.spot_checks import SpotCheck
from worker.peers import Peers
from worker.stage import Stage
from worker.step_context import StepContext

KIND = "check"
_TAGS = {("activation", True): 0, ("activation", False): 1, ("gradient", True): 2, ("gradient", False): 3}
"""(kind, whether it went to the checked rank): what it was sent, and what it sent."""


class StepCheck:
    """Of one rank in one step. Without a check, or without a part in it, nothing is done."""

    def __init__(self, context: StepContext, peers: Peers, check: SpotCheck | None) -> None:
        self._context, self._peers, self._check = context, peers, check
        self._checked = check.checked(context.plan) if check is not None else -1
        self.error: float | None = None
        """How far off the checked rank was found to be, relative; None: nothing was computed again."""

    def sent(self, kind: str, mb: int, dst: int, x: Tensor) -> None:
        """`x` was sent to `dst`."""
        self._tell(kind, mb, dst, x, True)

    def came(self, kind: str, mb: int, src: int, x: Tensor) -> None:
        """`x` came from `src`."""
        self._tell(kind, mb, src, x, False)

    def _tell(self, kind: str, mb: int, peer: int, x: Tensor, to_checked: bool) -> None:
        check = self._check
        if check is None or peer != self._checked or mb != check.micro_batch:
            return
        for checker in check.checkers:
            self._peers.send(KIND, checker, x, mb, tag=_TAGS[kind, to_checked], quiet=True)

    def compute(
        self,
        stage: Stage,
        given: Callable[[int], tuple[Tensor | None, Tensor | None, Tensor | None]],
        boundary: tuple[tuple[int, ...], torch.dtype],
        loss_scale: float,
    ) -> None:
        """If this rank is a checker: compute the micro-batch again, before any weight changes.

        `given(i)`: what the stage reads of the i-th micro-batch of this rank's replica, also of those beyond
        it: inputs, targets and documents; `boundary`: shape and type of what crosses between stages.
        """
        check, plan = self._check, self._context.plan
        if check is None or self._context.rank not in check.checkers:
            return
        before, behind = self._checked - 1, self._checked + 1

        def told(kind: str, peer: int, to_checked: bool) -> Tensor:
            tag = _TAGS[kind, to_checked]
            return self._peers.receive(KIND, peer, *boundary, check.micro_batch, tag)

        first = plan.first_micro_batch(check.replica) - plan.first_micro_batch(self._context.replica)
        inputs, targets, documents = given(first + check.micro_batch)
        x = inputs if stage.is_first else told("activation", before, True)
        assert x is not None
        gradient = None if stage.is_last else told("gradient", behind, True)
        y, x_gradient = stage.again(x, targets, documents, gradient, loss_scale)
        errors = [] if stage.is_last else [relative_error(told("activation", behind, False), y)]
        if x_gradient is not None:
            errors.append(relative_error(told("gradient", before, False), x_gradient))
        self.error = max(errors)


def relative_error(found: Tensor, required: Tensor) -> float:
    """|found - required| / |required|, in norms of all values; 0 where both are 0, not finite for a NaN."""
    off = torch.linalg.vector_norm(found.double() - required.double()).item()
    size = torch.linalg.vector_norm(required.double()).item()
    return off if off == 0.0 or off != off else off / size if size else float("inf")
