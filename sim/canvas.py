"""Pictures as lists of simple shapes, in pixels, with colours that are roles of a theme or hues of a palette.

A picture is drawn once and written by `sim.svg` or, as PNG or PDF, by `sim.raster`. It carries a title and a
description for those who cannot see it. Hues are told apart by colour-blind readers. Knows nothing of
what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil, floor, log10

LIGHT = {
    "ink": "#1b1f24",
    "soft": "#59636e",
    "line": "#d1d9e0",
    "paper": "#ffffff",
    "wait": "#e4e8ec",
    "land": "#e9edf1",
    "on": "#ffffff",
    "accent": "#0072b2",
    "alarm": "#c4240c",
}
DARK = {
    "ink": "#e6edf3",
    "soft": "#9aa4af",
    "line": "#30363d",
    "paper": "#0d1117",
    "wait": "#2a313a",
    "land": "#1c232c",
    "on": "#0d1117",
    "accent": "#56b4e9",
    "alarm": "#ff6b54",
}
"""Roles of a picture's colours, on light and on dark paper; `on`: letters on a hue."""
_LIGHT_HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#a6761d", "#7570b3")
_DARK_HUES = ("#4aa3df", "#f58248", "#2fc094", "#e19fc5", "#f0b13c", "#8ccfff", "#cc9a45", "#a9a5e6")

HUES = tuple(f"hue{k}" for k in range(8))
"""For series, regions, replicas, in this order: Okabe-Ito's, then two of ColorBrewer's Dark2."""
LIGHT |= dict(zip(HUES, _LIGHT_HUES, strict=True))
DARK |= dict(zip(HUES, _DARK_HUES, strict=True))

FONT_PX = 12.0
GLYPH = 0.56
"""Width of a letter in parts of the font's size, on average."""


@dataclass(frozen=True, slots=True)
class Rect:
    x: float
    y: float
    width: float
    height: float
    fill: str
    stroke: str = ""
    radius: float = 0.0
    tip: str = ""
    """Shown under a pointer."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """Many rectangles (x, y, width, height) of one colour, as one shape."""

    boxes: tuple[tuple[float, float, float, float], ...]
    fill: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points; `fill` makes it an area."""

    points: tuple[tuple[float, float], ...]
    stroke: str = "ink"
    width: float = 1.0
    opacity: float = 1.0
    fill: str = ""
    dashed: bool = False
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Dot:
    x: float
    y: float
    radius: float
    fill: str
    stroke: str = "paper"
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    x: float
    y: float
    text: str
    anchor: str = "start"
    ink: str = "ink"
    size: float = FONT_PX
    bold: bool = False
    halo: bool = False
    """Outlined in the paper's colour, to be read over lines."""


@dataclass(frozen=True, slots=True)
class Clipped:
    """Shapes that end at the edges of a frame (x, y, width, height)."""

    frame: tuple[float, float, float, float]
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """Ticks from 0 to `end_s`; between `left` and `right` a page may zoom what stands in a `Clipped`."""

    left: float
    right: float
    top: float
    bottom: float
    end_s: float


Shape = Rect | Boxes | Line | Dot | Text | Clipped | TimeAxis


@dataclass(frozen=True, slots=True)
class Picture:
    """`description` says in words what a reader sees; `zoom`: its time axis can be zoomed in a page."""

    width: float
    height: float
    title: str
    description: str
    shapes: tuple[Shape, ...] = field(default=())
    zoom: TimeAxis | None = None


WIDE_LETTERS = "mwMW@%"


def text_px(text: str, size: float = FONT_PX) -> float:
    """About how wide a text is; rather too wide than cut off."""
    return GLYPH * size * (len(text) + 0.5 * sum(text.count(c) for c in WIDE_LETTERS))


def stacked(pictures: Sequence[Picture], title: str, margin: float = 0.0, gap: float = 12.0) -> Picture:
    """Pictures without a zoom below each other as one."""
    shapes: list[Shape] = []
    y = margin
    for p in pictures:
        shapes += [_moved(s, margin, y) for s in p.shapes]
        y += p.height + gap
    width = max((p.width for p in pictures), default=0.0) + 2 * margin
    said = " ".join(p.description for p in pictures)
    return Picture(width, max(y - gap + margin, 1.0), title, said, tuple(shapes))


def _moved(shape: Shape, dx: float, dy: float) -> Shape:
    match shape:
        case Line(points):
            return replace(shape, points=tuple((x + dx, y + dy) for x, y in points))
        case Boxes(boxes):
            return replace(shape, boxes=tuple((x + dx, y + dy, w, h) for x, y, w, h in boxes))
        case Clipped((x, y, w, h), shapes):
            return Clipped((x + dx, y + dy, w, h), tuple(_moved(s, dx, dy) for s in shapes))
        case Rect(x, y) | Dot(x, y) | Text(x, y):
            return replace(shape, x=x + dx, y=y + dy)
        case TimeAxis(left, right, top, bottom, end_s):
            return TimeAxis(left + dx, right + dx, top + dy, bottom + dy, end_s)


# ---- axes


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values inside [low, high], some `about` of them: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** floor(log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = ceil(low / step - 1e-9)
    return [k * step for k in range(first, floor(high / step + 1e-9) + 1)]


def axis_shapes(axis: TimeAxis) -> Sequence[Shape]:
    """Grid lines and labels of a time axis."""
    out: list[Shape] = []
    for t in ticks(0, axis.end_s, max(3, int((axis.right - axis.left) / 100))):
        x = axis.left + t / max(axis.end_s, 1e-12) * (axis.right - axis.left)
        out.append(Line(((x, axis.top), (x, axis.bottom)), "line"))
        out.append(Text(x, axis.bottom + 15, f"{t:g} s", "middle", "soft", 11))
    return out
