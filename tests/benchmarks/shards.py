"""Sequences shared by shards of equal length, and of even work: how long the slowest shard computes.

    python -m tests.benchmarks.shards [--quick] [--out FILE]

One stage on D replicas, which are threads of this process; seconds are those of the processor that each
thread has had (forward, backward, reduction, optimizer), so that other programs here do not count. Layers are
timed as a worker times them, by the same clock, and the planner makes the lengths of what that says. Goals:
at the longest context the slowest of unequal shards takes 0.85 of what the slowest of equal ones takes at
most, and nowhere more than 1.1. --quick: two shards, two lengths.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from scheduler.analytic import job_profile
from scheduler.cost import step_time_s
from scheduler.job import JobSpec, ModelSpec, ParallelismSpec
from scheduler.plan import Plan
from scheduler.shard_sizes import with_best_sizes
from scheduler.topology import Device, Topology
from tests.benchmarks.command import run
from tests.worker.pipelines import Rank, in_threads, make_job, make_ranks, sequence_plan
from worker.profiler import profile_model

CASES = ((2, 1024), (2, 4096), (2, 8192), (4, 1024), (4, 4096), (4, 8192))
QUICK = ((2, 512), (2, 4096))
STEPS = 4
"""The first of which is not counted."""
MOST, NEVER = 0.85, 1.1


@dataclass(frozen=True, slots=True)
class Row:
    shards: int
    length: int
    sizes: tuple[int, ...]
    equal_s: tuple[float, ...]
    """Of each shard, in a step."""
    unequal_s: tuple[float, ...]
    predicted: float
    """Step of unequal shards by that of equal ones."""

    @property
    def ratio(self) -> float:
        return max(self.unequal_s) / max(self.equal_s)


def job_of(shards: int, length: int) -> JobSpec:
    model = ModelSpec(
        family="llama", layers=2, hidden=64, heads=4, kv_heads=2, vocab=48, max_positions=length, tied=False
    )
    asked = ParallelismSpec(stages=1, replicas=shards, split="sequence")
    return make_job(model=model, sequence_length=length, global_batch=1, micro_batch=1, parallelism=asked)


def sized(job: JobSpec, plan: Plan) -> tuple[Plan, float]:
    """The plan with the planner's sizes, and by how much they should shorten the step, on links that are
    there for free."""
    _, mine = profile_model(job, job.shape, torch.device("cpu"), "", time.thread_time)
    model, n = job_profile(job), plan.n_ranks
    devices = [replace(mine, device=name) for name in plan.devices]
    there = Topology(tuple(map(Device, plan.devices)), np.zeros((n, n)), np.full((n, n), 1e15))

    def step_s(trial: Plan) -> float:
        return step_time_s(trial, model, devices, there)

    found = with_best_sizes(plan, model, devices, there, step_s, lambda _: True)
    return found, found.predicted_step_s / step_s(plan)


def computed_s(job: JobSpec, plan: Plan) -> tuple[float, ...]:
    """Seconds of each shard in a step, the median of some."""

    def work(rank: Rank) -> list[float]:
        found = []
        for step in range(STEPS):
            began = time.thread_time()
            rank.run_step(step)
            found.append(time.thread_time() - began)
        return found[1:]

    return tuple(statistics.median(found) for found in in_threads(make_ranks(job, plan), work))


def row(shards: int, length: int) -> Row:
    job = job_of(shards, length)
    equal = sequence_plan(job, 1, shards)
    unequal, predicted = sized(job, equal)
    return Row(
        shards, length, unequal.shard_sizes, computed_s(job, equal), computed_s(job, unequal), predicted
    )


def measure(quick: bool) -> tuple[list[str], bool]:
    rows = [row(*case) for case in (QUICK if quick else CASES)]
    lines = [
        "| shards | positions | of each shard | equal: slowest, fastest (s) | unequal (s) | ratio of slowest"
        " | predicted |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        sizes = ", ".join(map(str, r.sizes)) or "equal"
        spread = [f"{max(s):.3f}, {min(s):.3f}" for s in (r.equal_s, r.unequal_s)]
        lines.append(
            f"| {r.shards} | {r.length} | {sizes} | {spread[0]} | {spread[1]} | {r.ratio:.2f} |"
            f" {r.predicted:.2f} |"
        )
    longest = max(r.length for r in rows)
    missed = [r for r in rows if r.ratio > (MOST if r.length == longest else NEVER)]
    lines += [f"missed: {r.shards} shards of {r.length} positions: {r.ratio:.2f}" for r in missed]
    lines.append(json.dumps({f"{r.shards}x{r.length}": round(r.ratio, 3) for r in rows}))
    return lines, bool(missed)


if __name__ == "__main__":
    sys.exit(run(measure, __doc__, "two shards, two lengths"))
