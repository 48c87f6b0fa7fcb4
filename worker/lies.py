"""A worker that computes wrongly, for tests: as a broken accelerator would, or somebody who lies.

What its stage makes of each micro-batch, and of each gradient, comes out FACTOR times as large; everything
else of the worker goes on as it was.
"""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor

from worker.stage import Stage

FACTOR = 1.05
"""Small enough that no norm stands out."""


def lie(seconds: float) -> None:
    """Scale what every stage of this process computes, for so long."""
    forward, backward = Stage.forward, Stage.backward

    def scaled_forward(self: Stage, *given: Any, **named: Any) -> Tensor:
        y = forward(self, *given, **named)
        return y if self.is_last else y * FACTOR  # a last stage gives the loss

    def scaled_backward(self: Stage, *given: Any, **named: Any) -> Tensor | None:
        gradient = backward(self, *given, **named)
        return None if gradient is None else gradient * FACTOR

    def be_honest() -> None:
        Stage.forward, Stage.backward = forward, backward  # type: ignore[method-assign]

    Stage.forward, Stage.backward = scaled_forward, scaled_backward  # type: ignore[method-assign]
    timer = threading.Timer(seconds, be_honest)
    timer.daemon = True
    timer.start()
