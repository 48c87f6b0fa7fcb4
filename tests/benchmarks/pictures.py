"""Where benchmarks draw: panels beside each other, on no display. matplotlib is imported only to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def panels(width: float, height: float, shares: Sequence[float]) -> tuple[Any, Any]:
    """A figure of so many inches, to be kept with `savefig`, and its panels, whose widths are as `shares`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    return figure, figure.subplots(1, len(shares), squeeze=False, width_ratios=shares)[0]
