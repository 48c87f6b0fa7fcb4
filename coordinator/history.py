"""What a run did, read back from its state directory alone: for reports, for `status`, for tests.

Reads only; works while the coordinator runs and after it was killed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler.job import JobError, JobSpec, job_from_json
from scheduler.link_use import LinkUse
from scheduler.plan import Plan
from scheduler.plan_text import plan_of_document
from scheduler.timeline import Timeline

from .database import DatabaseError, Row
from .state_dir import StoreError
from .store import Store
from .timelines import TIMELINE_FILE, RecordedStep, timeline_from_json


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One committed step. `step` counts from 0; `duration_s` is the slowest rank's."""

    step: int
    at_s: float
    """Seconds since 1970 when it was committed."""
    attempt: int
    loss: float
    tokens: int
    grad_norm: float
    duration_s: float
    predicted_s: float
    sent_bytes: int
    raw_bytes: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.duration_s if self.duration_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class EvalRecord:
    """`step` is the number of steps done before it."""

    step: int
    loss: float
    tokens: int


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker that was a member, as it joined; `rank` in the last plan, or None."""

    name: str
    region: str
    host: str
    memory_bytes: int
    rank: int | None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that happened: `body` is what the coordinator said of it (see `--json`)."""

    at_s: float
    attempt: int
    kind: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class History:
    """A run from its first step to now. Discarded steps (before a resume) are left out."""

    run: str
    job: JobSpec
    phase: str
    reason: str
    code: int | None
    steps: tuple[StepRecord, ...]
    evals: tuple[EvalRecord, ...]
    plan: Plan | None
    workers: tuple[WorkerRecord, ...]
    events: tuple[EventRecord, ...]
    attempts: int
    devices: tuple[str, ...] = ()
    """Names of the ranks in the timelines."""
    predicted: Timeline | None = None
    measured: tuple[RecordedStep, ...] = ()

    @property
    def losses(self) -> tuple[float, ...]:
        return tuple(s.loss for s in self.steps)

    @property
    def sent_bytes(self) -> int:
        """On the wire, over all steps."""
        return sum(s.sent_bytes for s in self.steps)


def read_history(state_dir: Path) -> History:
    """Raises StoreError if the directory holds no run that this version can read."""
    with reading(state_dir) as (store, run):
        plans = store.rows("SELECT plan FROM plans ORDER BY attempt DESC, version DESC LIMIT 1")
        plan = plan_of_document(json.loads(plans[0]["plan"]), str(state_dir)) if plans else None
        steps = store.rows(
            "SELECT step, at_s, attempt, loss, tokens, grad_norm, duration_s, predicted_s,"
            " sent_bytes, raw_bytes FROM steps WHERE discarded = 0 ORDER BY step"
        )
        evals = store.rows("SELECT step, loss, tokens FROM evals WHERE discarded = 0 ORDER BY step")
        events = tuple(
            EventRecord(r["at_s"], r["attempt"], r["kind"], json.loads(r["body"]))
            for r in store.rows("SELECT * FROM events ORDER BY id")
        )
        attempts = store.attempt
    devices, predicted, measured = _timelines(state_dir / TIMELINE_FILE)
    return History(
        run=run["run"],
        job=job_of(run, state_dir),
        phase=run["phase"],
        reason=run["reason"],
        code=run["code"],
        steps=tuple(StepRecord(**dict(r)) for r in steps),
        evals=tuple(EvalRecord(**dict(r)) for r in evals),
        plan=plan,
        workers=_workers(events, plan),
        events=events,
        attempts=attempts,
        devices=devices,
        predicted=predicted,
        measured=measured,
    )


def read_job(state_dir: Path) -> JobSpec:
    """The job alone. Raises StoreError as `read_history` does."""
    with reading(state_dir) as (_, run):
        return job_of(run, state_dir)


@contextmanager
def reading(state_dir: Path) -> Iterator[tuple[Store, Row]]:
    """The store, and the run that it holds. Raises StoreError, also for what goes wrong while it is read."""
    try:
        with Store(state_dir, read_only=True) as store:
            run = store.run()
            if run is None:
                raise StoreError(f"{state_dir}: found no run, required the state directory of one")
            yield store, run
    except DatabaseError as error:
        raise StoreError(f"{state_dir}: found {error}, required the history of a run") from error


def job_of(run: Row, state_dir: Path) -> JobSpec:
    """Of a row that `reading` gives. Raises StoreError."""
    try:
        return job_from_json(run["job_json"], str(state_dir))
    except JobError as error:
        raise StoreError(str(error)) from error


def _workers(events: tuple[EventRecord, ...], plan: Plan | None) -> tuple[WorkerRecord, ...]:
    found: dict[str, WorkerRecord] = {}
    for event in events:
        if event.kind == "joined":
            b = event.body
            rank = plan.rank_of_device(b["name"]) if plan else None
            found[b["name"]] = WorkerRecord(b["name"], b["region"], b["host"], b["memory_bytes"], rank)
    return tuple(found.values())


def _timelines(path: Path) -> tuple[tuple[str, ...], Timeline | None, tuple[RecordedStep, ...]]:
    if not path.exists():
        return (), None, ()
    try:
        raw = json.loads(path.read_text())
        predicted = timeline_from_json(raw["predicted"]) if raw["predicted"] else None
        measured = tuple(
            RecordedStep(int(m["step"]), timeline_from_json(m), tuple(LinkUse(**x) for x in m["links"]))
            for m in raw["measured"]
        )
        return tuple(raw["devices"]), predicted, measured
    except (ValueError, KeyError, TypeError) as e:
        raise StoreError(f"{path}: found {type(e).__name__}: {e}, required a timeline file") from e
