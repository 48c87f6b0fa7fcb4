"""A trace as a picture: its links' round trips and bandwidths over time, and what a step took under them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scheduler.trace import LinkSeries, Sampler, Trace, Vector
from scheduler.units import count
from sim.canvas import Picture, Rect, Shape, Text, stacked, text_px
from sim.pictures import DARK_INK, WIDE, Axis, Series, curve, heading, short

FIGURES = ((("round trip", "ms"), 1e3, "rtt_s"), (("bandwidth", "Mbit/s"), 8 / 1e6, "bandwidth_Bps"))
"""((what, unit), that many of it in the column's unit, column)"""
MAX_MOMENTS = 400
"""Points of a line; a link that changes more often is sampled."""
MAX_NAMED = 6
"""Links up to which each is a line of its own; of more, the median and the tenths are shown."""


def weather(trace: Trace, step_s: Sequence[tuple[float, float]] = (), width: float = WIDE) -> Picture:
    """Panels on one time axis: round trips, bandwidths and step times, as far as they are known.

    With several steps, (moment, s) each, the axis is the time that they took; else the trace's.
    """
    from_s, to_s = 0.0, trace.duration_s or 1.0
    if len(step_s) > 1:
        from_s, to_s = step_s[0][0], step_s[-1][0] + step_s[-1][1]
    unit, name = _unit(to_s)
    x = Axis(f"time of the trace, {name}", span=(from_s / unit, to_s / unit))
    title = f"The links of {trace.name} over time"
    shapes, height = heading(title, width=width)
    panels = [Picture(width, height - 12, title, "", tuple(shapes))]
    charts: list[tuple[str, list[Series], int]] = []
    for (what, unit_of_it), per, column in FIGURES:
        lines = _lines(trace, column, per, from_s, to_s, unit)
        if lines:
            charts.append((f"{what} of {count(len(trace.links), 'link')}, {unit_of_it}", lines, 210))
    if len(step_s) > 1:
        points = tuple((t / unit, s) for t, s in step_s)
        charts.append(("step time under this network, s", [Series("step", points)], 190))
    labels = [line.label for _, lines, _ in charts for line in lines]
    for what, lines, high in charts:
        panels.append(curve(lines, x, Axis(what, from_zero=True), "", width, high, room_for=labels))
    return stacked(panels, title)


def _unit(end_s: float) -> tuple[float, str]:
    return (3600.0, "hours") if end_s > 7200 else (60.0, "minutes") if end_s > 600 else (1.0, "seconds")


def _lines(trace: Trace, column: str, per: float, from_s: float, to_s: float, unit: float) -> list[Series]:
    known = {p: link for p, link in trace.links.items() if not np.isnan(getattr(link, column)).all()}
    if not known:
        return []
    changes = np.unique(np.concatenate([[from_s, to_s], *(link.times_s for link in known.values())]))
    changes = changes[(changes >= from_s) & (changes <= to_s)]
    moments = changes if len(changes) <= MAX_MOMENTS else np.linspace(from_s, to_s, MAX_MOMENTS)
    rows = np.array([_at(link, column, moments) for link in known.values()]) * per
    if len(known) <= MAX_NAMED:
        named = [(f"{a} → {b}", row) for (a, b), row in zip(known, rows, strict=True)]
    else:
        tenth, middle, ninth = np.nanquantile(rows, (0.1, 0.5, 0.9), axis=0)
        named = [("slow tenth", ninth), ("median", middle), ("fast tenth", tenth)]
        if column == "bandwidth_Bps":
            named = [("fast tenth", ninth), ("median", middle), ("slow tenth", tenth)]
    return [
        Series(
            label,
            tuple((float(t / unit), float(v)) for t, v in zip(moments, row, strict=True) if not np.isnan(v)),
            held=len(changes) <= MAX_MOMENTS,
        )
        for label, row in named
    ]


def _at(link: LinkSeries, column: str, moments: Vector) -> Vector:
    values: Vector = getattr(link, column)
    index = np.maximum(np.searchsorted(link.times_s, moments, side="right") - 1, 0)
    return values[index]


# ---- one moment


PALE, DEEP = (222, 235, 247), (8, 69, 148)
"""Ends of a scale of one hue (ColorBrewer's Blues): the darker, the worse."""


def link_matrix(trace: Trace, t_s: float = 0.0, width: float = WIDE) -> Picture:
    """Every link at a moment: a row a source, a column a destination, the darker the worse."""
    title = f"The links of {trace.name}" + (f" at {t_s:g} s" if t_s else "")
    shapes, height = heading(title, "A row a source, a column a destination; the darker, the worse.", width)
    panels = [Picture(width, height - 8, title, "", tuple(shapes))]
    now = Sampler(trace).at(t_s)
    for (what, unit), per, column in FIGURES:
        values: Vector = getattr(now, column) * per
        np.fill_diagonal(values, np.nan)
        if not np.isnan(values).all():
            panels.append(_matrix(tuple(trace.nodes), values, what, unit, width))
    return stacked(panels, title)


def _matrix(names: Sequence[str], values: Vector, what: str, unit: str, width: float) -> Picture:
    n = len(names)
    left = min(max(text_px(name, 11) for name in names) + 36, 0.3 * width)
    cell = min((width - left) / n, 76.0)
    high = min(max(cell * 0.5, 14.0), 30.0)
    small = min(11.0, cell / 3.2)
    letters = int((left - 8) / text_px("x", 11))
    out: list[Shape] = [Text(0, 12, f"{what}, {unit}", ink="soft")]
    scaled = np.log(np.maximum(values, 1e-9))
    low, span = np.nanmin(scaled), max(float(np.nanmax(scaled) - np.nanmin(scaled)), 1e-9)
    top = 40.0
    numbered = max(map(len, names)) > int(cell / text_px("x", 10))  # columns by the number of their row
    for j, name in enumerate(names):
        if cell >= 14:
            head = str(j + 1) if numbered else name
            out.append(Text(left + (j + 0.5) * cell, top - 6, head, "middle", "soft", 10))
    for i, src in enumerate(names):
        y = top + i * high
        name = f"{src}  {i + 1}" if numbered else src
        out.append(Text(left - 8, y + high * 0.5 + 4, _cut(name, letters), "end", size=11))
        for j, dst in enumerate(names):
            if np.isnan(values[i, j]):
                continue
            share = float((scaled[i, j] - low) / span)
            share = share if what == "round trip" else 1 - share
            red, green, blue = (round(a + share * (b - a)) for a, b in zip(PALE, DEEP, strict=True))
            said = short(float(values[i, j]))
            x = left + j * cell
            fill = f"#{red:02x}{green:02x}{blue:02x}"
            out.append(Rect(x, y, cell - 2, high - 2, fill, tip=f"{src} to {dst}: {said} {unit}"))
            if small >= 7 and text_px(said, small) < cell - 4:
                ink = "#ffffff" if share > 0.5 else DARK_INK
                out.append(Text(x + cell / 2 - 1, y + high * 0.5 + small * 0.33, said, "middle", ink, small))
    worst = np.nanmax(values) if what == "round trip" else np.nanmin(values)
    i, j = np.argwhere(values == worst)[0]
    said = f"{what} from {short(float(np.nanmin(values)))} to {short(float(np.nanmax(values)))} {unit}"
    description = f"{said.capitalize()}, the worst from {names[i]} to {names[j]}."
    return Picture(width, top + n * high + 8, what, description, tuple(out))


def _cut(name: str, letters: int) -> str:
    return name if len(name) <= letters else name[: max(letters - 1, 1)] + "…"
