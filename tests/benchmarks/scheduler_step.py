"""The rows of the scheduler's benchmark under the predicted step time: DT-FM's networks, job and GPUs.

gpt3-xl-24, 1,024 samples a step in micro-batches of one, on V100s; order, warm-up, recomputation left open.
Called by `tests.benchmarks.scheduler`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scheduler.job import JobSpec, ScheduleSpec
from scheduler.plan_search import Chosen
from scheduler.planner import search_for
from scheduler.scenarios import NAMES, scenario, with_noise
from scheduler.step_baselines import step_baselines
from scheduler.step_search import StepSearchOptions
from scheduler.topology import Topology
from sim import inputs

SECONDS, SPREAD = 10.0, 0.02
HEAD = [
    "| network | shape asked | found | step s | bound s | gap | spread | CPU s | layouts/s "
    "| random mean | best of 200 | region order | Megatron | greedy | DT-FM's search |",
    "|" + "---|" * 15,
]


@dataclass(frozen=True)
class StepCase:
    network: str
    topology: Topology
    shape: tuple[int, int] | None
    """None: the best."""

    @property
    def name(self) -> str:
        return f"{self.network} {'free' if self.shape is None else '{}x{}'.format(*self.shape)}"


def step_cases(quick: bool) -> list[StepCase]:
    found = []
    for name in NAMES:
        plain = scenario(name)
        found += [StepCase(name, plain, (8, 8)), StepCase(name, plain, None)]
        if not quick:
            noisy = with_noise(plain, 0.3, np.random.default_rng(1))
            found.append(StepCase(f"{name} ±30 %", noisy, None))
    return found


def step_row(case: StepCase, n_seeds: int, dtfm_trials: int) -> tuple[str, Chosen, dict[str, Any], list[str]]:
    """A line of the table, the best seed's search, its figures, and the goals that it misses."""
    gpus = inputs.read_gpus(None, "fp16")
    memory = tuple(replace(d, memory_bytes=gpus.of(d).memory_bytes) for d in case.topology.devices)
    topology = replace(case.topology, devices=memory)
    job = _job(case)
    work = inputs.read_work(job, topology.devices, gpus)
    began = time.process_time()
    found = [
        search_for(
            job.model_copy(update={"seed": seed}),
            work.model,
            work.profiles,
            topology,
            1,
            StepSearchOptions(),
        )[1]
        for seed in range(n_seeds)
    ]
    seconds = (time.process_time() - began) / n_seeds
    costs = [c.plan.predicted_step_s for c in found]
    cost, spread = min(costs), max(costs) / min(costs) - 1
    first = found[int(np.argmin(costs))]
    bound = min(c.bound_s for c in found)
    rivals = dict(first.result.seeds_s)
    others = []
    if case.shape is not None:
        others = list(step_baselines(first.found.case, np.random.default_rng(0), 200, dtfm_trials))
        rivals |= {b.name: b.cost_s for b in others}
    missed = [
        f"{case.name}: {n} takes {c:.3f}, ours {max(costs):.3f}"
        for n, c in rivals.items()
        if max(costs) > c * (1 + 1e-9)
    ]
    if spread > SPREAD:
        missed.append(f"{case.name}: spread {100 * spread:.2f} % over {n_seeds} seeds")
    if seconds > SECONDS:
        missed.append(f"{case.name}: {seconds:.1f} s of one core")
    plan = first.plan
    by_name = {b.name: b.cost_s for b in others}
    names = ("random, mean", "random, best of 200", "region order", "Megatron", "greedy", "DT-FM's search")
    told = [min((c for n, c in by_name.items() if n.startswith(name)), default=np.nan) for name in names]
    how = f"{plan.schedule}+{plan.warmup_extra}{', recomputing' if plan.recompute else ''}"
    shown = [
        case.network,
        "free" if case.shape is None else "{} x {}".format(*case.shape),
        f"{plan.n_stages} x {plan.n_replicas}, {how}",
        f"**{cost:.3f}**",
        f"{bound:.3f}",
        f"{100 * (1 - bound / cost):.1f} %",
        f"{100 * spread:.2f} %",
        f"{seconds:.1f}",
        f"{first.result.evaluations / max(seconds, 1e-3):,.0f}",
        *("-" if np.isnan(c) else f"{c:.2f}" for c in told),
    ]
    figures = {"network": case.name, "step_s": cost, "bound_s": bound, "spread": spread, "cpu_s": seconds}
    return "| " + " | ".join(shown) + " |", first, figures, missed


def _job(case: StepCase) -> JobSpec:
    stages, replicas = case.shape or (None, None)
    sizes = inputs.JobInput(None, "gpt3-xl-24", 2048, 1024, 1, stages=stages, replicas=replicas)
    free = ScheduleSpec(name="auto", warmup_extra="auto")
    return inputs.read_job(sizes).model_copy(update={"schedule": free})
