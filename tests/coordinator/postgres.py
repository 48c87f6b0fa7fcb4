"""A private Postgres cluster for tests, where its programs and `psycopg` are installed."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _programs() -> Path | None:
    """Debian keeps them beside the path, by version."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@contextmanager
def postgres(directory: Path) -> Iterator[str]:
    """The URL of an empty database. Skips, with its reason, where there is no server or driver."""
    pytest.importorskip("psycopg", reason="found no psycopg: pip install 'isthmus[postgres]'")
    programs = _programs()
    if programs is None or not (programs / "initdb").exists():
        pytest.skip("found no Postgres server: apt-get install postgresql")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    data = directory / "postgres"
    as_whom = _unprivileged(directory)
    run = [*as_whom, str(programs / "initdb"), "-D", str(data), "-U", "isthmus", "-A", "trust", "--no-sync"]
    subprocess.run(run, check=True, capture_output=True, cwd=directory)
    options = f"-p {port} -k {directory} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [*as_whom, str(programs / "pg_ctl"), "-D", str(data), "-w", "-l", str(directory / "log")]
    subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True, cwd=directory)
    try:
        yield f"postgresql://isthmus@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd=directory)


def _unprivileged(directory: Path) -> list[str]:
    """The server refuses to be root's: as root it is run by the user of Debian's package."""
    import os

    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    try:
        shutil.chown(directory, "postgres")
    except LookupError:
        setpriv = None
    if setpriv is None:
        pytest.skip("found root and no user `postgres`, required to run the server")
    return [setpriv, "--reuid=postgres", "--regid=postgres", "--clear-groups"]
