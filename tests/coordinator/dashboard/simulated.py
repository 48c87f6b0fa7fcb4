"""What a coordinator would tell of a run with many workers, without any: for the board's tests and benchmark.

Formulas and one seed; no process, no clock. Workers stand in the regions that the page's map knows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from coordinator.commands import MakePlan
from coordinator.dashboard.server import STATIC
from coordinator.events import LinkSample
from coordinator.links import LinksFile
from coordinator.timelines import TIMELINE_FILE
from scheduler.profile import ModelProfile
from scheduler.topology import Device

Event = dict[str, Any]
PLACES: tuple[str, ...] = tuple(json.loads((STATIC / "places.json").read_text()))
REGIONS = tuple(place for place in PLACES if place[-1].isdecimal())
LAYERS_A_STAGE = 3
MICRO_BATCHES = 8
STEP_S = 2.0


@dataclass(frozen=True)
class Simulated:
    """`workers` of them in `regions` places, as pipelines of `stages`; what is left over is spare."""

    workers: int
    stages: int = 8
    regions: int = 12
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"w{i:03d}" for i in range(self.workers))

    def region(self, i: int) -> str:
        return REGIONS[i % min(self.regions, len(REGIONS))]

    @property
    def placement(self) -> list[list[str]]:
        replicas = self.workers // self.stages
        return [[self.names[r * self.stages + s] for s in range(self.stages)] for r in range(replicas)]

    def beginning(self) -> Iterator[Event]:
        """Until the first step: everybody joins, a plan is made."""
        yield {"event": "listening", "run": f"simulated-{self.workers}", "steps": 2000, "step": 0,
               "min_workers": self.workers}  # fmt: skip
        for i, name in enumerate(self.names):
            yield {"event": "joined", "name": name, "region": self.region(i), "host": f"host-{i}",
                   "memory_bytes": 24 << 30, "members": i + 1, "needed": self.workers}  # fmt: skip
        yield {"event": "phase", "phase": "planning", "reason": "all links are measured", "step": 0}
        yield self.plan(1)
        yield {"event": "phase", "phase": "running", "reason": "running to step 2000", "step": 0}

    def plan(self, version: int) -> Event:
        n = LAYERS_A_STAGE
        return {
            "event": "plan", "version": version, "placement": self.placement,
            "partition": [[n * s, n * (s + 1)] for s in range(self.stages)],
            "micro_batches": [MICRO_BATCHES] * len(self.placement), "schedule": "1f1b", "micro_batch": 2,
            "predicted_step_s": STEP_S,
            "reasons": ["the fastest of 41 shapes", "stages of a pipeline stay in one part of the world"],
        }  # fmt: skip

    def step(self, n: int) -> Iterator[Event]:
        """Step n (from 1) is committed; every tenth is recorded."""
        rng = random.Random(self.seed * 1_000_003 + n)
        yield {
            "event": "step", "step": n, "steps": 2000, "loss": 2 + 8 / (n + 1) + 0.02 * rng.random(),
            "tokens": 1 << 18, "tokens_per_s": (1 << 18) / STEP_S * (0.95 + 0.1 * rng.random()),
            "step_s": STEP_S * (0.95 + 0.1 * rng.random()), "predicted_step_s": STEP_S,
            "grad_norm": 0.5 + rng.random(), "sent_bytes": 10**8, "raw_bytes": 8 * 10**8,
        }  # fmt: skip
        if n % 10 == 1:
            yield {
                "event": "use", "step": n, "step_s": STEP_S,
                "workers": [
                    {"name": name, "busy_s": STEP_S * rng.uniform(0.4, 0.8), "wait_s": 0.3, "reduce_s": 0.2,
                     "idle_s": 0.1, "memory_used_bytes": rng.randrange(8 << 30, 20 << 30)}
                    for row in self.placement for name in row
                ],
            }  # fmt: skip
            yield {"event": "links", "step": n, "links": list(self._links(rng))}

    def _links(self, rng: random.Random) -> Iterator[Event]:
        for row in self.placement:
            for a, b in pairwise(row):
                for kind, src, dst in (("activation", a, b), ("gradient", b, a)):
                    raw = MICRO_BATCHES * rng.randrange(4_000_000, 5_000_000)
                    yield {"from": src, "to": dst, "kind": kind, "codec": "kbit:bits=4", "raw_bytes": raw,
                           "sent_bytes": raw // 8, "relative_error": 0.02}  # fmt: skip

    def lose(self, i: int) -> Iterator[Event]:
        """A worker is lost, and another plan is made."""
        reason = f"{self.names[i]} is lost: no heartbeat for 10.0 s (limit 9.5 s)"
        yield {"event": "left", "name": self.names[i], "reason": reason}
        yield {"event": "phase", "phase": "planning", "reason": reason, "step": 1}
        yield self.plan(2)
        yield {"event": "recovery", "way": "repair", "step": 1, "loading_s": 3.0,
               "reason": "a spare takes its place"}  # fmt: skip
        yield {"event": "phase", "phase": "running", "reason": "running to step 2000", "step": 1}

    def write_links(self, state_dir: Path) -> None:
        """Every worker has measured its links to all others."""
        devices = tuple(Device(name, region=self.region(i)) for i, name in enumerate(self.names))
        links = tuple(
            (a.name, LinkSample(b.name, 0.001 if a.region == b.region else 0.08, 5e7))
            for a in devices
            for b in devices
            if a is not b
        )
        request = MakePlan(1, ModelProfile((), 1, 1), devices, (), links)
        LinksFile(state_dir).record(request, 1_790_000_000.0)

    def write_timeline(self, state_dir: Path) -> None:
        """One recorded step of all ranks beside its prediction, as the coordinator would have written it."""
        forward, backward = 0.06, 0.12
        spans = []
        for rank in range(len(self.placement) * self.stages):
            at = forward * (rank % self.stages)
            for mb in range(MICRO_BATCHES):
                spans.append([rank, "forward", at, at + forward, mb, -1, 0])
                spans.append([rank, "backward", at + forward, at + forward + backward, mb, -1, 0])
                at += forward + backward
            spans.append([rank, "reduce", at, at + 0.2, -1, -1, 0])
            spans.append([rank, "optimizer", at + 0.2, at + 0.25, -1, -1, 0])
        n_ranks = len(self.placement) * self.stages
        timeline = {"n_ranks": n_ranks, "spans": spans}
        body = {
            "devices": [name for row in self.placement for name in row], "predicted": timeline,
            "measured": [{"step": 1, **timeline, "links": []}],
        }  # fmt: skip
        (state_dir / TIMELINE_FILE).write_text(json.dumps(body))
