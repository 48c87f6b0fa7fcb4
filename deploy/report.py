"""A run's history as the page that people look at; how the page looks is `sim.report`'s matter."""

from __future__ import annotations

from pathlib import Path

from coordinator.history import History
from coordinator.progress import human_bytes
from coordinator.timelines import RecordedStep
from deploy.links_table import links_table
from deploy.local import LocalOptions
from scheduler.timeline import Timeline
from scheduler.units import count
from sim import report
from sim.placed import Placed, placed_by
from sim.trace import load


def write_report(history: History, directory: Path, options: LocalOptions, sample: str) -> Path:
    """Write the page, its pictures and traces into `directory`; its path. Raises ReportError."""
    return report.write_report(directory, contents(history, options, sample))


def contents(history: History, options: LocalOptions, sample: str) -> report.Contents:
    """What the page shows of `history`. Steps count from 1 on the page, from 0 in the history."""
    recorded = _typical(history)
    steps = []
    if history.predicted is not None:
        steps.append(report.Step("predicted", history.predicted, history.devices))
    if recorded is not None:
        steps.append(report.Step("measured", recorded.timeline, history.devices))
    return report.Contents(
        title=f"Isthmus: {history.job.name}",
        subtitle=_subtitle(history, options),
        figures=_figures(history),
        placed=_placed(history, options, steps[-1].timeline) if steps else None,
        steps=tuple(steps),
        loss=tuple((s.step + 1, s.loss) for s in history.steps),
        held_out=tuple((e.step, e.loss) for e in history.evals),
        step_times=(
            ("measured", tuple((s.step + 1, s.duration_s) for s in history.steps)),
            ("predicted", tuple((s.step + 1, s.predicted_s) for s in history.steps if s.predicted_s > 0)),
        ),
        tables=(_placement(history), *_links(history, recorded)),
        reasons=history.plan.reasons if history.plan else (),
        sample=sample,
    )


def _placed(history: History, options: LocalOptions, timeline: Timeline) -> Placed | None:
    """Who holds what; on a map if the links are shaped like a trace that knows where its nodes are."""
    if history.plan is None:
        return None
    regions = {w.name: w.region for w in history.workers}
    positions = load(options.links.trace).positions if options.links.trace else {}
    return placed_by(history.plan, timeline, regions, positions)


def _links(history: History, recorded: RecordedStep | None) -> tuple[report.Table, ...]:
    return (links_table(recorded, history.devices),) if recorded is not None else ()


def _typical(history: History) -> RecordedStep | None:
    """Of the recorded steps the one of median duration, so that the picture shows no hiccup."""
    ordered = sorted(history.measured, key=lambda r: r.timeline.duration_s)
    return ordered[len(ordered) // 2] if ordered else None


def _subtitle(history: History, options: LocalOptions) -> str:
    plan = history.plan
    shape = "no plan"
    if plan:
        shape = f"{count(plan.n_stages, 'stage')} × {count(plan.n_replicas, 'replica')}, {plan.schedule}"
    links = (
        f"links shaped like {options.links.trace} by the {options.links.backend}"
        if options.links.trace
        else "unshaped loopback links"
    )
    end = history.reason or history.phase
    return f"{shape}; {options.workers} workers on one machine, {links}. {end}"


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else 0.0


def _figures(history: History) -> tuple[tuple[str, str], ...]:
    if not history.steps:
        return (("steps", "0"),)
    measured = _median([s.duration_s for s in history.steps])
    predicted = _median([s.predicted_s for s in history.steps])
    figures = [
        ("steps", f"{len(history.steps):,}"),
        ("loss, last step", f"{history.steps[-1].loss:.3f}"),
        ("tokens a second", f"{_median([s.tokens_per_s for s in history.steps]):,.0f}"),
        ("step, measured", f"{measured:.3g} s"),
        ("step, predicted", f"{predicted:.3g} s"),
        ("sent, all steps", human_bytes(history.sent_bytes)),
    ]
    if history.evals:
        figures.insert(2, ("held-out loss", f"{history.evals[-1].loss:.3f}"))
    return tuple(figures)


def _placement(history: History) -> report.Table:
    plan = history.plan
    regions = {w.name: w.region for w in history.workers}
    rows = []
    for rank in range(plan.n_ranks) if plan else ():
        assert plan is not None
        name = plan.device(rank)
        first, stop = plan.partition[plan.stage_of(rank)]
        stage, replica = str(plan.stage_of(rank)), str(plan.replica_of(rank))
        rows.append((name, regions.get(name, ""), stage, replica, f"{first} to {stop - 1}"))
    return report.Table("Who holds what", ("worker", "region", "stage", "replica", "layers"), tuple(rows))
