"""A simulated run as a report: what of it is shown, and under which name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scheduler.units import count
from sim import report
from sim.codec_curve import Curve
from sim.inputs import NetworkRead
from sim.network import TraceNetwork
from sim.placed import placed_by
from sim.run_records import RunResult


def write_report(
    directory: Path,
    read: NetworkRead,
    result: RunResult,
    figures: Sequence[tuple[str, str]],
    throughput: tuple[Curve, ...] = (),
) -> Path:
    """Write the page, its pictures and traces into `directory`; returns the page's path. Raises OSError."""
    return report.write_report(directory, contents(read, result, figures, throughput))


def contents(
    read: NetworkRead,
    result: RunResult,
    figures: Sequence[tuple[str, str]],
    throughput: tuple[Curve, ...] = (),
) -> report.Contents:
    """What the page shows: the first plan and its first step, the network and the step time over it."""
    plan = result.plans[0]
    labels = tuple(plan.device(r) for r in range(plan.n_ranks))
    regions = {d.name: d.region for d in read.network.devices}
    trace = read.network.trace if isinstance(read.network, TraceNetwork) else None
    first = result.timelines[0] if result.timelines else None
    events = tuple((f"{e.at_s:,.0f}", e.text) for e in result.events)
    steps_s = tuple((s.step + 1, s.duration_s) for s in result.steps)
    return report.Contents(
        title=f"Simulated on {read.name}",
        subtitle=f"{count(plan.n_stages, 'stage')} × {count(plan.n_replicas, 'replica')}, {plan.schedule}. "
        + f"{result.reason[:1].upper()}{result.reason[1:]}.",
        figures=tuple(figures),
        placed=placed_by(plan, first, regions, read.positions) if first is not None else None,
        steps=(report.Step("predicted", first, labels),) if first is not None else (),
        throughput=throughput,
        trace=trace if trace is not None and trace.duration_s > 0 else None,
        step_over_time=tuple((s.start_s, s.duration_s) for s in result.steps),
        step_times=(("predicted", steps_s),) if len(steps_s) > 1 else (),
        tables=(report.Table("What happened", ("at, s", "what"), events),),
        reasons=plan.reasons,
    )
