"""Predicted beside measured as a report: every run's step, the worst one's timelines below each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from deploy.emulate import Outcome, concordance
from scheduler.units import duration
from sim.pictures import Bar
from sim.report import Contents, Step, Table, write_report


def write_emulated(directory: Path, found: Sequence[Outcome]) -> Path:
    """Write the page and its pictures into `directory`; the page's path. Raises ReportError."""
    return write_report(directory, contents(found))


def contents(found: Sequence[Outcome]) -> Contents:
    """Two bars a run, what its predicted and its measured step is spent on; timelines of the run whose
    prediction is farthest off."""
    with_spans = [o for o in found if o.timelines is not None]
    steps: tuple[Step, ...] = ()
    if with_spans:
        worst = max(with_spans, key=lambda o: abs(o.error))
        assert worst.timelines is not None
        names = ("predicted", "measured")
        steps = tuple(Step(n, t, worst.plan.devices) for n, t in zip(names, worst.timelines, strict=True))
    compared = tuple(
        Bar(f"{o.trace} {k + 1}, {name}", ((name, seconds),))
        for k, o in enumerate(found)
        for name, seconds in (("predicted", o.predicted_s), ("measured", o.measured_s))
    )
    ranks = [
        (name, f"{concordance([o for o in found if o.trace == name]):.0%}")
        for name in dict.fromkeys(o.trace for o in found)
    ]
    return Contents(
        title="The simulator against real runs",
        subtitle="Real processes behind links shaped like a trace, and the same plans replayed.",
        figures=(
            ("median error of the predicted step", f"{median(abs(o.error) for o in found):.1%}"),
            *((f"pairs in the measured order, {name}", share) for name, share in ranks),
        ),
        steps=steps,
        compared=compared,
        compared_title="Seconds of a step, predicted and measured",
        tables=(
            Table(
                "Run by run",
                ("trace", "predicted", "measured", "error", "placement"),
                tuple(
                    (o.trace, duration(o.predicted_s), duration(o.measured_s), f"{o.error:+.1%}", o.placement)
                    for o in found
                ),
            ),
        ),
    )
