"""The run's history: what happened, which plans, every committed step, the samples it consumed.

Append-only but for one thing: continuing from a checkpoint marks the steps after it as discarded.
Decides nothing; the state machine says what is recorded. One writer (the coordinator), any number
of readers, so a report can be made while the run goes on. Where a coordinator may be followed by another that
stands by, whoever drives has a lease, and every write asks first whether it is still the same one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scheduler.bad_numbers import Conduct
from scheduler.exit_codes import ExitCode
from scheduler.lease import Lease, renewed, take
from scheduler.plan import Plan
from scheduler.plan_text import plan_of_document
from scheduler.samples import Ledger

from .commands import RecordConduct, RecordEval, RecordStep
from .database import DatabaseError, Row
from .records import TakenUp
from .state_dir import DATABASE, StoreError, opened, where_of, without_password

SCHEMA_VERSION = 2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
  id BIGINT PRIMARY KEY CHECK (id = 1), schema BIGINT NOT NULL, run TEXT NOT NULL,
  job_json TEXT NOT NULL, created_s DOUBLE PRECISION NOT NULL, phase TEXT NOT NULL,
  code BIGINT, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS attempts (
  attempt BIGINT PRIMARY KEY, start_step BIGINT NOT NULL, started_s DOUBLE PRECISION NOT NULL,
  ended_s DOUBLE PRECISION, code BIGINT, reason TEXT);
CREATE TABLE IF NOT EXISTS events (
  id IDENTITY, attempt BIGINT NOT NULL, at_s DOUBLE PRECISION NOT NULL,
  kind TEXT NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS plans (
  attempt BIGINT NOT NULL, version BIGINT NOT NULL, at_s DOUBLE PRECISION NOT NULL, plan TEXT NOT NULL,
  PRIMARY KEY (attempt, version));
CREATE TABLE IF NOT EXISTS steps (
  attempt BIGINT NOT NULL, step BIGINT NOT NULL, at_s DOUBLE PRECISION NOT NULL, plan_version BIGINT NOT NULL,
  loss DOUBLE PRECISION NOT NULL, tokens BIGINT NOT NULL, grad_norm DOUBLE PRECISION NOT NULL,
  duration_s DOUBLE PRECISION NOT NULL,
  predicted_s DOUBLE PRECISION NOT NULL, sent_bytes BIGINT NOT NULL, raw_bytes BIGINT NOT NULL,
  discarded BIGINT NOT NULL DEFAULT 0, PRIMARY KEY (attempt, step));
CREATE TABLE IF NOT EXISTS samples (
  attempt BIGINT NOT NULL, step BIGINT NOT NULL, first BIGINT NOT NULL, stop BIGINT NOT NULL,
  discarded BIGINT NOT NULL DEFAULT 0, PRIMARY KEY (attempt, step));
CREATE TABLE IF NOT EXISTS lease (
  id BIGINT PRIMARY KEY CHECK (id = 1), holder TEXT NOT NULL, epoch BIGINT NOT NULL,
  until_s DOUBLE PRECISION NOT NULL);
CREATE TABLE IF NOT EXISTS conduct (
  identity TEXT NOT NULL, step BIGINT NOT NULL, PRIMARY KEY (identity, step));
CREATE TABLE IF NOT EXISTS quarantined (
  identity TEXT PRIMARY KEY, at_s DOUBLE PRECISION NOT NULL, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS evals (
  attempt BIGINT NOT NULL, step BIGINT NOT NULL, at_s DOUBLE PRECISION NOT NULL,
  loss DOUBLE PRECISION NOT NULL, tokens BIGINT NOT NULL,
  discarded BIGINT NOT NULL DEFAULT 0, PRIMARY KEY (attempt, step));
"""


class Superseded(Exception):
    """Another coordinator has taken the lease: this one may write nothing any more."""


class Store:
    """The open database of one state directory. Times are seconds since 1970, passed in."""

    def __init__(self, state_dir: Path, *, read_only: bool = False) -> None:
        where = where_of(state_dir)
        shown = without_password(where)
        self.lease: Lease | None = None
        """Under which this store is written to; None: nobody else could."""
        if read_only and "://" not in where and not Path(where).exists():
            raise StoreError(f"{state_dir}: found no {DATABASE}, required the state directory of a run")
        self._db = opened(where, read_only)
        try:
            if not read_only:
                for statement in _SCHEMA.split(";"):
                    if statement.strip():
                        self._db.execute(statement.replace("IDENTITY", self._db.identity_column))
            found = self._db.rows("SELECT * FROM run")
        except DatabaseError as e:
            raise StoreError(f"{shown}: found {e}, required a database that isthmus wrote") from e
        if found and found[0]["schema"] != SCHEMA_VERSION:
            raise StoreError(f"{shown}: found schema {found[0]['schema']}, required {SCHEMA_VERSION}")
        self.attempt = self._scalar("SELECT max(attempt) FROM attempts") or 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def _scalar(self, sql: str, *args: Any) -> Any:
        rows = self._db.rows(sql, args)
        return next(iter(rows[0].values())) if rows else None

    def rows(self, sql: str, *args: Any) -> list[Row]:
        """All rows of a query, for readers of history."""
        return self._db.rows(sql, args)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """All that is written inside, or nothing; nothing once another has the lease. Raises Superseded."""
        with self._db.transaction():
            if self.lease is not None:
                self._db.lock("lease")
                found = self._lease()
                if found is None or found.epoch != self.lease.epoch:
                    who = f"{found.holder} has taken the run over" if found else "the lease is gone"
                    raise Superseded(who)
            yield

    # ---- who drives

    def _lease(self) -> Lease | None:
        rows = self._db.rows("SELECT holder, epoch, until_s FROM lease")
        return Lease(**rows[0]) if rows else None

    def held_by(self) -> Lease | None:
        """Who has the lease, or had it last."""
        return self._lease()

    def take_lease(self, holder: str, now_s: float, lasts_s: float) -> Lease | None:
        """Take it and write under it from here on; None: somebody else has it still."""
        with self._db.transaction():
            self._db.lock("lease")
            found = take(self._lease(), holder, now_s, lasts_s)
            if found is not None:
                self._keep(found)
        self.lease = found
        return found

    def renew_lease(self, now_s: float, lasts_s: float) -> None:
        """For another while. Raises Superseded."""
        assert self.lease is not None
        with self._writing():
            found = renewed(self.lease, self._lease(), now_s, lasts_s)
            assert found is not None, "the same epoch was there a moment ago"
            self._keep(found)
        self.lease = found

    def give_lease_back(self) -> None:
        """Whoever stands by need not wait. Raises Superseded."""
        if self.lease is not None:
            with self._writing():
                self._keep(Lease(self.lease.holder, self.lease.epoch, 0.0))

    def _keep(self, lease: Lease) -> None:
        self._db.execute(
            "INSERT INTO lease VALUES (1, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
            " holder = excluded.holder, epoch = excluded.epoch, until_s = excluded.until_s",
            (lease.holder, lease.epoch, lease.until_s),
        )

    # ---- the run and its attempts

    def run(self) -> Row | None:
        """The run that the directory holds, or None."""
        rows = self.rows("SELECT * FROM run")
        return rows[0] if rows else None

    def create(self, run: str, job_json: str, now_s: float) -> None:
        """Begin a run in an empty directory."""
        with self._writing():
            self._db.execute(
                "INSERT INTO run VALUES (1, ?, ?, ?, ?, 'gathering', NULL, '')",
                (SCHEMA_VERSION, run, job_json, now_s),
            )

    def begin_attempt(self, start_step: int, job_json: str, now_s: float) -> None:
        """The run is taken up at `start_step`; what was done from there on is discarded."""
        with self._writing():
            self._begin(start_step, job_json, now_s)

    def _begin(self, start_step: int, job_json: str, now_s: float) -> None:
        self.attempt += 1
        self._discard_from(start_step)
        self._db.execute(
            "INSERT INTO attempts VALUES (?, ?, ?, NULL, NULL, NULL)", (self.attempt, start_step, now_s)
        )
        self._db.execute(
            "UPDATE run SET job_json = ?, code = NULL, phase = 'gathering', reason = ''", (job_json,)
        )

    def _discard_from(self, step: int) -> None:
        for table in ("steps", "samples"):
            self._db.execute(f"UPDATE {table} SET discarded = 1 WHERE step >= ?", (step,))
        # An evaluation is named by the steps done before it.
        self._db.execute("UPDATE evals SET discarded = 1 WHERE step > ?", (step,))

    def last_commit(self) -> TakenUp | None:
        """The last step that counts and the plan it was done under; None before there was one."""
        rows = self.rows(
            "SELECT s.step, s.grad_norm, p.plan FROM steps s JOIN plans p"
            " ON p.version = s.plan_version"  # made in the attempt before, if the run went back to take it
            " WHERE s.discarded = 0 ORDER BY s.step DESC LIMIT 1"
        )
        if not rows:
            return None
        plan = plan_of_document(json.loads(rows[0]["plan"]), "the run's plan")
        return TakenUp(plan, rows[0]["step"] + 1, rows[0]["grad_norm"])

    def last_plan_version(self) -> int:
        """The highest version of any plan; 0 before there was one."""
        return int(self._scalar("SELECT max(version) FROM plans") or 0)

    def rewind(self, step: int, reason: str, now_s: float) -> None:
        """The run goes back to `step` by itself: what came after is discarded, as by another attempt."""
        with self._writing():
            done_here = self._scalar("SELECT count(*) FROM steps WHERE attempt = ?", self.attempt)
            if not done_here:  # this attempt has only begun: it begins further back
                self._discard_from(step)
                args = (step, self.attempt)
                self._db.execute("UPDATE attempts SET start_step = ? WHERE attempt = ?", args)
                return
            job_json = self._scalar("SELECT job_json FROM run")
            self._db.execute(
                "UPDATE attempts SET ended_s = ?, reason = ? WHERE attempt = ?", (now_s, reason, self.attempt)
            )
            self._begin(step, job_json, now_s)

    def set_phase(self, phase: str, reason: str) -> None:
        with self._writing():
            self._db.execute("UPDATE run SET phase = ?, reason = ?", (phase, reason))

    def end_attempt(self, phase: str, code: ExitCode, reason: str, now_s: float) -> None:
        with self._writing():
            self._db.execute("UPDATE run SET phase = ?, code = ?, reason = ?", (phase, int(code), reason))
            self._db.execute(
                "UPDATE attempts SET ended_s = ?, code = ?, reason = ? WHERE attempt = ?",
                (now_s, int(code), reason, self.attempt),
            )

    # ---- what happens

    def event(self, kind: str, body: dict[str, Any], now_s: float) -> None:
        with self._writing():
            self._db.execute(
                "INSERT INTO events (attempt, at_s, kind, body) VALUES (?, ?, ?, ?)",
                (self.attempt, now_s, kind, json.dumps(body)),
            )

    def plan(self, plan: Plan, now_s: float) -> None:
        with self._writing():
            self._db.execute(
                "INSERT INTO plans VALUES (?, ?, ?, ?) ON CONFLICT (attempt, version) DO UPDATE SET"
                " at_s = excluded.at_s, plan = excluded.plan",
                (self.attempt, plan.version, now_s, json.dumps(asdict(plan))),
            )

    def step(self, r: RecordStep, predicted_s: float, now_s: float) -> None:
        """A committed step and the samples it consumed, together or not at all."""
        with self._writing():
            self._db.execute(
                "INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
                (
                    self.attempt, r.step, now_s, r.plan_version, r.loss, r.tokens, r.grad_norm,
                    r.duration_s, predicted_s, r.sent_bytes, r.raw_bytes,
                ),
            )  # fmt: skip
            self._db.execute(
                "INSERT INTO samples VALUES (?, ?, ?, ?, 0)",
                (self.attempt, r.step, r.first_sample, r.end_sample),
            )

    def evaluation(self, r: RecordEval, now_s: float) -> None:
        with self._writing():
            self._db.execute(
                "INSERT INTO evals VALUES (?, ?, ?, ?, ?, 0) ON CONFLICT (attempt, step) DO UPDATE SET"
                " at_s = excluded.at_s, loss = excluded.loss, tokens = excluded.tokens, discarded = 0",
                (self.attempt, r.step, now_s, r.loss, r.tokens),
            )

    def conduct(self, r: RecordConduct, now_s: float) -> None:
        """Whose numbers were bad, and who is out for that: it outlasts the coordinator."""
        with self._writing():
            self._db.executemany(
                "INSERT INTO conduct VALUES (?, ?) ON CONFLICT DO NOTHING",
                [(who, step) for who, steps in r.conduct.faults.items() for step in steps],
            )
            self._db.executemany(
                "INSERT INTO quarantined VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                [(who, now_s, r.reason) for who in sorted(r.quarantined)],
            )

    def last_conduct(self) -> tuple[Conduct, frozenset[str]]:
        """What `conduct` wrote, all of it."""
        faults: dict[str, tuple[int, ...]] = {}
        for row in self.rows("SELECT identity, step FROM conduct ORDER BY step"):
            faults[row["identity"]] = (*faults.get(row["identity"], ()), row["step"])
        out = frozenset(row["identity"] for row in self.rows("SELECT identity FROM quarantined"))
        return Conduct(faults), out

    # ---- reading

    def ledger(self) -> Ledger:
        """The samples consumed by the steps that count. Raises SampleError if one was consumed twice."""
        ledger = Ledger()
        for row in self.rows("SELECT first, stop FROM samples WHERE discarded = 0 ORDER BY first"):
            ledger = ledger.consume(row["first"], row["stop"])
        return ledger
