"""A picture as SVG: light and dark by the reader's setting, no script, nothing from elsewhere."""

from __future__ import annotations

from html import escape
from pathlib import Path
from zlib import crc32

from sim.canvas import (
    DARK,
    FONT_PX,
    LIGHT,
    Boxes,
    Clipped,
    Dot,
    Line,
    Picture,
    Rect,
    Shape,
    Text,
    TimeAxis,
    axis_shapes,
    stacked,
)


def svg(picture: Picture, standalone: bool = False) -> str:
    """The picture as one <svg>. `standalone`: a file of its own, with both themes; else the page has them."""
    w, h = f"{picture.width:g}", f"{picture.height:g}"
    css = ' class="zoom"' if picture.zoom else ""
    axis = picture.zoom
    data = (
        f' data-left="{axis.left:g}" data-right="{axis.right:g}" data-end="{axis.end_s:.9g}"' if axis else ""
    )
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" role="img"{css}{data} '
        f'aria-label="{escape(picture.title)}. {escape(picture.description)}">'
    ]
    if standalone:
        out = [out[0].replace("viewBox", f'width="{w}" height="{h}" viewBox', 1)]
        out.append(f"<title>{escape(picture.title)}</title><desc>{escape(picture.description)}</desc>")
        out.append(f"<style>{theme_css()}{SVG_CSS}</style>")
        out.append('<rect width="100%" height="100%" style="fill:var(--paper)"/>')
    for k, shape in enumerate(picture.shapes):
        _write(shape, out, f"c{crc32(out[0].encode()):x}-{k}")
    out.append("</svg>")
    return "".join(out)


MARGIN = 20.0
"""Around a picture that is a file."""


def save(path: Path, picture: Picture) -> None:
    """Write the picture, with a margin, in the format that the path ends with: svg, png, pdf.

    Raises ValueError, OSError.
    """
    picture = stacked([picture], picture.title, MARGIN)
    if path.suffix == ".svg":
        path.write_text(svg(picture, standalone=True), encoding="utf-8")
        return
    try:
        from sim.raster import draw
    except ImportError as e:
        raise ValueError(
            f"found {path.suffix} and no matplotlib: pip install 'isthmus[plot]', or .svg"
        ) from e
    draw(path, picture)


def theme_css() -> str:
    """Both themes as CSS variables, chosen by the reader's setting."""
    light, dark = (";".join(f"--{k}:{v}" for k, v in theme.items()) for theme in (LIGHT, DARK))
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"


SVG_CSS = (
    f"svg{{font:{FONT_PX:g}px system-ui,-apple-system,'Segoe UI',sans-serif}}"
    "svg .halo{paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}"
)


def colour(name: str) -> str:
    """A theme's role as a CSS variable; a hue as it is."""
    return f"var(--{name})" if name in LIGHT else name


def _number(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _tip(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _write(shape: Shape, out: list[str], name: str) -> None:
    n = _number
    match shape:
        case Rect(x, y, w, h, fill, stroke, radius, tip):
            edge = f";stroke:{colour(stroke)}" if stroke else ""
            rx = f' rx="{n(radius)}"' if radius else ""
            out.append(
                f'<rect x="{x:.2f}" y="{n(y)}" width="{w:.2f}" height="{n(h)}"{rx} '
                f'style="fill:{colour(fill)}{edge}">{_tip(tip)}</rect>'
            )
        case Boxes(boxes, fill):
            path = "".join(f"M{x:.2f} {n(y)}h{w:.2f}v{n(h)}h-{w:.2f}z" for x, y, w, h in boxes)
            out.append(f'<path d="{path}" style="fill:{colour(fill)}"/>')
        case Line(points, stroke, width, opacity, fill, dashed, tip):
            path = "M" + "L".join(f"{n(x)} {n(y)}" for x, y in points) + ("z" if fill else "")
            style = f"fill:{colour(fill) if fill else 'none'}"
            if stroke:
                style += f";stroke:{colour(stroke)};stroke-width:{width:g};stroke-linejoin:round"
            style += f";stroke-opacity:{opacity:g}" if opacity < 1 else ""
            style += ";stroke-dasharray:5 4" if dashed else ""
            out.append(f'<path d="{path}" style="{style}">{_tip(tip)}</path>')
        case Dot(x, y, radius, fill, stroke, tip):
            out.append(
                f'<circle cx="{n(x)}" cy="{n(y)}" r="{n(radius)}" '
                f'style="fill:{colour(fill)};stroke:{colour(stroke)};stroke-width:1.5">{_tip(tip)}</circle>'
            )
        case Text(x, y, text, anchor, ink, size, bold, halo):
            style = f"fill:{colour(ink)}" + (f";font-size:{size:g}px" if size != FONT_PX else "")
            style += ";font-weight:600" if bold else ""
            css = ' class="halo"' if halo else ""
            out.append(
                f'<text x="{n(x)}" y="{n(y)}" text-anchor="{anchor}"{css} style="{style}">'
                f"{escape(text)}</text>"
            )
        case Clipped((x, y, w, h), shapes):
            out.append(
                f'<clipPath id="{name}">'
                f'<rect x="{n(x)}" y="{n(y)}" width="{n(w)}" height="{n(h)}"/></clipPath>'
                f'<g clip-path="url(#{name})"><g class="scroll">'
            )
            for k, inner in enumerate(shapes):
                _write(inner, out, f"{name}-{k}")
            out.append("</g></g>")
        case TimeAxis():
            out.append('<g class="ticks">')
            for k, inner in enumerate(axis_shapes(shape)):
                _write(inner, out, f"{name}-{k}")
            out.append("</g>")
