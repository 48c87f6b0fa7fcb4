"""A simulated run as files that people open: a page, and its first step for chrome://tracing or Perfetto."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from scheduler.timeline import chrome_trace
from sim.report import RunReport, page
from sim.run import RunResult

MAX_DRAWN_SPANS = 20_000
"""A page with more is too heavy to open; the trace file has them all."""


def write_report(
    directory: Path, network: str, result: RunResult, figures: Sequence[tuple[str, str]]
) -> Path:
    """Write `index.html` and `first-step.trace.json` into `directory`; returns the page's path."""
    directory.mkdir(parents=True, exist_ok=True)
    plan = result.plans[0]
    labels = tuple(plan.device(r) for r in range(plan.n_ranks))
    timeline = result.timelines[0] if result.timelines else None
    if timeline is not None:
        trace = json.dumps(chrome_trace(timeline, labels))
        (directory / "first-step.trace.json").write_text(trace, encoding="utf-8")
    drawn = timeline if timeline is not None and len(timeline.spans) <= MAX_DRAWN_SPANS else None
    events = tuple((f"{e.at_s:,.0f}", e.text) for e in result.events)
    report = RunReport(
        title=f"Simulated on {network}",
        subtitle=f"{plan.n_stages} stages × {plan.n_replicas} replicas, {plan.schedule}. {result.reason}",
        figures=tuple(figures),
        predicted_s=tuple((s.step + 1, s.duration_s) for s in result.steps),
        timeline_step=1,
        predicted=drawn,
        labels=labels,
        tables=(("What happened", ("at, s", "what"), events),) if events else (),
        reasons=plan.reasons,
    )
    target = directory / "index.html"
    target.write_text(page(report), encoding="utf-8")
    return target
