"""Predicted against measured: a job on real processes behind shaped links, and its plan in the simulator.

The plans are decided beforehand; each is run by `LocalCluster`, then replayed with what its workers
measured of their compute and with the links as the trace has them. Lives here, not in `sim`, because it
starts processes, which is this package's business alone. Trains nothing worth keeping.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from statistics import median

import numpy as np

from coordinator.history import History, read_history
from coordinator.measurements import read_measurements
from deploy.local import Backend, LinkOptions, LocalCluster, LocalOptions, forget
from deploy.processes import ProcessFailed
from scheduler.cost import durations
from scheduler.durations import Durations
from scheduler.engine import replay
from scheduler.exit_codes import ExitCode
from scheduler.gpus import ACHIEVABLE
from scheduler.job import JobSpec
from scheduler.plan import Plan, PlanError
from scheduler.plan_text import plan_document
from scheduler.planner import plan_for
from scheduler.timeline import SpanKind, Timeline, difference
from scheduler.topology import Device
from scheduler.trace import Trace
from sim.inputs import read_gpus, read_work
from sim.network import Conventions, TraceNetwork
from sim.replay import Work, replay_at
from sim.trace import load

WARM_STEPS = 2
"""Not judged: the first steps fill caches and open connections."""


@dataclass(frozen=True, slots=True)
class Emulation:
    """What is run: every trace x as many placements, each for some steps."""

    job: Path
    traces: tuple[str, ...]
    placements: int = 5
    workers: int = 4
    backend: Backend = "relay"
    window_bytes: int = 0
    delay_scale: float = 1.0
    bandwidth_scale: float = 1.0
    """Multiply what the traces say, for the real links and for the simulated ones."""
    state_dir: Path = Path("runs/emulate")

    def trace(self, name: str) -> Trace:
        """The trace as the links are shaped to it."""
        trace = load(name)
        links = {
            pair: replace(
                link,
                rtt_s=link.rtt_s * self.delay_scale,
                bandwidth_Bps=link.bandwidth_Bps * self.bandwidth_scale,
            )
            for pair, link in trace.links.items()
        }
        return replace(trace, links=links)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One plan on one trace. Steps in s, medians over the judged steps."""

    trace: str
    plan: Plan
    predicted_s: float
    measured_s: float
    kinds: dict[SpanKind, tuple[float, float]]
    """Seconds (predicted, measured) of every kind of span in a recorded step, all ranks together."""
    own: tuple[float, float] | None = None
    """That step as predicted with the computations as long as they were in it, and as measured: what order,
    links and exchanges have of the error, whatever else kept the machine's cores busy."""

    timelines: tuple[Timeline, Timeline] | None = None
    """(predicted, measured) of the recorded step."""

    @property
    def error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted_s / self.measured_s - 1

    @property
    def placement(self) -> str:
        """`w3-tokyo w0-oregon | …`: stages in order, a pipeline a part."""
        return " | ".join(" ".join(row) for row in self.plan.placement)


def placements_of(names: Sequence[str], n: int, seed: int = 0) -> list[tuple[tuple[str, ...], ...]]:
    """`n` unequal ways to place pipelines on `names`: chains in several orders, and two short pipelines
    where the number is even."""
    rng = np.random.default_rng(seed)
    chains = [p for p in permutations(names) if p[0] < p[-1]]  # a chain backwards is the same chain
    drawn: list[tuple[tuple[str, ...], ...]] = [(chains[k],) for k in rng.permutation(len(chains))[:n]]
    half = len(names) // 2
    if len(names) % 2 == 0 and n > 2:
        drawn[-1:] = [(tuple(names[:half]), tuple(names[half:]))]
    return drawn


def outcomes(emulation: Emulation, spec: JobSpec) -> Iterator[Outcome]:
    """Run everything, one after the other. Raises ProcessFailed when a run fails."""
    for name in emulation.traces:
        for k, plan in enumerate(plans_for(emulation, spec, name)):
            yield _outcome(emulation, name, plan, emulation.state_dir / f"{Path(name).stem}-{k}")


def plans_for(emulation: Emulation, spec: JobSpec, trace_name: str) -> list[Plan]:
    """Plans for the workers that `LocalCluster` will start, cut by the model's flops."""
    trace = emulation.trace(trace_name)
    nodes = list(trace.nodes)
    places = [nodes[k % len(nodes)] for k in range(emulation.workers)]
    devices = tuple(Device(f"w{k}-{place.lower()}", region=place) for k, place in enumerate(places))
    work = read_work(spec, devices, read_gpus(["cpu"], "fp32", ACHIEVABLE))
    topology = TraceNetwork(trace, devices).topology(0.0)
    plans = []
    for placement in placements_of([d.name for d in devices], emulation.placements):
        stages = {"stages": len(placement[0]), "replicas": len(placement)}
        shaped = JobSpec.model_validate_json(
            json.dumps(json.loads(spec.model_dump_json(exclude_unset=True)) | {"parallelism": stages})
        )
        plans.append(plan_for(placement, shaped, work.model, work.profiles, topology, 1))
    if not plans:
        raise PlanError(f"found {emulation.placements} placements, required at least 1")
    return plans


def _outcome(emulation: Emulation, trace: str, plan: Plan, state_dir: Path) -> Outcome:
    forget(state_dir)
    state_dir.mkdir(parents=True)
    (state_dir / "logs").mkdir()
    plan_file = state_dir / "plan.json"
    plan_file.write_text(json.dumps(plan_document(plan)))
    options = LocalOptions(
        workers=emulation.workers,
        links=LinkOptions(
            trace,
            emulation.backend,
            delay_scale=emulation.delay_scale,
            bandwidth_scale=emulation.bandwidth_scale,
            window_bytes=emulation.window_bytes,
        ),
        state_dir=state_dir,
        plan=plan_file,
    )
    with LocalCluster(emulation.job, options) as cluster:
        began_s = time.time()
        for _ in cluster.events():
            pass
        code = cluster.wait()
    if code != ExitCode.OK:
        raise ProcessFailed(f"the run of {plan_file} ended with exit code {code}; logs: {state_dir / 'logs'}")
    return judged(emulation, trace, read_history(state_dir), state_dir, began_s)


def judged(emulation: Emulation, trace: str, history: History, state_dir: Path, began_s: float) -> Outcome:
    """The run beside its prediction; `began_s`: when the links began to be shaped, in s since 1970."""
    found = read_measurements(state_dir)
    conventions = Conventions(window_bytes=float(emulation.window_bytes))
    network = TraceNetwork(emulation.trace(trace), found.devices, conventions)
    work = Work(found.model, found.profiles)
    plan = history.plan
    assert plan is not None, "a run that ended well had a plan"
    steps = history.steps[WARM_STEPS:] or history.steps
    predicted: dict[int, Timeline] = {}
    for s in steps:
        start_s = max(0.0, s.at_s - s.duration_s - began_s)
        predicted[s.step] = replay_at(plan, work, network, start_s)
    last = next((r for r in reversed(history.measured) if r.step in predicted), None)
    own = None
    if last is not None:
        costs = durations(plan, found.model, found.profiles, network.topology(0.0))
        at_s = next(s.at_s for s in steps if s.step == last.step)
        links = network.network(max(0.0, at_s - last.timeline.duration_s - began_s), plan.streams)
        own = replay(plan, as_long_as(last.timeline, costs), links).duration_s, last.timeline.duration_s
    return Outcome(
        Path(trace).stem,
        replace(plan, reasons=()),
        median(t.duration_s for t in predicted.values()),
        median(s.duration_s for s in steps),
        difference(predicted[last.step], last.timeline).by_kind() if last is not None else {},
        own,
        (predicted[last.step], last.timeline) if last is not None else None,
    )


def as_long_as(measured: Timeline, costs: Durations) -> Durations:
    """`costs` with each rank's computations as long as they were on average in a measured step, by
    themselves: what they did to one another on shared cores is in them already."""

    def mean_s(kind: SpanKind, rank: int) -> float:
        found = [s.duration_s for s in measured.spans if s.kind == kind and s.rank == rank]
        return sum(found) / len(found) if found else 0.0

    ranks = range(measured.n_ranks)
    return replace(
        costs,
        forward_s=tuple(mean_s("forward", r) for r in ranks),
        backward_s=tuple(mean_s("backward", r) for r in ranks),
        shared_cores=(),
    )


def concordance(found: Sequence[Outcome]) -> float:
    """Share of the pairs of placements that prediction and measurement put in the same order; 1: all."""
    pairs = [(a, b) for i, a in enumerate(found) for b in found[i + 1 :]]
    agree = [(a.predicted_s < b.predicted_s) == (a.measured_s < b.measured_s) for a, b in pairs]
    return sum(agree) / len(agree) if agree else 1.0


def table(found: Sequence[Outcome]) -> str:
    """A line a run; below it, for each trace, how the placements rank, and the median error of all."""
    lines = [f"{'trace':<18} {'predicted s':>11} {'measured s':>10} {'error':>7}  placement"]
    lines += [
        f"{o.trace:<18} {o.predicted_s:>11.3f} {o.measured_s:>10.3f} {o.error:>+7.1%}  {o.placement}"
        for o in found
    ]
    for name in dict.fromkeys(o.trace for o in found):
        of_trace = [o for o in found if o.trace == name]
        lines.append(f"{name}: {concordance(of_trace):.0%} of the pairs of placements in the measured order")
    lines.append(f"median error: {median(abs(o.error) for o in found):.1%}")
    own = [abs(o.own[0] / o.own[1] - 1) for o in found if o.own is not None]
    if own:
        lines.append(f"with computations as long as they were: {median(own):.1%}")
    return "\n".join(lines)
