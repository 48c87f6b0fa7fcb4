"""What is added to DT-FM: each addition alone, all together, by one engine over one day.

    python -m tests.benchmarks.beyond [--quick] [--out FILE] [--picture FILE]

GPT3-XL with 24 layers on V100s in four cities (eight each), links as the shipped synthetic day has them hour
by hour: round trips, and what one TCP flow carries; a link carries LINK_GBPS at most, however many flows
(64 flows were seen to reach 2.5 to 4.7 Gbit/s between such regions). Network cards are not modelled. Each
row is a whole run of as many steps, begun at midnight:

    DT-FM             its objective and search, squarest shape, GPipe, one flow a link, nothing compressed
    nothing added     our search by predicted step time; else the same
    codecs after      that row's placement, then codecs where they help
    codecs            joint placement x codec: every link judged by what its codec makes of it
    striping          as many flows a link as pay
    schedule          1F1B with a warm-up as deep as the links' latency wants
    re-planning       every REPLAN_STEPS steps the links are looked at, and a plan that pays is moved to
    all together

Codecs are `auto` within their error budgets; what they do to training is not judged here. A zero-bubble
schedule is not among the schedules yet. Ends with one JSON line; exits with 1 when an addition alone makes
the run slower than nothing added by more than 1 %, or all together slower than the best alone. --quick: two
devices a city, a quarter of the batch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scheduler.job import JobSpec
from scheduler.plan import Plan
from scheduler.planner import plan_for
from scheduler.shares import time_shares
from scheduler.topology import Device, Topology
from scheduler.units import MBIT_BPS, duration
from sim import inputs as i
from sim.network import Conventions, TraceNetwork
from sim.pictures import Bar, bars
from sim.run import Planner, simulate_run
from sim.run_records import RunOptions, RunResult
from sim.simulation import planner_of
from sim.svg import save
from sim.trace import load

LINK_GBPS = 2.5
REPLAN_STEPS = 30
TOLERANCE = 0.01


@dataclass(frozen=True)
class Size:
    devices_a_city: int
    batch: int
    steps: int


FULL, QUICK = Size(8, 256, 4000), Size(2, 64, 4000)


@dataclass(frozen=True)
class Row:
    """What one row adds; `after`: codecs are chosen for the placement of "nothing added"."""

    name: str
    objective: str = "step"
    codecs: bool = False
    after: bool = False
    striping: bool = False
    schedule: bool = False
    replanning: bool = False

    def job(self, size: Size) -> JobSpec:
        codec = "auto" if self.codecs else "identity"
        job = i.read_job(
            i.JobInput(
                model="gpt3-xl-24",
                global_batch=size.batch,
                schedule="auto" if self.schedule else "gpipe",
                streams=0 if self.striping else 1,
                codec=codec,
                gradient_codec=codec,
            )
        )
        return job.model_copy(update={"model": job.shape.model_copy(update={"tied": False})})


ROWS = (
    Row("DT-FM", objective="dtfm"),
    Row("nothing added"),
    Row("codecs after", codecs=True, after=True),
    Row("codecs", codecs=True),
    Row("striping", striping=True),
    Row("schedule", schedule=True),
    Row("re-planning", replanning=True),
    Row("all together", codecs=True, striping=True, schedule=True, replanning=True),
)
ALONE = ("codecs", "striping", "schedule", "re-planning")


@dataclass
class Beyond:
    """One comparison: the network, and the runs so far."""

    size: Size
    found: dict[str, RunResult] = field(default_factory=dict)

    def __post_init__(self) -> None:
        trace = load("synthetic_day")
        devices = tuple(
            Device(f"{city}-{k}", region=city)
            for city in trace.nodes
            for k in range(self.size.devices_a_city)
        )
        self.gpus = i.read_gpus(["v100"], "fp16")
        devices = tuple(
            Device(d.name, region=d.region, memory_bytes=self.gpus.of(d).memory_bytes) for d in devices
        )
        self.network = TraceNetwork(trace, devices, Conventions(cap_Bps=LINK_GBPS * 1000 * MBIT_BPS))

    def run(self, row: Row) -> RunResult:
        job = row.job(self.size)
        work = i.read_work(job, self.network.devices, self.gpus)
        planner = remembering(planner_of(job, work, row.objective))
        now = self.network.topology(0.0)
        if row.after:
            placement = self.found["nothing added"].plans[0].placement
            plan = plan_for(placement, job, work.model, work.profiles, now, 1)
        else:
            plan = planner(now, [d.name for d in now.devices], 1)
        options = RunOptions(
            self.size.steps,
            job.global_batch * job.sequence_length,
            replan_every=REPLAN_STEPS if row.replanning else 0,
        )
        self.found[row.name] = simulate_run(work, self.network, plan, options, planner)
        return self.found[row.name]


def remembering(planner: Planner) -> Planner:
    """The same plan for the same links: the day's links change once an hour."""
    known: dict[bytes, Plan] = {}

    def remembered(topology: Topology, names: Sequence[str], version: int) -> Plan:
        flows = b"" if topology.flow_Bps is None else topology.flow_Bps.tobytes()
        key = topology.latency_s.tobytes() + topology.bandwidth_Bps.tobytes() + flows
        if key not in known:
            known[key] = planner(topology, names, version)
        plan = known[key]
        return Plan(**{**{f: getattr(plan, f) for f in plan.__slots__}, "version": version})

    return remembered


def missed_of(found: dict[str, RunResult]) -> list[str]:
    plain_s, together_s = found["nothing added"].total_s, found["all together"].total_s
    missed = [
        f"{name} alone: {found[name].total_s / plain_s:.3f} of the time without it, required at most 1"
        for name in ALONE
        if found[name].total_s > plain_s * (1 + TOLERANCE)
    ]
    best = min(ALONE, key=lambda name: found[name].total_s)
    if together_s > found[best].total_s * (1 + TOLERANCE):
        missed.append(f"all together: slower than {best} alone")
    return missed


HEAD = "| | stages x replicas | schedule | first step s | whole run | x nothing added | plans |"


def line_of(name: str, found: dict[str, RunResult]) -> str:
    r = found[name]
    plan = r.plans[0]
    deep = f", {plan.warmup_extra} extra" if plan.warmup_extra else ""
    gain = found["nothing added"].total_s / r.total_s
    shape = f"{plan.n_stages} x {plan.n_replicas} | {plan.schedule}{deep}"
    spent = f"{r.steps[0].duration_s:.1f} | {duration(r.total_s)}"
    return f"| {name} | {shape} | {spent} | {gain:.2f} | {len(r.plans)} |"


def picture(found: dict[str, RunResult], path: Path) -> None:
    plain_s = found["nothing added"].total_s
    given = [
        Bar(f"{name}, x {plain_s / r.total_s:.2f}", time_shares(r.timelines[0]).parts())
        for name, r in found.items()
    ]
    note = "Seconds of the first step; x: how much faster the whole day's run is than with nothing added."
    save(path, bars(given, "What each addition is worth, alone and together", note=note))


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--picture", type=Path, help="draw the first steps as bars here (.svg, .png)")
    given = parser.parse_args(arguments)
    size = QUICK if given.quick else FULL
    beyond = Beyond(size)
    for row in ROWS:
        began_s = time.process_time()
        r = beyond.run(row)
        told = f"{row.name}: {duration(r.total_s)}, {time.process_time() - began_s:.0f} s of CPU"
        print(told, file=sys.stderr, flush=True)
    found = beyond.found
    alone = {name: found["nothing added"].total_s / found[name].total_s for name in ALONE}
    product = 1.0
    for gain in alone.values():
        product *= gain
    together = found["nothing added"].total_s / found["all together"].total_s
    lines = [
        f"{4 * size.devices_a_city} V100s, batch {size.batch}, {size.steps} steps",
        "",
        HEAD,
        "|" + "---|" * 7,
        *(line_of(row.name, found) for row in ROWS),
        "",
        f"All together x {together:.2f}; the gains of each alone multiply to x {product:.2f}.",
    ]
    missed = missed_of(found)
    lines += [f"missed: {m}" for m in missed] or ["all goals met"]
    rows = {
        name: {"step_s": r.steps[0].duration_s, "total_s": r.total_s, "plans": len(r.plans)}
        for name, r in found.items()
    }
    lines.append(json.dumps({"benchmark": "beyond", "missed": missed, "rows": rows}))
    say("\n".join(lines))
    if given.out:
        given.out.write_text("\n".join(lines) + "\n")
    if given.picture:
        picture(found, given.picture)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
