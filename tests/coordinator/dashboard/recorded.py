"""Runs in state directories as a coordinator would have left them, without one."""

from __future__ import annotations

from pathlib import Path

from coordinator.commands import RecordEval, RecordStep
from coordinator.store import Store
from scheduler.exit_codes import ExitCode
from scheduler.job import job_to_json

from ..job import a_job
from ..world import line_plan
from .simulated import Simulated

BEGAN_S = 1_790_000_000.0
WORKERS = Simulated(workers=4, stages=2, regions=4)


def record(
    state_dir: Path, run: str, steps: int, *, began_s: float = BEGAN_S, ended: bool = True, **job: str
) -> None:
    """`steps` of them, a held-out loss every fourth, a worker lost half way. `job`: lines of its job file."""
    state_dir.mkdir(parents=True)
    pace_s, falls = (0.5, 0.9) if "schedule" in job else (0.4, 0.8)
    store = Store(state_dir)
    store.create(run, job_to_json(a_job(**job)), began_s)
    store.begin_attempt(0, job_to_json(a_job(**job)), began_s)
    for told in WORKERS.beginning():
        event = {**told, "run": run} if told["event"] == "listening" else told
        store.event(event["event"], event, began_s)
    store.plan(line_plan(1, list(WORKERS.names), replicas=2), began_s)
    for n in range(steps):
        at_s = began_s + 1.0 + n
        loss = 2.0 + 8.0 * falls ** (n + 1)
        store.step(RecordStep(n, 1, loss, 128, 1.0, pace_s, 10, 40, 8 * n, 8 * n + 8), 0.45, at_s)
        if n % 4 == 3:
            store.evaluation(RecordEval(n + 1, loss + 0.1, 64), at_s)
        if n == steps // 2:
            for event in WORKERS.lose(3):
                store.event(event["event"], event, at_s)
    if ended:
        reason = f"all {steps} steps are done"
        over = {"event": "finished", "code": 0, "reason": reason}
        store.event("finished", over, began_s + 2.0 + steps)
        store.end_attempt("finished", ExitCode.OK, reason, began_s + 2.0 + steps)
    store.close()
    WORKERS.write_timeline(state_dir)
