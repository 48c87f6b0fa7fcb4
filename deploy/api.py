"""For scripts and tests: a whole cluster on this machine, its steps as they come, and what a run left behind.

    with LocalCluster("jobs/tiny.yaml", workers=2, links="four_cities") as run:
        for step in run.steps():
            print(step.step, step.loss)
        print(run.history().plan)

Planning and simulating, without torch and without processes, is `sim.api`. What is not named here may change.
"""

from __future__ import annotations

from coordinator.history import EvalRecord, EventRecord, History, StepRecord, WorkerRecord, read_history
from coordinator.state_dir import StoreError
from deploy.local import LinkOptions, LocalCluster, LocalOptions
from deploy.processes import Child, Event, ProcessFailed
from deploy.steps import Step

__all__ = [
    "Child",
    "EvalRecord",
    "Event",
    "EventRecord",
    "History",
    "LinkOptions",
    "LocalCluster",
    "LocalOptions",
    "ProcessFailed",
    "Step",
    "StepRecord",
    "StoreError",
    "WorkerRecord",
    "read_history",
]
