"""`python -m deploy.healthy`: exit 0 while the program of this container is well, for a health check.

A coordinator answers `coordinator status` for its state directory; a worker has left a file that names its
process, which lives. Asks and reads nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from coordinator.resume import ADDRESS_FILE
from deploy.processes import command

ASK_TIMEOUT_S = 8.0


def trouble(environment: Mapping[str, str]) -> str:
    """What is wrong, '' if nothing is: of the coordinator if its address is there, else of the workers."""
    state = Path(environment.get("ISTHMUS_STATE_DIR", "runs/local"))
    address = state / ADDRESS_FILE
    if address.exists():
        return _coordinator(state)
    workers = Path(environment.get("ISTHMUS_WORKER_DIR", Path.home() / ".cache" / "isthmus"))
    files = sorted(workers.glob("worker-*.json"))
    if not files:
        return f"found neither {address} nor a worker's file in {workers}; required one of a running program"
    return "" if any(_lives(path) for path in files) else f"{workers}: found files of ended workers only"


def _coordinator(state: Path) -> str:
    ask = command("coordinator", "status", "--state-dir", str(state), "--json")
    try:
        done = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=ASK_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"the coordinator of {state} did not answer within {ASK_TIMEOUT_S:g} s"
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def _lives(path: Path) -> bool:
    try:
        os.kill(int(json.loads(path.read_text(encoding="utf-8"))["pid"]), 0)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def main() -> None:
    found = trouble(os.environ)
    if found:
        sys.exit(f"unhealthy: {found}")


if __name__ == "__main__":
    main()
