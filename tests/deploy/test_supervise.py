"""A command is kept running while that can help, under a name that one supervisor holds."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deploy.processes import command
from deploy.supervise import FIRST_WAIT_S, LONGEST_WAIT_S, STEADY_S, Supervisor, restart_after
from scheduler.exit_codes import ExitCode


def test_it_waits_longer_each_time_and_begins_anew_after_a_good_while() -> None:
    waits, failures = [], 0
    for _ in range(9):
        again = restart_after(ExitCode.UNREACHABLE, 1.0, failures)
        assert again is not None
        waits.append(again.wait_s)
        failures = again.failures
    assert waits[:3] == [FIRST_WAIT_S, 2 * FIRST_WAIT_S, 4 * FIRST_WAIT_S]
    assert waits[-1] == LONGEST_WAIT_S
    steady = restart_after(-signal.SIGKILL, STEADY_S, failures)
    assert steady is not None
    assert steady.wait_s == FIRST_WAIT_S


@pytest.mark.parametrize("code", [ExitCode.OK, ExitCode.TOKEN, ExitCode.RUN_OVER, ExitCode.USAGE])
def test_an_end_that_another_start_would_repeat_is_final(code: ExitCode) -> None:
    assert restart_after(code, 1000.0, 0) is None


def script(*words: str) -> list[str]:
    return [sys.executable, "-c", *words]


def test_a_command_that_fails_is_started_again_until_it_ends_well() -> None:
    said: list[str] = []

    def start(starts: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            script(f"raise SystemExit({0 if starts else int(ExitCode.UNREACHABLE)})"), text=True
        )

    supervisor = Supervisor(start, said.append)
    assert supervisor.run() == ExitCode.OK
    assert supervisor.starts == 2
    assert "UNREACHABLE" in said[0]


def test_stop_ends_the_command_and_it_is_not_started_again() -> None:
    started = threading.Event()
    children: list[subprocess.Popen[str]] = []

    def start(_: int) -> subprocess.Popen[str]:
        words = "import sys; print('up', flush=True); sys.stdin.read()"
        child = subprocess.Popen(
            script(words), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        started.set()
        return child

    supervisor = Supervisor(start, lambda _: None, grace_s=30.0)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(supervisor.run()))
    thread.start()
    assert started.wait(60)
    supervisor.stop()
    thread.join(60)
    [child] = children
    child.communicate()
    assert codes == [-signal.SIGTERM]


def test_the_command_line_keeps_a_name_once_and_passes_the_exit_code_on(tmp_path: Path) -> None:
    where = ["--run-dir", str(tmp_path)]
    failing = command("deploy", "supervise", "one", *where, "--", *script("raise SystemExit(8)"))
    done = subprocess.run(failing, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.TOKEN, done.stderr
    assert "ended for good: 8 TOKEN" in done.stderr
    waits = script("import sys; print('up', flush=True); sys.stdin.read(); import time; time.sleep(600)")
    first = subprocess.Popen(
        command("deploy", "supervise", "one", *where, "--", *waits), stderr=subprocess.PIPE, text=True
    )
    assert first.stderr is not None
    assert first.stderr.readline() == "up\n"
    second = subprocess.run(failing, capture_output=True, text=True, check=False)
    assert second.returncode == 0
    assert f"supervised already, by process {first.pid}" in second.stdout
    first.terminate()
    first.communicate(timeout=90)
    assert first.returncode == 128 + signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's end is Linux's")
def test_a_command_with_a_parent_ends_with_it() -> None:
    inner = "import sys; print('up', flush=True); sys.stdin.read(); import time; time.sleep(600)"
    outer = (
        "import os, subprocess, sys\n"
        "argv = [sys.executable, '-m', 'deploy.with_parent', str(os.getpid())]\n"
        f"argv += [sys.executable, '-c', {inner!r}]\n"
        "subprocess.Popen(argv, stdin=subprocess.DEVNULL).wait()"
    )
    parent = subprocess.Popen(script(outer), stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    parent.kill()
    rest, _ = parent.communicate(timeout=60)
    assert rest == ""  # the pipe ends only when the child is gone too
