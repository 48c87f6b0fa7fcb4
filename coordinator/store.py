"""The run's history in SQLite: what happened, which plans, every committed step, the samples it consumed.

Append-only but for one thing: continuing from a checkpoint marks the steps after it as discarded.
Decides nothing; the state machine says what is recorded. One writer (the coordinator), any number
of readers (write-ahead log), so a report can be made while the run goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from scheduler.bad_numbers import Conduct
from scheduler.exit_codes import ExitCode
from scheduler.plan import Plan
from scheduler.plan_text import plan_of_document
from scheduler.samples import Ledger

from .commands import RecordConduct, RecordEval, RecordStep
from .records import TakenUp

DATABASE = "run.sqlite"
LOCK = "coordinator.lock"
SCHEMA_VERSION = 2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
  id INTEGER PRIMARY KEY CHECK (id = 1), schema INTEGER NOT NULL, run TEXT NOT NULL,
  job_json TEXT NOT NULL, created_s REAL NOT NULL, phase TEXT NOT NULL, code INTEGER, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS attempts (
  attempt INTEGER PRIMARY KEY, start_step INTEGER NOT NULL, started_s REAL NOT NULL,
  ended_s REAL, code INTEGER, reason TEXT);
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, at_s REAL NOT NULL,
  kind TEXT NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS plans (
  attempt INTEGER NOT NULL, version INTEGER NOT NULL, at_s REAL NOT NULL, plan TEXT NOT NULL,
  PRIMARY KEY (attempt, version));
CREATE TABLE IF NOT EXISTS steps (
  attempt INTEGER NOT NULL, step INTEGER NOT NULL, at_s REAL NOT NULL, plan_version INTEGER NOT NULL,
  loss REAL NOT NULL, tokens INTEGER NOT NULL, grad_norm REAL NOT NULL, duration_s REAL NOT NULL,
  predicted_s REAL NOT NULL, sent_bytes INTEGER NOT NULL, raw_bytes INTEGER NOT NULL,
  discarded INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (attempt, step));
CREATE TABLE IF NOT EXISTS samples (
  attempt INTEGER NOT NULL, step INTEGER NOT NULL, first INTEGER NOT NULL, stop INTEGER NOT NULL,
  discarded INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (attempt, step));
CREATE TABLE IF NOT EXISTS conduct (
  identity TEXT NOT NULL, step INTEGER NOT NULL, PRIMARY KEY (identity, step));
CREATE TABLE IF NOT EXISTS quarantined (
  identity TEXT PRIMARY KEY, at_s REAL NOT NULL, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS evals (
  attempt INTEGER NOT NULL, step INTEGER NOT NULL, at_s REAL NOT NULL, loss REAL NOT NULL,
  tokens INTEGER NOT NULL, discarded INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (attempt, step));
"""


class StoreError(Exception):
    """The state directory cannot be used: says what was found and what to do."""


def lock_state_dir(state_dir: Path) -> IO[str]:
    """Take the directory for this process; held until the returned file is closed or the process ends.

    Raises StoreError if another coordinator has it, or if it cannot be written.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        held = (state_dir / LOCK).open("a+")
    except OSError as e:
        raise StoreError(
            f"{state_dir}: found that it cannot be written ({e.strerror}); give another --state-dir"
        ) from e
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        held.seek(0)
        pid = held.read().strip() or "unknown"
        held.close()
        raise StoreError(
            f"{state_dir}: found another coordinator using it (process {pid}); "
            "stop it or give another --state-dir"
        ) from e
    held.seek(0)
    held.truncate()
    held.write(str(os.getpid()))
    held.flush()
    return held


class Store:
    """The open database of one state directory. Times are seconds since 1970, passed in."""

    def __init__(self, state_dir: Path, *, read_only: bool = False) -> None:
        path = state_dir / DATABASE
        if read_only and not path.exists():
            raise StoreError(f"{state_dir}: found no {DATABASE}, required the state directory of a run")
        try:
            uri = f"{path.absolute().as_uri()}{'?mode=ro' if read_only else ''}"
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            if not read_only:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.executescript(_SCHEMA)
            row = self._db.execute("SELECT * FROM run").fetchone()
        except sqlite3.Error as e:
            raise StoreError(f"{path}: found {e}, required a database that isthmus wrote") from e
        if row is not None and row["schema"] != SCHEMA_VERSION:
            raise StoreError(f"{path}: found schema {row['schema']}, required {SCHEMA_VERSION}")
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
        row = self._db.execute(sql, args).fetchone()
        return None if row is None else row[0]

    def rows(self, sql: str, *args: Any) -> list[sqlite3.Row]:
        """All rows of a query, for readers of history."""
        return self._db.execute(sql, args).fetchall()

    # ---- the run and its attempts

    def run(self) -> sqlite3.Row | None:
        """The run that the directory holds, or None."""
        rows = self.rows("SELECT * FROM run")
        return rows[0] if rows else None

    def create(self, run: str, job_json: str, now_s: float) -> None:
        """Begin a run in an empty directory."""
        self._db.execute(
            "INSERT INTO run VALUES (1, ?, ?, ?, ?, 'gathering', NULL, '')",
            (SCHEMA_VERSION, run, job_json, now_s),
        )

    def begin_attempt(self, start_step: int, job_json: str, now_s: float) -> None:
        """The run is taken up at `start_step`; what was done from there on is discarded."""
        self.attempt += 1
        self._db.execute("BEGIN")
        self._discard_from(start_step)
        self._db.execute(
            "INSERT INTO attempts VALUES (?, ?, ?, NULL, NULL, NULL)", (self.attempt, start_step, now_s)
        )
        self._db.execute(
            "UPDATE run SET job_json = ?, code = NULL, phase = 'gathering', reason = ''", (job_json,)
        )
        self._db.execute("COMMIT")

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
        done_here = self._scalar("SELECT count(*) FROM steps WHERE attempt = ?", self.attempt)
        if not done_here:  # this attempt has only begun: it begins further back
            self._discard_from(step)
            self._db.execute("UPDATE attempts SET start_step = ? WHERE attempt = ?", (step, self.attempt))
            return
        job_json = self._scalar("SELECT job_json FROM run")
        self._db.execute(
            "UPDATE attempts SET ended_s = ?, reason = ? WHERE attempt = ?", (now_s, reason, self.attempt)
        )
        self.begin_attempt(step, job_json, now_s)

    def set_phase(self, phase: str, reason: str) -> None:
        self._db.execute("UPDATE run SET phase = ?, reason = ?", (phase, reason))

    def end_attempt(self, phase: str, code: ExitCode, reason: str, now_s: float) -> None:
        self._db.execute("BEGIN")
        self._db.execute("UPDATE run SET phase = ?, code = ?, reason = ?", (phase, int(code), reason))
        self._db.execute(
            "UPDATE attempts SET ended_s = ?, code = ?, reason = ? WHERE attempt = ?",
            (now_s, int(code), reason, self.attempt),
        )
        self._db.execute("COMMIT")

    # ---- what happens

    def event(self, kind: str, body: dict[str, Any], now_s: float) -> None:
        self._db.execute(
            "INSERT INTO events (attempt, at_s, kind, body) VALUES (?, ?, ?, ?)",
            (self.attempt, now_s, kind, json.dumps(body)),
        )

    def plan(self, plan: Plan, now_s: float) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO plans VALUES (?, ?, ?, ?)",
            (self.attempt, plan.version, now_s, json.dumps(asdict(plan))),
        )

    def step(self, r: RecordStep, predicted_s: float, now_s: float) -> None:
        """A committed step and the samples it consumed, together or not at all."""
        self._db.execute("BEGIN")
        self._db.execute(
            "INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
            (
                self.attempt, r.step, now_s, r.plan_version, r.loss, r.tokens, r.grad_norm,
                r.duration_s, predicted_s, r.sent_bytes, r.raw_bytes,
            ),
        )  # fmt: skip
        self._db.execute(
            "INSERT INTO samples VALUES (?, ?, ?, ?, 0)", (self.attempt, r.step, r.first_sample, r.end_sample)
        )
        self._db.execute("COMMIT")

    def evaluation(self, r: RecordEval, now_s: float) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO evals VALUES (?, ?, ?, ?, ?, 0)",
            (self.attempt, r.step, now_s, r.loss, r.tokens),
        )

    def conduct(self, r: RecordConduct, now_s: float) -> None:
        """Whose numbers were bad, and who is out for that: it outlasts the coordinator."""
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT OR IGNORE INTO conduct VALUES (?, ?)",
            [(who, step) for who, steps in r.conduct.faults.items() for step in steps],
        )
        self._db.executemany(
            "INSERT OR IGNORE INTO quarantined VALUES (?, ?, ?)",
            [(who, now_s, r.reason) for who in sorted(r.quarantined)],
        )
        self._db.execute("COMMIT")

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
