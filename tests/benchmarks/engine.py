"""How fast the engine replays a step, on links that share nothing and on crowded ones.

    python -m tests.benchmarks.engine [--quick]

A row a case: devices, what the network shares, spans, CPU seconds, memory at its peak. Ends with one JSON
line and exits with 1 when a goal is missed: 64 devices x 64 micro-batches below 1 s, 1,024 devices below
30 s, of CPU. Crowded: network cards half as fast as what two links of a device would carry, and with `egress`
regions whose way out holds back everything. The last is not judged for 1,024 devices: there nearly every
transfer's rate hangs on every other's, and each start and end moves hundreds of them.
--quick: 64 devices only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tracemalloc
from dataclasses import dataclass

import numpy as np

from scheduler.engine import Durations, TopologyNetwork, replay
from scheduler.plan import Plan
from scheduler.topology import Device, Topology

LIMIT_S = {64: 1.0, 1024: 30.0}
UNJUDGED = {(1024, "egress")}
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
        n, wire = self.devices, (BOUNDARY_BYTES,) * (self.stages - 1)
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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    shapes = [(64, 1), (8, 8)] if options.quick else [(64, 1), (8, 8), (16, 64)]
    print("| devices | stages x replicas | shared | spans | CPU s | peak MB | step s |\n|" + "---|" * 7)
    results, missed = [], []
    for stages, replicas in shapes:
        for shares in ("nothing", "cards", "egress"):
            case = Case(stages, replicas, shares)
            plan, durations, network = case.plan(), case.durations(), case.network()
            began_s = time.process_time()
            timeline = replay(plan, durations, network)
            cpu_s = time.process_time() - began_s
            tracemalloc.start()
            if case.devices <= 64:  # tracing costs several times the replay
                replay(plan, durations, network)
            peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
            shown = f"{len(timeline.spans)} | {cpu_s:.2f} | " + (f"{peak_mb:.0f}" if peak_mb >= 1 else "-")
            print(
                f"| {case.devices} | {stages} x {replicas} | {shares} "
                f"| {shown} | {timeline.duration_s:.1f} |",
                flush=True,
            )
            results.append([case.devices, stages, shares, len(timeline.spans), round(cpu_s, 3)])
            if cpu_s > LIMIT_S[case.devices] and (case.devices, shares) not in UNJUDGED:
                missed.append(
                    f"{case.devices} devices, {shares}: {cpu_s:.2f} s, required {LIMIT_S[case.devices]}"
                )
    print("\n".join(f"missed: {m}" for m in missed) or "all goals met")
    print(json.dumps({"benchmark": "engine", "rows": results, "missed": missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
