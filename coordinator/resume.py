"""Opens a state directory for a run: a new one, or the one it holds, from its last good checkpoint.

Refuses to mix two runs in a directory, to continue with another model, data or seed, and to take
an earlier checkpoint than the last without being told to.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from scheduler.exit_codes import ExitCode
from scheduler.job import JobError, JobSpec, job_from_json, job_to_json
from scheduler.lease import LEASE_S
from scheduler.reasons import reason_of

from .checkpoints import CheckpointCorrupt, CheckpointError, CheckpointStore
from .records import OVER, Restore, TakenUp
from .state_dir import StoreError, lock_state_dir
from .store import Store

FIXED_KEYS = ("model", "data", "sequence_length", "global_batch", "optimizer", "precision", "seed")
"""What must not change when a run is continued: the losses would be another run's."""
TOKEN_FILE = "token"
CHECK_KEY_FILE = "spot_checks.key"
MAX_KEY_BYTES = 64
"""BLAKE2's."""
ADDRESS_FILE = "address"


class OpenError(Exception):
    """The run cannot be opened; `code` is what the command exits with."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class OpenRun:
    """An open state directory. `lock` is held as long as the run is."""

    run: str
    state_dir: Path
    store: Store
    checkpoints: CheckpointStore
    restore: Restore | None
    lock: IO[str] | None
    """None: a lease is held instead."""
    notes: tuple[str, ...] = ()
    taken_up: TakenUp | None = None
    """Where the run stood, for workers that still stand there."""
    plan_version: int = 0
    """Of the last plan that was made."""
    over: str = ""
    """Why there is nothing left to do: the run was ended with all its steps; '' for one that goes on."""

    def close(self) -> None:
        self.store.close()
        if self.lock is not None:
            self.lock.close()


def open_run(
    state_dir: Path,
    job: JobSpec,
    *,
    resume: bool,
    resume_step: int | None,
    now_s: float,
    holder: str = "",
    lease_s: float = LEASE_S,
) -> OpenRun:
    """`holder`: in whose name the run's lease is taken; '': there is none, the directory is locked instead.
    Raises OpenError with the exit code and what to do."""
    going_on = resume or resume_step is not None
    if holder:
        return _open(state_dir, job, going_on, resume_step, now_s, None, (holder, lease_s))
    try:
        lock = lock_state_dir(state_dir)
    except StoreError as e:
        raise OpenError(ExitCode.STATE_DIR, str(e)) from e
    try:
        return _open(state_dir, job, going_on, resume_step, now_s, lock)
    except BaseException:
        lock.close()
        raise


def _open(
    state_dir: Path,
    job: JobSpec,
    resume: bool,
    resume_step: int | None,
    now_s: float,
    lock: IO[str] | None,
    lease: tuple[str, float] | None = None,
) -> OpenRun:
    try:
        store = Store(state_dir)
    except StoreError as e:
        raise OpenError(ExitCode.STATE_DIR, str(e)) from e
    checkpoints = CheckpointStore(state_dir)
    try:
        if lease is not None and store.take_lease(lease[0], now_s, lease[1]) is None:
            by = store.held_by()
            who = by.holder if by else "another"
            raise OpenError(
                ExitCode.STATE_DIR,
                f"found that {who} drives the run; stop it, or pass --standby to wait until it is gone",
            )
        held = store.run()
        notes: list[str] = []
        if held is None and resume:
            raise OpenError(
                ExitCode.CHECKPOINT_MISSING,
                f"{state_dir}: found no run to resume; check --state-dir, or start without --resume",
            )
        if held is not None and not resume:
            ran = store.rows("SELECT count(*) AS n FROM steps")[0]["n"]
            if ran or checkpoints.steps():
                raise OpenError(
                    ExitCode.STATE_DIR,
                    f"{state_dir}: found run {held['run']} ({held['phase']}, {ran} steps); "
                    "pass --resume to continue it, or give another --state-dir",
                )
        run = held["run"] if held is not None else f"{job.name}-{secrets.token_hex(3)}"
        restore, taken_up = None, None
        if held is None:
            store.create(run, job_to_json(job), now_s)
        elif resume:
            _same_job(job, held["job_json"])
            restore, said = _restore(checkpoints, resume_step)
            if restore is not None and restore.step >= job.steps and held["phase"] in OVER:
                over = (
                    f"all {restore.step} steps were done already; raise `steps` in the job to go on, or take "
                    "the model out by `worker export CHECKPOINT DIR`"
                )
                if lease is not None:
                    store.give_lease_back()
                return OpenRun(run, state_dir, store, checkpoints, restore, lock, over=over)
            notes += said
            taken_up = store.last_commit() if resume_step is None else None
            if restore is not None and taken_up is not None and taken_up.done < restore.step:
                taken_up = None  # the history was not written; the checkpoint is further
        first = taken_up.done if taken_up else restore.step if restore else 0
        store.begin_attempt(first, job_to_json(job), now_s)
        if resume and first >= job.steps:  # its coordinator died: its workers, if they wait, are to be told
            notes.append(
                f"all {job.steps} steps are done, the run was not ended: it ends once workers are back"
            )
        aside = checkpoints.set_aside_after(restore.step if restore else -1)
        if aside:
            notes.append(
                f"checkpoints {', '.join(map(str, aside))} were renamed to aside-…: the run goes on before"
            )
    except BaseException:
        store.close()
        raise
    version = store.last_plan_version()
    return OpenRun(run, state_dir, store, checkpoints, restore, lock, tuple(notes), taken_up, version)


def ended(opened: OpenRun) -> dict[str, Any]:
    """The event by which a run that is over says once more what became of it."""
    restore = opened.restore
    assert restore is not None
    return {
        "event": "finished", "code": int(ExitCode.OK), "reason": opened.over,
        "step": restore.step, "steps": restore.step, "loss": restore.loss, "eval_loss": restore.eval_loss,
        "tokens": 0, "seconds": 0.0,
        "checkpoint": str(opened.checkpoints.directory(restore.step)), "state_dir": str(opened.state_dir),
    }  # fmt: skip


def _same_job(job: JobSpec, held_json: str) -> None:
    try:
        held = job_from_json(held_json, "the run's job")
    except JobError as e:
        raise OpenError(
            ExitCode.STATE_DIR, f"the run was started with a job this version cannot read: {e}"
        ) from e
    ours, theirs = job.model_dump(), held.model_dump()
    ours["model"], theirs["model"] = job.shape.model_dump(), held.shape.model_dump()
    for key in FIXED_KEYS:
        if ours[key] != theirs[key]:
            raise OpenError(
                ExitCode.STATE_DIR,
                f"--resume: found `{key}` = {ours[key]!r} in the job, the run began with {theirs[key]!r}; "
                "restore it, or start another run in another --state-dir",
            )


def _restore(checkpoints: CheckpointStore, step: int | None) -> tuple[Restore | None, list[str]]:
    steps = checkpoints.steps()
    if not steps and step is None:
        return None, ["there is no checkpoint yet: the run starts again from step 0, with the same seed"]
    try:
        manifest = checkpoints.verify(step if step is not None else steps[-1])
    except CheckpointCorrupt as e:
        raise OpenError(ExitCode.CHECKPOINT_CORRUPT, str(e)) from e
    except CheckpointError as e:
        raise OpenError(ExitCode.CHECKPOINT_MISSING, str(e)) from e
    note = (
        f"continues from the checkpoint of step {manifest.step} ({len(manifest.files)} files, all verified)"
    )
    return Restore(manifest.step, manifest.files, manifest.eval_loss, manifest.loss), [note]


def token(state_dir: Path, token_file: Path | None) -> tuple[str, Path]:
    """The run's token, made on first use in a file that only its owner can read. Raises OpenError."""
    path = token_file or state_dir / TOKEN_FILE
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(secrets.token_urlsafe(32) + "\n")
    except FileExistsError:
        pass
    except OSError as e:
        raise OpenError(ExitCode.STATE_DIR, f"{path}: the token cannot be written ({e.strerror})") from e
    return read_token(path), path


def check_key(state_dir: Path) -> bytes:
    """What spot checks are drawn by: made on first use, nobody's but the coordinator's. Raises OpenError."""
    path = state_dir / CHECK_KEY_FILE
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(secrets.token_bytes(32))
    except FileExistsError:
        pass
    except OSError as e:
        raise OpenError(ExitCode.STATE_DIR, f"{path}: the key cannot be written ({e.strerror})") from e
    return path.read_bytes()[:MAX_KEY_BYTES]


def read_token(path: Path) -> str:
    """Raises OpenError if there is none."""
    try:
        found = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as e:
        reason = f"{path}: found no token to read ({reason_of(e)}); pass --token-file"
        raise OpenError(ExitCode.TOKEN, reason) from e
    if len(found) < 16:
        raise OpenError(
            ExitCode.TOKEN, f"{path}: found {len(found)} characters, required a token of at least 16"
        )
    return found
