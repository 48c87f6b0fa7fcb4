"""A state directory: whose it is while a coordinator runs, and where its history is, there or elsewhere.

Knows no table of the history; that is `store.py`.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from scheduler.reasons import reason_of

from .database import Database, DatabaseError, open_database

DATABASE = "run.sqlite"
ELSEWHERE = "store"
"""STATE/store: where the history is instead, a path or a URL; it may hold a password."""
LOCK = "coordinator.lock"


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
        raise not_writable(state_dir, e) from e
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


def where_of(state_dir: Path) -> str:
    """Where the directory's history is: a path, or a URL."""
    elsewhere = state_dir / ELSEWHERE
    return elsewhere.read_text().strip() if elsewhere.exists() else str(state_dir / DATABASE)


def keep_elsewhere(state_dir: Path, where: str) -> None:
    """Have the directory's history be at `where`, if it can be, for this command and all that come. Raises
    StoreError."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise not_writable(state_dir, e) from e
    path = state_dir / ELSEWHERE
    if path.exists() and path.read_text().strip() != where:
        raise StoreError(f"{path}: found that the run's history is elsewhere already; give the same --store")
    opened(where, read_only=False).close()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(f"{where}\n")


def opened(where: str, read_only: bool) -> Database:
    """Raises StoreError."""
    try:
        return open_database(where, read_only)
    except DatabaseError as e:
        is_file = "://" not in where
        required = "a database that isthmus wrote" if is_file else "a database that answers; check --store"
        raise StoreError(f"{without_password(where)}: found {e}, required {required}") from e


def without_password(where: str) -> str:
    """The place as it may be shown."""
    return where.rpartition("@")[2] if "://" in where else where


def not_writable(state_dir: Path, error: Exception) -> StoreError:
    """What is said of a directory that takes no file."""
    return StoreError(
        f"{state_dir}: found that it cannot be written ({reason_of(error)}); give another --state-dir"
    )
