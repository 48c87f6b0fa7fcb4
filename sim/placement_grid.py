"""A placement as a grid: a column a stage, a row a replica, cells tinted by region."""

from __future__ import annotations

from itertools import pairwise

from scheduler.units import count
from sim.canvas import Line, Picture, Rect, Shape, Text
from sim.pictures import DARK_INK, WIDE, heading, legend
from sim.placed import Placed

MAX_LABELLED = 24
"""Columns or rows up to which cells carry their device's name."""
MAX_ROWS = 48
"""Replicas that the grid shows."""


def placement_grid(placed: Placed, title: str, width: float = WIDE) -> Picture:
    """A column a stage, a row a replica; red: the link each stage waits for, with its seconds."""
    n_stages, n_replicas = len(placed.stages), min(len(placed.stages[0]), MAX_ROWS)
    tints = placed.tints()
    out, top = heading(title, width=width) if title else ([], 0.0)
    keys, top = legend(list(tints.items()), top, width)
    out += keys
    left, high = 74.0, 30.0 if n_replicas <= MAX_LABELLED else 12.0
    column = (width - left) / n_stages
    cell = column * (0.66 if placed.waits else 0.88)
    labelled = column >= 30 and n_replicas <= MAX_LABELLED
    top += 34 if placed.waits else 20
    for s in range(n_stages):
        out.append(
            Text(
                left + column * s + cell / 2,
                top - 8,
                f"stage {s}" if column > 46 else str(s),
                "middle",
                "soft",
                11,
            )
        )
    for r in range(n_replicas):
        y = top + r * high
        if high >= 20:
            out.append(Text(left - 10, y + high * 0.58, f"replica {r}", "end", "soft", 11))
        for s, stage in enumerate(placed.stages):
            device = stage[r]
            waits = device == placed.slowest
            tint = tints[placed.regions[device]]
            tip = f"stage {s}, replica {r}: {device}, {placed.regions[device]}"
            x = left + column * s
            out.append(Rect(x, y + 2, cell, high - 4, tint, "ink" if waits else "", 4, tip))
            if labelled:
                small = min(11.0, cell * 0.95 / (0.56 * max(len(device), 1)))
                if small >= 5.5:
                    out.append(Text(x + cell / 2, y + high * 0.58, device, "middle", DARK_INK, small, waits))
    out += _waits(placed, left, column, cell, top, high, n_replicas)
    y = top + n_replicas * high + 16
    if placed.slowest:
        said = f"Outlined: {placed.slowest}, whose gradient exchange the step waits for."
        out.append(Text(left, y, said, ink="soft", size=11))
        y += 16
    if len(placed.stages[0]) > n_replicas:
        out.append(
            Text(left, y, f"and {len(placed.stages[0]) - n_replicas} replicas more", ink="soft", size=11)
        )
        y += 16
    shape = f"{count(n_stages, 'stage')} x {count(len(placed.stages[0]), 'replica')}"
    rows = "; ".join(f"stage {s}: {', '.join(stage[:8])}" for s, stage in enumerate(placed.stages[:16]))
    return Picture(width, y, title or "Who holds what", f"{shape}. {rows}.", tuple(out))


def _waits(
    placed: Placed, left: float, column: float, cell: float, top: float, high: float, n_replicas: int
) -> list[Shape]:
    out: list[Shape] = []
    worst = max(placed.waits.values(), default=0.0)
    for s, (here, there) in enumerate(pairwise(placed.stages)):
        for (d, e), seconds in placed.waits.items():
            if d in here[:n_replicas] and e in there[:n_replicas]:
                hot = seconds >= 0.999 * worst
                x = left + column * s + cell + 1
                ends = [top + (stage.index(n) + 0.5) * high for stage, n in ((here, d), (there, e))]
                line = ((x, ends[0]), (x + column - cell - 2, ends[1]))
                out.append(Line(line, "alarm", 2.6 if hot else 1.2, 1 if hot else 0.6))
                middle = x + (column - cell) / 2 - 1
                out.append(Text(middle, top - 22, f"{seconds:.2f} s", "middle", "alarm", 10.5, hot))
    return out
