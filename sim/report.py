"""One self-contained HTML page of a run: figures, loss, step time, one step's timeline.

Takes plain values and returns text; needs no network to be read, and never asks where the
values came from (a real run, an emulation, a simulation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files

from scheduler.timeline import Timeline
from sim.pictures import Series, curve, gantt, legend


@dataclass(frozen=True, slots=True)
class RunReport:
    """Everything the page shows. Steps count from 1; seconds and nats where a unit is due."""

    title: str
    subtitle: str
    figures: tuple[tuple[str, str], ...]
    """(name, value with its unit), as large numbers at the top."""
    loss: tuple[tuple[float, float], ...] = ()
    held_out: tuple[tuple[float, float], ...] = ()
    measured_s: tuple[tuple[float, float], ...] = ()
    predicted_s: tuple[tuple[float, float], ...] = ()
    timeline_step: int = 0
    predicted: Timeline | None = None
    measured: Timeline | None = None
    labels: tuple[str, ...] = ()
    """A name for each rank's row."""
    tables: tuple[tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]], ...] = field(default=())
    """(heading, columns, rows)."""
    reasons: tuple[str, ...] = ()
    sample: str = ""


def _style() -> str:
    return files("sim").joinpath("page.css").read_text(encoding="utf-8")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(v)}</td>" for v in r) + "</tr>" for r in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def timelines(report: RunReport) -> str:
    """Predicted above measured, on one scale, with a legend; '' when nothing was recorded."""
    pairs = [
        (n, t) for n, t in (("predicted", report.predicted), ("measured", report.measured)) if t is not None
    ]
    if not pairs:
        return ""
    end_s = max(t.duration_s for _, t in pairs)
    kinds = [k for k in ("forward", "backward", "wait", "send", "reduce", "optimizer")
             if any(s.kind == k for _, t in pairs for s in t.spans)]  # fmt: skip
    charts = "".join(gantt(t, report.labels, f"{n}, {t.duration_s:.3f} s", end_s) for n, t in pairs)
    return f'<p>{legend(kinds)}</p><div class="wide">{charts}</div>'


def page(report: RunReport) -> str:
    """The whole page as text."""
    figures = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in report.figures)
    loss = curve(
        (Series("training", report.loss), Series("held out", report.held_out, "var(--second)", dots=True)),
        "step", "loss, nats a token",
    )  # fmt: skip
    step_s = curve(
        (Series("measured", report.measured_s), Series("predicted", report.predicted_s, "var(--second)")),
        "step", "step time, s",
    )  # fmt: skip
    parts = [
        f"<h1>{escape(report.title)}</h1><p class='soft'>{escape(report.subtitle)}</p><dl>{figures}</dl>",
        f"<h2>Loss</h2>{loss}",
        f"<h2>Step time</h2>{step_s}",
    ]
    if charts := timelines(report):
        parts.append(f"<h2>One step ({report.timeline_step}), predicted above measured</h2>{charts}")
    for heading, columns, rows in report.tables:
        parts.append(f"<h2>{escape(heading)}</h2>{_table(columns, rows)}")
    if report.reasons:
        items = "".join(f"<li>{escape(r)}</li>" for r in report.reasons)
        parts.append(f"<h2>Why this plan</h2><ul>{items}</ul>")
    if report.sample:
        parts.append(f"<h2>What the model writes</h2><pre>{escape(report.sample)}</pre>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{_style()}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>"
    )
