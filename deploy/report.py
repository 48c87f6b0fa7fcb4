"""A run's history as the page that people look at; how the page looks is `sim.report`'s matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from coordinator.history import History
from coordinator.progress import human_bytes
from coordinator.timelines import RecordedStep
from deploy.local import LocalOptions
from scheduler.timeline import Timeline
from sim.report import RunReport, page


def write_report(history: History, directory: Path, options: LocalOptions, sample: str) -> Path:
    """Write `index.html` into `directory`; returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / "index.html"
    target.write_text(page(build_report(history, options, sample)), encoding="utf-8")
    return target


def build_report(history: History, options: LocalOptions, sample: str) -> RunReport:
    """What the page shows of `history`. Steps count from 1 on the page, from 0 in the history."""
    recorded = _typical(history)
    return RunReport(
        title=f"Isthmus: {history.job.name}",
        subtitle=_subtitle(history, options),
        figures=_figures(history),
        loss=tuple((s.step + 1, s.loss) for s in history.steps),
        held_out=tuple((e.step, e.loss) for e in history.evals),
        measured_s=tuple((s.step + 1, s.duration_s) for s in history.steps),
        predicted_s=tuple((s.step + 1, s.predicted_s) for s in history.steps if s.predicted_s > 0),
        timeline_step=recorded.step + 1 if recorded else 0,
        predicted=_rounded(history.predicted),
        measured=_rounded(recorded.timeline) if recorded else None,
        labels=history.devices,
        tables=(_placement(history),),
        reasons=history.plan.reasons if history.plan else (),
        sample=sample,
    )


def _typical(history: History) -> RecordedStep | None:
    """Of the recorded steps the one of median duration, so that the picture shows no hiccup."""
    ordered = sorted(history.measured, key=lambda r: r.timeline.duration_s)
    return ordered[len(ordered) // 2] if ordered else None


def _rounded(timeline: Timeline | None) -> Timeline | None:
    """Without spans too short to be seen, which would only make the page heavy."""
    if timeline is None:
        return None
    seen = timeline.duration_s / 4000
    return replace(timeline, spans=tuple(s for s in timeline.spans if s.end_s - s.start_s >= seen))


def _subtitle(history: History, options: LocalOptions) -> str:
    plan = history.plan
    shape = f"{plan.n_stages} stages × {plan.n_replicas} replicas, {plan.schedule}" if plan else "no plan"
    links = f"links shaped like {options.links.trace}" if options.links.trace else "unshaped loopback links"
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


def _placement(history: History) -> tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]]:
    plan = history.plan
    regions = {w.name: w.region for w in history.workers}
    rows = []
    for rank in range(plan.n_ranks) if plan else ():
        assert plan is not None
        name = plan.device(rank)
        first, stop = plan.partition[plan.stage_of(rank)]
        stage, replica = str(plan.stage_of(rank)), str(plan.replica_of(rank))
        rows.append((name, regions.get(name, ""), stage, replica, f"{first} to {stop - 1}"))
    return "Who holds what", ("worker", "region", "stage", "replica", "layers"), tuple(rows)
