"""Benchmarks of many processes that are told to end: nothing of theirs goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.survival import left_over

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("argv", [("faults", "--only", "all workers at once"), ("chaos", "--quick")])
def test_sigterm_leaves_no_process(argv: tuple[str, ...], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        f"tests.benchmarks.{argv[0]}",
        *argv[1:],
        "--keep",
        str(tmp_path / "runs"),
    ]
    with (tmp_path / "log").open("w") as log:
        program = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
    try:
        while not any(
            '"profiling"' in log.read_text() for log in tmp_path.glob("runs/*/logs/coordinator.log")
        ):
            assert program.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        assert len(left_over(tmp_path)) > 4  # all of the first run
        program.terminate()
        assert program.wait() == 128 + signal.SIGTERM
        assert left_over(tmp_path) == []
    finally:
        program.kill()
