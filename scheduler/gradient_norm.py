"""The norm of a whole gradient from every layer's sum of squares: one order of addition, wherever it is done.

Layers are added one by one, not stage by stage, so the norm does not depend on where the model was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite, nan, sqrt


def norm_of(stages: Iterable[Sequence[float]]) -> float:
    """From the sums of squares of each stage's layers, stages in order; nan if any is no finite number."""
    total = 0.0
    for squares in stages:
        for square in squares:
            total += square
    return sqrt(total) if isfinite(total) else nan
