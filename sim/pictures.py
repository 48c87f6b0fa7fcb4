"""Pictures as SVG text: a curve over steps, a timeline of one step. No plotting library, no scripts.

Colours are CSS variables, so one picture serves light and dark pages; each hue is from the
Okabe-Ito palette, which people with colour-blindness tell apart. Knows nothing of runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from scheduler.timeline import Timeline

COLOURS = {
    "forward": "#56b4e9",
    "backward": "#0072b2",
    "wait": "var(--wait)",
    "reduce": "#e69f00",
    "optimizer": "#cc79a7",
    "encode": "#009e73",
    "decode": "#009e73",
    "send": "#d55e00",
}
"""One colour a kind of span; waiting is the page's own faint tone, so that work stands out."""


@dataclass(frozen=True, slots=True)
class Series:
    """Points (x, y) under one label, drawn as a line, or as dots when `dots`."""

    label: str
    points: tuple[tuple[float, float], ...]
    colour: str = "var(--accent)"
    dots: bool = False


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values inside [low, high], some `about` of them: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** floor(log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = ceil(low / step - 1e-9)
    return [k * step for k in range(first, floor(high / step + 1e-9) + 1)]


def _text(x: float, y: float, s: str, anchor: str = "start", css: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(s)}</text>'


def curve(series: Sequence[Series], x_label: str, y_label: str, width: int = 900, height: int = 320) -> str:
    """A line chart as one <svg>. `y_label` and `x_label` carry the units. Empty series are left out."""
    shown = [s for s in series if s.points]
    if not shown:
        empty = _text(10, 24, "nothing was recorded", css="soft")
        return f'<svg viewBox="0 0 {width} 40" role="img">{empty}</svg>'
    xs = [x for s in shown for x, _ in s.points]
    ys = [y for s in shown for _, y in s.points]
    x0, x1 = min(xs), max(max(xs), min(xs) + 1e-9)
    pad = 0.05 * (max(ys) - min(ys)) or max(abs(max(ys)) * 0.05, 1e-9)
    y0, y1 = min(ys) - pad, max(ys) + pad
    left, right, top, bottom = 56, width - 120, 28, height - 40

    def px(x: float) -> float:
        return left + (x - x0) / (x1 - x0) * (right - left)

    def py(y: float) -> float:
        return bottom - (y - y0) / (y1 - y0) * (bottom - top)

    label = escape(f"{y_label} over {x_label}")
    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">']
    for t in ticks(y0, y1):
        out.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{py(t):.1f}" y2="{py(t):.1f}"/>')
        out.append(_text(left - 8, py(t) + 4, f"{t:g}", "end", "soft"))
    out += [_text(px(t), bottom + 18, f"{t:g}", "middle", "soft") for t in ticks(x0, x1, 8)]
    out.append(_text(left - 48, 14, y_label, css="soft"))
    out.append(_text((left + right) / 2, height - 6, x_label, "middle", "soft"))
    ends: list[float] = []
    for s in shown:
        if s.dots:
            out += [
                f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="4" fill="{s.colour}"/>' for x, y in s.points
            ]
        else:
            path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in s.points)
            out.append(f'<polyline points="{path}" fill="none" stroke="{s.colour}" stroke-width="2"/>')
        x, y = s.points[-1]
        at = py(y) + 4
        while any(abs(at - e) < 15 for e in ends):  # labels of lines that end together stand below each other
            at += 15
        ends.append(at)
        out.append(f'<text x="{px(x) + 8:.1f}" y="{at:.1f}" style="fill:{s.colour}">{escape(s.label)}</text>')
    out.append("</svg>")
    return "".join(out)


def gantt(timeline: Timeline, labels: Sequence[str], title: str, end_s: float, width: int = 900) -> str:
    """One step as one <svg>: a row a rank with its compute and waits, and its sends as a thin line below.

    `labels[rank]` names the row; `end_s` is the right edge, so that two timelines can share a scale.
    """
    left, right, row, top = 170, width - 16, 34, 30
    height = top + row * timeline.n_ranks + 34
    scale = (right - left) / max(end_s, 1e-9)
    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    out.append(f'<text x="0" y="15" style="font-weight:600">{escape(title)}</text>')
    for t in ticks(0, end_s, 8):
        x = left + t * scale
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{height - 28}"/>')
        out.append(_text(x, height - 12, f"{t:g} s", "middle", "soft"))
    out += [_text(left - 10, top + row * r + 16, labels[r], "end") for r in range(timeline.n_ranks)]
    for s in timeline.spans:
        y = top + row * s.rank
        x, w = left + s.start_s * scale, max((s.end_s - s.start_s) * scale, 0.4)
        thin = s.kind == "send"
        mb = f" of micro-batch {s.mb}" if s.mb >= 0 else ""
        tip = f"{s.kind}{mb}: {s.start_s:.3f} to {s.end_s:.3f} s" + (
            f", {s.n_bytes:,} bytes" if s.n_bytes else ""
        )
        out.append(
            f'<rect x="{x:.1f}" y="{y + (25 if thin else 4)}" width="{w:.2f}" height="{3 if thin else 20}" '
            f'fill="{COLOURS[s.kind]}"><title>{escape(tip)}</title></rect>'
        )
    out.append("</svg>")
    return "".join(out)


def legend(kinds: Sequence[str]) -> str:
    """The colours of `kinds` as a row of <span>s."""
    return "".join(
        f'<span class="key"><i style="background:{COLOURS[k]}"></i>{escape(k)}</span>' for k in kinds
    )
