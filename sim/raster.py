"""A picture as PNG or PDF. matplotlib is imported only here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle
from matplotlib.patheffects import withStroke

from sim import canvas

PX_PER_INCH = 100
SCALE = 2
"""Pixels of the file for one of the picture."""
POINTS = 72 / PX_PER_INCH
"""A pixel of the picture in typographic points."""
GLYPHS_WIDER = 0.92
"""matplotlib's font is wider than a browser's by this much."""


def draw(path: Path, picture: canvas.Picture, dark: bool = False) -> None:
    """Write the picture; the suffix of `path` is the format. Raises ValueError, OSError."""
    theme = canvas.DARK if dark else canvas.LIGHT
    size = (picture.width / PX_PER_INCH, picture.height / PX_PER_INCH)
    figure = Figure(figsize=size, dpi=PX_PER_INCH * SCALE, facecolor=theme["paper"])
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, picture.width)
    axes.set_ylim(picture.height, 0)
    axes.axis("off")
    for order, shape in enumerate(picture.shapes):
        _add(axes, shape, theme, order, None)
    figure.savefig(path, metadata={"Title": picture.title} if path.suffix in (".png", ".pdf") else None)


def _add(axes: Any, shape: canvas.Shape, theme: dict[str, str], order: int, clip: Any) -> None:
    def ink(name: str) -> str:
        return theme.get(name, name) if name else "none"

    artists: list[Any] = []
    look: Any
    match shape:
        case canvas.Rect(x, y, w, h, fill, stroke, radius):
            look = {"facecolor": ink(fill), "edgecolor": ink(stroke), "linewidth": POINTS}
            if radius:
                box = f"round,pad=0,rounding_size={min(radius, w / 2, h / 2)}"
                artists.append(FancyBboxPatch((x, y), w, h, boxstyle=box, mutation_aspect=1, **look))
            else:
                artists.append(Rectangle((x, y), w, h, **look))
        case canvas.Boxes(boxes, fill):
            corners = [((x, y), (x + w, y), (x + w, y + h), (x, y + h)) for x, y, w, h in boxes]
            artists.append(PolyCollection(corners, facecolors=ink(fill), edgecolors="none"))
        case canvas.Line(points, stroke, width, opacity, fill, dashed):
            if fill:
                look = {"facecolor": ink(fill), "edgecolor": ink(stroke), "linewidth": width * POINTS}
                artists.append(Polygon(points, closed=True, **look))
            else:
                xs, ys = zip(*points, strict=True)
                style = (0, (5, 4)) if dashed else "-"
                axes.plot(xs, ys, color=ink(stroke), lw=width * POINTS, alpha=opacity, ls=style, zorder=order)
                if clip is not None:
                    axes.lines[-1].set_clip_path(clip)
        case canvas.Dot(x, y, radius, fill, stroke):
            look = {"facecolor": ink(fill), "edgecolor": ink(stroke), "linewidth": 1.5 * POINTS}
            artists.append(Circle((x, y), radius, **look))
        case canvas.Text(x, y, text, anchor, name, size, bold, halo):
            align = {"start": "left", "middle": "center", "end": "right"}[anchor]
            weight = "bold" if bold else "normal"
            # A dollar would begin a formula.
            written = axes.text(
                x, y, text.replace("$", r"\$"), color=ink(name), fontsize=size * POINTS * GLYPHS_WIDER,
                ha=align, va="baseline", fontweight=weight, zorder=order,
            )  # fmt: skip
            if halo:
                written.set_path_effects([withStroke(linewidth=3 * POINTS, foreground=theme["paper"])])
        case canvas.Clipped((x, y, w, h), shapes):
            frame = Rectangle((x, y), w, h, transform=axes.transData)
            for inner in shapes:
                _add(axes, inner, theme, order, frame)
        case canvas.TimeAxis():
            for inner in canvas.axis_shapes(shape):
                _add(axes, inner, theme, order, clip)
    for artist in artists:
        artist.set_zorder(order)
        axes.add_collection(artist, autolim=False) if isinstance(artist, PolyCollection) else axes.add_patch(
            artist
        )
        if clip is not None:
            artist.set_clip_path(clip)
