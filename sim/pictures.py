"""What pictures show: titles, legends, curves, and bars of where the time goes. Takes plain values.

Every picture has a title with its units, labels at the lines themselves, and a description in words.
`width` is 900 for a page and a file, NARROW for a phone. Knows nothing of runs, files or pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor, log10

from scheduler.units import duration
from sim.canvas import (
    HUES,
    Dot,
    Line,
    Picture,
    Rect,
    Shape,
    Text,
    text_px,
    ticks,
)  # fmt: skip

WIDE, NARROW = 900.0, 390.0
TITLE_PX = 15.0

DARK_INK = "#1b1f24"
"""On hues that are light on either paper."""


def heading(title: str, note: str = "", width: float = WIDE) -> tuple[list[Shape], float]:
    """The title, broken to the width, and a note under it; and where what follows may begin."""
    out: list[Shape] = []
    y = 0.0
    for text, size, bold, ink in ((title, TITLE_PX, True, "ink"), (note, 12.0, False, "soft")):
        for line in wrapped(text, width / (size * (0.6 if bold else 0.54))):
            y += size + 6
            out.append(Text(0, y, line, ink=ink, size=size, bold=bold))
    return out, y + 10


def wrapped(text: str, letters: float) -> list[str]:
    """The text in lines of at most so many letters, broken at spaces."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= letters:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


# ---- curves


@dataclass(frozen=True, slots=True)
class Series:
    """Points (x, y) under one label, drawn as a line, or as dots when `dots`; `held`: as steps."""

    label: str
    points: tuple[tuple[float, float], ...]
    colour: str = ""
    """Empty: the palette's, by the series' place."""
    dots: bool = False
    held: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """What a direction means, with its unit; `log`: decades are equally far apart."""

    label: str
    log: bool = False
    from_zero: bool = False
    span: tuple[float, float] | None = None
    """From where to where; None: as far as the points go."""


def curve(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    title: str,
    width: float = WIDE,
    height: float = 320,
    note: str = "",
    room_for: Sequence[str] = (),
) -> Picture:
    """A line chart. Series without points are left out; without any, the picture says so. `room_for`: labels
    of charts above and below it, so that all their frames are as wide."""
    shown = [s if s.colour else _coloured(s, k) for k, s in enumerate(series) if s.points]
    out, top = heading(title, note, width) if title else ([], 0.0)
    if not shown:
        out.append(Text(0, top + 14, "nothing was recorded", ink="soft"))
        return Picture(width, top + 30, title, "Nothing was recorded.", tuple(out))
    room = 1.15 * max(map(text_px, (*room_for, *(s.label for s in shown)))) + 16
    if beside := room < 0.25 * width:
        right = width - room
    else:  # a phone: the labels stand above, as a legend
        keys, top = legend([(s.label, s.colour) for s in shown], top, width)
        out += keys
        right = width - 10
    frame = _Frame(shown, x, y, 52, right, top + 22, height - 42)
    out.append(Text(0, top + 10, y.label, ink="soft"))
    out += frame.grid(x, y)
    ends: list[float] = []
    for s in sorted(shown, key=lambda s: frame.y(s.points[-1][1])):
        points = [(frame.x(a), frame.y(b)) for a, b in s.points]
        if s.dots:
            out += [Dot(px, py, 4, s.colour) for px, py in points]
        else:
            out.append(Line(tuple(_steps(points) if s.held else points), s.colour, 2))
        if beside:
            at = points[-1][1] + 4
            while any(abs(at - e) < 15 for e in ends):
                at += 1
            ends.append(at)
            out.append(Text(points[-1][0] + 8, at, s.label, ink=s.colour, bold=True))
    said = "; ".join(f"{s.label} from {s.points[0][1]:.4g} to {s.points[-1][1]:.4g}" for s in shown)
    return Picture(width, height, title, f"{y.label} over {x.label}: {said}.", tuple(out))


def _coloured(s: Series, place: int) -> Series:
    return Series(s.label, s.points, HUES[place % len(HUES)], s.dots, s.held)


def _steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Sample-and-hold: level until the next point."""
    out = [points[0]]
    for (_, before), (px, py) in pairwise(points):
        out += [(px, before), (px, py)]
    return out


class _Frame:
    """From values to pixels, with ticks."""

    def __init__(
        self, shown: Sequence[Series], x: Axis, y: Axis, left: float, right: float, top: float, bottom: float
    ) -> None:
        self.left, self.right, self.top, self.bottom = left, right, top, bottom
        self._x = self._range([a for s in shown for a, _ in s.points], x, 0.0)
        self._y = self._range([b for s in shown for _, b in s.points], y, 0.05)
        self._log = x.log, y.log

    def _range(self, values: Sequence[float], axis: Axis, pad: float) -> tuple[float, float]:
        values = axis.span or values
        scaled = [log10(max(v, 1e-12)) for v in values] if axis.log else list(values)
        low, high = min(scaled), max(scaled)
        pad *= (high - low) or abs(high) or 1.0
        low = min(0.0, low) if axis.from_zero and not axis.log else low - pad
        return low, max(high + pad, low + 1e-9)

    def x(self, value: float) -> float:
        low, high = self._x
        at = log10(max(value, 1e-12)) if self._log[0] else value
        return self.left + (at - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self._y
        at = log10(max(value, 1e-12)) if self._log[1] else value
        return self.bottom - (at - low) / (high - low) * (self.bottom - self.top)

    def grid(self, x: Axis, y: Axis) -> list[Shape]:
        out: list[Shape] = []
        for t in self._ticks(self._y, y.log, max(3, int((self.bottom - self.top) / 50))):
            out.append(Line(((self.left, self.y(t)), (self.right, self.y(t))), "line"))
            out.append(Text(self.left - 8, self.y(t) + 4, short(t), "end", "soft", 11))
        across = self._ticks(self._x, x.log, max(4, int((self.right - self.left) / 90)))
        out += [Text(self.x(t), self.bottom + 16, short(t), "middle", "soft", 11) for t in across]
        out.append(Text((self.left + self.right) / 2, self.bottom + 34, x.label, "middle", "soft"))
        return out

    @staticmethod
    def _ticks(span: tuple[float, float], log: bool, about: int) -> list[float]:
        if not log:
            return ticks(*span, about)
        steps = (1,) if span[1] - span[0] > 3 else (1, 3) if span[1] - span[0] > 1.2 else (1, 2, 5)
        found = [m * 10.0**e for e in range(floor(span[0]), floor(span[1]) + 1) for m in steps]
        return [v for v in found if span[0] - 1e-9 <= log10(v) <= span[1] + 1e-9]


def short(value: float) -> str:
    """`12,000`, `0.25`, `3.2e-07`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}" if abs(value) < 1e-3 else f"{value:.4g}"


def legend(entries: Sequence[tuple[str, str]], top: float, width: float) -> tuple[list[Shape], float]:
    """(label, colour) as a row, broken to the width; and where what follows may begin."""
    out: list[Shape] = []
    x, y = 0.0, top + 4
    for label, fill in entries:
        needed = text_px(label) + 34
        if x and x + needed > width:
            x, y = 0.0, y + 20
        out += [Rect(x, y, 12, 12, fill, radius=3), Text(x + 18, y + 10.5, label, ink="soft")]
        x += needed
    return out, y + 22


# ---- where the time goes


@dataclass(frozen=True, slots=True)
class Bar:
    """One stacked bar: its parts (label, seconds), the same labels in every bar."""

    label: str
    parts: tuple[tuple[str, float], ...]

    @property
    def total(self) -> float:
        return sum(v for _, v in self.parts)


PART_COLOURS = {
    "compute": "hue0",
    "exposed communication": "hue1",
    "bubble": "wait",
    "reduction": "hue4",
}


def bars(given: Sequence[Bar], title: str, width: float = WIDE, note: str = "") -> Picture:
    """Stacked bars, the seconds of each part written on it where there is room, the total at its end."""
    out, top = heading(title, note, width)
    names = list(dict.fromkeys(name for b in given for name, _ in b.parts))
    colours = {n: PART_COLOURS.get(n, HUES[k % len(HUES)]) for k, n in enumerate(names)}
    if len(names) > 1:
        keys, top = legend([(n, colours[n]) for n in names], top, width)
        out += keys
    widest = max((text_px(b.label) for b in given), default=0.0)
    above = widest > 0.3 * width
    left, right = (0.0 if above else widest + 12), width - 64
    longest = max((b.total for b in given), default=0.0) or 1.0
    y = top + 4
    for b in given:
        if above:
            out.append(Text(0, y + 12, b.label))
            y += 18
        else:
            out.append(Text(left - 10, y + 18, b.label, "end"))
        x = left
        for name, value in b.parts:
            w = value / longest * (right - left)
            said = duration(value)
            out.append(Rect(x, y, w, 26, colours[name], tip=f"{b.label}: {name} {said}"))
            if w > text_px(said, 11) + 8:
                ink = "ink" if colours[name] == "wait" else DARK_INK if colours[name] == "hue4" else "on"
                out.append(Text(x + w / 2, y + 17, said, "middle", ink, 11))
            x += w
        out.append(Text(x + 8, y + 18, duration(b.total), bold=True))
        y += 38
    said = "; ".join(
        f"{b.label} {duration(b.total)}: " + ", ".join(f"{n} {duration(v)}" for n, v in b.parts)
        for b in given
    )
    return Picture(width, y + 4, title, said + ".", tuple(out))
