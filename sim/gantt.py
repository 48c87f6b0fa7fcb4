"""The timeline of one step as a picture: a row a device, its doings in colours, what runs beside them as thin
lines below: sends, then codecs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from scheduler.timeline import BESIDE, Span, Timeline
from scheduler.units import count, duration
from sim.canvas import Boxes, Clipped, Picture, Rect, Shape, Text, TimeAxis, text_px
from sim.pictures import WIDE, heading, legend

COLOURS = {
    "forward": "hue5",
    "backward": "hue0",
    "encode": "hue2",
    "decode": "hue2",
    "wait": "wait",
    "send": "hue1",
    "reduce": "hue4",
    "optimizer": "hue3",
}
"""One colour a kind of span; waiting is the page's own faint tone, so that work stands out."""
MAX_SPANS = 40_000
"""Spans up to which all are drawn, for whoever zooms in: about a megabyte."""
MAX_TIPS = 2500
"""Spans up to which each is a shape of its own that says what it is under a pointer."""


def gantt(
    timeline: Timeline, labels: Sequence[str], title: str, end_s: float, width: float = WIDE
) -> Picture:
    """One step: a row a rank with its compute and waits; below, thin, its sends, and its codecs' work.

    `labels[rank]` names the row; `end_s` is the right edge, so that two timelines can share a scale.
    """
    n = timeline.n_ranks
    out, top = heading(title, width=width)
    used = [k for k in COLOURS if any(s.kind == k for s in timeline.spans)]
    words = ["encode and decode" if k in ("encode", "decode") else k for k in used]
    keys, top = legend(list(dict(zip(words, (COLOURS[k] for k in used), strict=True)).items()), top, width)
    out += keys
    row = 34.0 if n <= 16 else 22.0 if n <= 48 else max(4.0, 1400.0 / n)
    named = row >= 10
    left = min(max((text_px(name) for name in labels), default=0.0) + 14, 0.3 * width) if named else 8.0
    bottom = top + row * n
    axis = TimeAxis(left, width - 14, top, bottom + 4, end_s)
    out.append(axis)
    letters = int((left - 10) / text_px("x"))
    if named:
        for r in range(n):
            name = labels[r] if len(labels[r]) <= letters else labels[r][: letters - 1] + "…"
            out.append(Text(left - 8, top + row * r + row * 0.55, name, "end", size=min(12.0, row * 0.6)))
    out.append(Clipped((left, top, width - 14 - left, row * n), tuple(_spans(timeline, axis, row))))
    shares = {
        k: sum(s.duration_s for s in timeline.spans if s.kind == k) / max(n * timeline.duration_s, 1e-12)
        for k in used
    }
    said = ", ".join(f"{k} {v:.0%}" for k, v in shares.items() if k not in BESIDE)
    description = f"{count(n, 'device')} over {duration(timeline.duration_s)}; of their time: {said}."
    return Picture(width, bottom + 24, title, description, tuple(out), zoom=axis)


def _spans(timeline: Timeline, axis: TimeAxis, row: float) -> list[Shape]:
    scale = (axis.right - axis.left) / max(axis.end_s, 1e-12)
    heavy = len(timeline.spans) > MAX_SPANS
    least = timeline.duration_s / 4000 if heavy else 0.0  # narrower than can be seen
    seen = [s for s in timeline.spans if s.duration_s > least]

    def box(s: Span) -> tuple[float, float, float, float]:
        down, high = {"send": (0.74, 0.1), "encode": (0.86, 0.08), "decode": (0.86, 0.08)}.get(
            s.kind, (0.1, 0.6)
        )
        y, high = axis.top + row * (s.rank + down), max(row * high, 1.0)
        return axis.left + s.start_s * scale, y, max(s.duration_s * scale, 0.4), high

    if len(seen) <= MAX_TIPS:
        return [Rect(*box(s), COLOURS[s.kind], tip=_tip(s)) for s in seen]
    by_kind: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    for s in seen:
        by_kind[COLOURS[s.kind]].append(box(s))
    return [Boxes(tuple(boxes), fill) for fill, boxes in by_kind.items()]


def _tip(s: Span) -> str:
    mb = f" of micro-batch {s.mb}" if s.mb >= 0 else ""
    size = f", {s.n_bytes:,} bytes" if s.n_bytes else ""
    return f"{s.kind}{mb}: {s.start_s:.3f} to {s.end_s:.3f} s{size}"
