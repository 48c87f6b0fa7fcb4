"""How fast the engine replays a step, on links that share nothing and on crowded ones.

    python -m tests.benchmarks.engine [--quick]

A row a case: devices, what the network shares, spans, CPU seconds, memory that the replay needed at its peak.
Ends with one JSON line and exits with 1 when a goal is missed: 64 devices x 64 micro-batches below 1 s, 1,024
devices below 30 s, of CPU; memory in proportion to the devices, give or take a half. Crowded: network cards
half as fast as what two links of a device would carry, and with `egress` regions whose way out holds back
everything, so that nearly every transfer's rate hangs on every other's.
--quick: 64 devices only.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from scheduler.engine import Durations, TopologyNetwork, replay
from scheduler.plan import Plan
from scheduler.topology import Device, Topology

LIMIT_S = {64: 1.0, 1024: 30.0}
PROPORTION = 1.5
MICRO_BATCHES, BOUNDARY_BYTES, REGIONS = 64, 2_000_000, 8


@dataclass(frozen=True)
class Case:
    stages: int
    replicas: int
    shares: str

    @property
    def devices(self) -> int:
        return self.stages * self.replicas

    def plan(self) -> Plan:
        rows = [tuple(f"d{r * self.stages + s}" for s in range(self.stages)) for r in range(self.replicas)]
        cut = tuple((s, s + 1) for s in range(self.stages))
        return Plan(1, tuple(rows), cut, (MICRO_BATCHES,) * self.replicas, "1f1b")

    def durations(self) -> Durations:
        n, wire = self.devices, (BOUNDARY_BYTES,) * self.devices
        return Durations((0.1,) * n, (0.2,) * n, (0.01,) * n, wire, wire, (BOUNDARY_BYTES * 5,) * self.stages)

    def network(self) -> TopologyNetwork:
        rng, n = np.random.default_rng(0), self.devices
        card_Bps = 0.0 if self.shares == "nothing" else 3e7
        devices = tuple(
            Device(f"d{i}", region=f"r{i % REGIONS}", uplink_Bps=card_Bps, downlink_Bps=card_Bps)
            for i in range(n)
        )
        egress = {f"r{k}": 0.6e7 * n / REGIONS for k in range(REGIONS)} if self.shares == "egress" else {}
        latency_s, bandwidth_Bps = rng.uniform(0.01, 0.1, (n, n)), rng.uniform(1e7, 1e8, (n, n))
        return TopologyNetwork(Topology(devices, latency_s, bandwidth_Bps, egress_Bps=egress))


@dataclass(frozen=True)
class Found:
    case: Case
    spans: int
    cpu_s: float
    peak_mb: float
    step_s: float


def measured(case: Case) -> Found:
    """In a process that has done nothing else: what a replay adds to its largest size is the replay's."""
    small = Case(2, 2, "egress")
    replay(small.plan(), small.durations(), small.network())  # compiles what is not kept from before
    plan, durations, network = case.plan(), case.durations(), case.network()
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began_s = time.process_time()
    timeline = replay(plan, durations, network)
    cpu_s = time.process_time() - began_s
    peak_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / (
        1e6 if sys.platform == "darwin" else 1e3
    )
    return Found(case, len(timeline.spans), cpu_s, peak_mb, timeline.duration_s)


def missed_of(found: Sequence[Found]) -> list[str]:
    missed = [
        f"{f.case.devices} devices, {f.case.shares}: {f.cpu_s:.2f} s, required {LIMIT_S[f.case.devices]}"
        for f in found
        if f.cpu_s > LIMIT_S[f.case.devices]
    ]
    for f in found:
        alike = [x.peak_mb for x in found if x.case.devices == 64 and x.case.shares == f.case.shares]
        most_mb = max(alike) * f.case.devices / 64 * PROPORTION
        if f.peak_mb > most_mb:
            missed.append(
                f"{f.case.devices} devices, {f.case.shares}: {f.peak_mb:.0f} MB, required {most_mb:.0f}"
            )
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    shapes = [(64, 1), (8, 8)] if options.quick else [(64, 1), (8, 8), (16, 64)]
    print("| devices | stages x replicas | shared | spans | CPU s | peak MB | step s |\n|" + "---|" * 7)
    found = []
    spawn = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as one:
        for stages, replicas in shapes:
            for shares in ("nothing", "cards", "egress"):
                f = one.submit(measured, Case(stages, replicas, shares)).result()
                print(
                    f"| {f.case.devices} | {stages} x {replicas} | {shares} | {f.spans} "
                    f"| {f.cpu_s:.2f} | {f.peak_mb:.0f} | {f.step_s:.1f} |",
                    flush=True,
                )
                found.append(f)
    missed = missed_of(found)
    rows = [
        [f.case.devices, f.case.stages, f.case.shares, f.spans, round(f.cpu_s, 3), round(f.peak_mb, 1)]
        for f in found
    ]
    print("\n".join(f"missed: {m}" for m in missed) or "all goals met")
    print(json.dumps({"benchmark": "engine", "rows": rows, "missed": missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
