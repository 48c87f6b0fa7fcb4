"""Plans a job on a network by the predicted step time, for `sim plan`: the same search as the coordinator's.

Reads the clock for the budget, and spreads walks over processes; decides nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from scheduler.cost import predict
from scheduler.describe import describe
from scheduler.job import JobSpec
from scheduler.plan import Plan, PlanError
from scheduler.plan_search import taking_part
from scheduler.planner import explained, search_for
from scheduler.step_search import StepSearchOptions
from scheduler.timeline import Timeline
from scheduler.topology import Topology
from sim.replay import Work
from sim.spread import spread

ACTIONS_AN_EVALUATION = 400.0
"""What judging a layout takes, about, at 8 x 8 with some hundred micro-batches: few are replayed whole."""


@dataclass(frozen=True, slots=True)
class StepPlanned:
    """What was found, before it is printed."""

    job: JobSpec
    work: Work
    topology: Topology
    plan: Plan
    timeline: Timeline
    """The engine's, of the plan's step."""
    lower_bound_s: float
    evaluations: int
    elapsed_s: float

    def document(self) -> dict[str, Any]:
        """The JSON that `--json` prints."""
        index = {d.name: i for i, d in enumerate(self.topology.devices)}
        plan = self.plan
        return {
            "objective": "step_time",
            "cost_s": plan.predicted_step_s,
            "lower_bound_s": self.lower_bound_s,
            "stages": [[index[plan.device(r)] for r in plan.group(s)] for s in range(plan.n_stages)],
            "layers_per_stage": [stop - start for start, stop in plan.partition],
            "elapsed_s": self.elapsed_s,
            "evaluations": self.evaluations,
            "explain": list(plan.reasons),
        }

    def report(self) -> str:
        """For a person."""
        there = taking_part(self.topology, self.plan)
        told = describe(self.plan, self.work.model, there, self.work.profiles)
        return f"{told}\n  - {self.evaluations} layouts judged in {self.elapsed_s:.1f} s"


def plan_step(
    job: JobSpec,
    work: Work,
    topology: Topology,
    seed: int = 0,
    budget_s: float | None = None,
    evaluations: int | None = None,
    processes: int = 1,
    ray: str | None = None,
) -> StepPlanned:
    """Search and explain. A budget ends the search between walks; else the seed alone decides.

    Raises PlanError, DoesNotFit for memory, SpreadError.
    """
    began = time.monotonic()

    def over() -> bool:
        return budget_s is not None and time.monotonic() - began >= 0.85 * budget_s

    options = StepSearchOptions()
    if evaluations is not None:
        if evaluations < 1:
            raise PlanError(f"evaluations: found {evaluations}, required at least 1")
        options = replace(options, actions=evaluations * ACTIONS_AN_EVALUATION)
    with spread(processes, ray) as map_tasks:
        seeded = job.model_copy(update={"seed": seed})
        searched = search_for(seeded, work.model, work.profiles, topology, 1, options, map_tasks, over)
    plan, chosen = explained(searched), searched.chosen
    return StepPlanned(
        job,
        work,
        topology,
        plan,
        predict(plan, work.model, work.profiles, taking_part(topology, plan)),
        min(chosen.bound_s, plan.predicted_step_s),
        chosen.result.evaluations,
        time.monotonic() - began,
    )
