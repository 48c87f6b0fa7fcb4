"""What a run or a simulation looks like: one self-contained page, pictures as SVG and PNG, Chrome traces.

Takes plain values and draws what is there; needs no network to be read, and never asks where the
values came from (a real run, an emulation, a simulation).
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

from scheduler.reasons import reason_of
from scheduler.shares import time_shares
from scheduler.timeline import Timeline, chrome_trace
from scheduler.trace import Trace
from sim.canvas import Picture
from sim.gantt import MAX_TIPS, gantt
from sim.pictures import NARROW, WIDE, Axis, Bar, Series, bars, curve
from sim.placed import Placed
from sim.placement_grid import placement_grid
from sim.svg import SVG_CSS, save, svg, theme_css
from sim.weather import weather
from sim.world_map import placement_map

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One step's timeline. `name` says whose: "predicted", "measured", "ours", "DT-FM's"."""

    name: str
    timeline: Timeline
    labels: tuple[str, ...]
    """A name for each rank's row."""


@dataclass(frozen=True, slots=True)
class Table:
    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything a report can show; what is empty is left out. Steps count from 1."""

    title: str
    subtitle: str = ""
    figures: tuple[tuple[str, str], ...] = ()
    """(name, value with its unit), as large numbers at the top."""
    placed: Placed | None = None
    """Who holds what, on a map and as a grid."""
    placed_title: str = "Pipelines between regions"
    steps: tuple[Step, ...] = ()
    """Drawn below each other on one scale."""
    compared: tuple[Bar, ...] = ()
    """Placements or settings side by side in "where the time goes"; empty: those of `steps`."""
    compared_title: str = "Seconds of a step, by what they are spent on"
    """Of bars with parts; bars of one part need no word on what the parts are."""
    throughput: tuple[tuple[str, Points], ...] = ()
    """(codec, ((bandwidth in bytes/s, tokens/s), ...)), by ascending bandwidth."""
    trace: Trace | None = None
    """Links over time; with `step_over_time`, the step time under them."""
    step_over_time: Points = ()
    """(seconds of the trace, step time in s)"""
    loss: Points = ()
    held_out: Points = ()
    """(step, nats a token)"""
    step_times: tuple[tuple[str, Points], ...] = ()
    """("measured" or "predicted", ((step, s), ...))"""
    tables: tuple[Table, ...] = ()
    reasons: tuple[str, ...] = ()
    reasons_heading: str = "Why this plan"
    sample: str = ""


@dataclass(frozen=True, slots=True)
class Plate:
    """One picture of the page under its file's name, drawn for a desk and for a phone."""

    name: str
    wide: Picture
    narrow: Picture | None = None
    """None: the wide one, scrolled sideways."""
    caption: str = ""

    @classmethod
    def of(cls, name: str, draw: Callable[[float], Picture], caption: str = "") -> Plate:
        """Drawn at both widths."""
        return cls(name, draw(WIDE), draw(NARROW), caption)


def plates(contents: Contents) -> list[tuple[str, list[Plate]]]:
    """(heading, its pictures), in the order of the page."""
    c = contents
    sections: list[tuple[str, list[Plate]]] = []
    if c.placed is not None:
        sections.append(("Where it runs", _placement(c.placed, c.placed_title)))
    if c.steps:
        end_s = max(s.timeline.duration_s for s in c.steps)
        sections.append(("A step, device by device", [_timeline(s, end_s) for s in c.steps]))
    if given := c.compared or tuple(Bar(s.name, time_shares(s.timeline).parts()) for s in c.steps):
        title = c.compared_title
        note, caption = "", ""
        if any(len(b.parts) > 1 for b in given):
            note = "The mean of all devices."
            caption = (
                "Exposed communication: waiting for what has been sent. "
                "Bubble: waiting for work that others have not done yet, and idling."
            )
        goes = "Where the time goes" if note else "Step times"
        sections.append((goes, [Plate.of("time", lambda w: bars(given, title, w, note), caption)]))
    sections += [s for s in (_throughput(c), _over_time(c), _training(c)) if s[1]]
    return sections


def _timeline(step: Step, end_s: float) -> Plate:
    """A large one is drawn once: a phone scrolls it instead of loading it twice."""

    def draw(width: float) -> Picture:
        title = f"One step, {step.name}: {step.timeline.duration_s:.3g} s"
        return gantt(step.timeline, step.labels, title, end_s, width)

    name = f"timeline-{_slug(step.name)}"
    if len(step.timeline.spans) > MAX_TIPS:
        return Plate(name, draw(WIDE))
    return Plate.of(name, draw)


def _placement(placed: Placed, title: str) -> list[Plate]:
    out = []
    if (wide := placement_map(placed, title)) is not None:
        out.append(Plate("map", wide, placement_map(placed, title, NARROW)))
    grid_title = "Who holds what: a column a stage, a row a replica"
    narrow = placement_grid(placed, grid_title, NARROW) if len(placed.stages) <= 6 else None
    return [*out, Plate("grid", placement_grid(placed, grid_title), narrow)]


def _throughput(c: Contents) -> tuple[str, list[Plate]]:
    if not c.throughput:
        return "", []
    lines = [Series(name, tuple((x * 8 / 1e6, y) for x, y in points)) for name, points in c.throughput]
    x, y = Axis("bandwidth between regions, Mbit/s", log=True), Axis("tokens a second", from_zero=True)
    title = "Throughput against bandwidth, tokens a second, for each codec"
    return "What compression gives", [Plate.of("throughput", lambda w: curve(lines, x, y, title, w, 360))]


def _over_time(c: Contents) -> tuple[str, list[Plate]]:
    if c.trace is None:
        return "", []
    trace, about = c.trace, c.trace.about
    caption = ". ".join(t for t in (about.source, about.licence and f"Licence: {about.licence}") if t)
    return "The network over time", [
        Plate.of("network", lambda w: weather(trace, c.step_over_time, w), caption)
    ]


def _training(c: Contents) -> tuple[str, list[Plate]]:
    out = []
    step = Axis("step")
    if c.loss or c.held_out:
        lines = [Series("training", c.loss), Series("held out", c.held_out, dots=True)]
        y = Axis("loss, nats a token")
        out.append(Plate.of("loss", lambda w: curve(lines, step, y, "Loss, nats a token", w, 300)))
    if any(points for _, points in c.step_times):
        times = [Series(name, points) for name, points in c.step_times]
        s = Axis("step time, s", from_zero=True)
        out.append(Plate.of("step-time", lambda w: curve(times, step, s, "Step time, seconds", w, 300)))
    return "Step by step", out


def _slug(name: str) -> str:
    return "".join(ch if ch.isalnum() else "-" for ch in name.lower()).strip("-") or "step"


# ---- the page


def _file(name: str) -> str:
    return files("sim").joinpath(name).read_text(encoding="utf-8")


SENTENCE = 60
"""Letters from which a cell is not kept on one line."""
_NUMBER = re.compile(r"[-−+]?\d[\d.,]*( ?%| \D+)?")


def _class(cells: Sequence[str]) -> str:
    """The class of a column: of numbers, with or without a unit, or of sentences, which are wrapped."""
    if all(_NUMBER.fullmatch(cell) for cell in cells):
        return ' class="number"'
    return ' class="words"' if max(map(len, cells)) > SENTENCE else ""


def _table(table: Table) -> str:
    css = [_class([row[k] for row in table.rows]) for k in range(len(table.columns))]
    head = "".join(f"<th{c}>{escape(name)}</th>" for name, c in zip(table.columns, css, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{c}>{escape(v)}</td>" for v, c in zip(row, css, strict=True)) + "</tr>"
        for row in table.rows
    )
    return (
        f'<h2>{escape(table.heading)}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _figure(plate: Plate) -> str:
    caption = f"<figcaption>{escape(plate.caption)}</figcaption>" if plate.caption else ""
    if plate.narrow is None:
        least = f' style="min-width:{min(plate.wide.width, 680):g}px"'
        drawn = svg(plate.wide).replace("<svg ", f"<svg{least} ", 1)
        return f'<figure><div class="wide">{drawn}</div>{caption}</figure>'
    desk, phone = svg(plate.wide), svg(plate.narrow)
    return f'<figure><div class="desk">{desk}</div><div class="phone">{phone}</div>{caption}</figure>'


def page(contents: Contents) -> str:
    """The whole page as text: styles, pictures and script inside."""
    c = contents
    figures = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in c.figures)
    parts = [f"<h1>{escape(c.title)}</h1>"]
    if c.subtitle:
        parts.append(f'<p class="soft">{escape(c.subtitle)}</p>')
    if figures:
        parts.append(f"<dl>{figures}</dl>")
    for heading, drawn in plates(c):
        parts.append(f"<h2>{escape(heading)}</h2>" + "".join(_figure(p) for p in drawn))
    parts += [_table(t) for t in c.tables if t.rows]
    if c.reasons:
        items = "".join(f"<li>{escape(r)}</li>" for r in c.reasons)
        parts.append(f"<h2>{escape(c.reasons_heading)}</h2><ul>{items}</ul>")
    if c.sample:
        parts.append(f"<h2>What the model writes</h2><pre>{escape(c.sample)}</pre>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(c.title)}</title><style>{theme_css()}{SVG_CSS}{_file('page.css')}</style></head>"
        f"<body><main>{''.join(parts)}</main><script>{_file('page.js')}</script></body></html>"
    )


class ReportError(ValueError):
    """The report cannot be written: names its directory and why."""


def make_directory(directory: Path) -> None:
    """Where a report will be: made before the work that it is to show. Raises ReportError."""
    with _as_report_error(directory):
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def _as_report_error(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise ReportError(
            f"--report {directory}: found that it cannot be written ({reason_of(e)}); name another directory"
        ) from e


def write_report(directory: Path, contents: Contents, pictures: bool = True) -> Path:
    """Write `index.html`, a Chrome trace of each step and, with `pictures`, each picture as SVG and PNG.

    Returns the page's path. PNG needs matplotlib; without it there are SVGs only. Raises ReportError.
    """
    make_directory(directory)
    with _as_report_error(directory):
        for step in contents.steps:
            trace = json.dumps(chrome_trace(step.timeline, step.labels), separators=(",", ":"))
            (directory / f"timeline-{_slug(step.name)}.trace.json").write_text(trace, encoding="utf-8")
        for plate in [p for _, drawn in plates(contents) for p in drawn] if pictures else []:
            save(directory / f"{plate.name}.svg", plate.wide)
            if _can_raster():
                save(directory / f"{plate.name}.png", plate.wide)
        target = directory / "index.html"
        target.write_text(page(contents), encoding="utf-8")
    return target


def _can_raster() -> bool:
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None
