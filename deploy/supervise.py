"""Keep one command running: start it again when it ends, unless trying again cannot help.

What a service manager does, for machines that have none at hand (a node that Ray has set up over ssh). Knows
exit codes and nothing of what the command does; `restart_after` is pure, the loop around it is thin.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from scheduler.exit_codes import ExitCode, describe
from scheduler.reasons import reason_of

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
STEADY_S = 120.0
"""A command that ran this long was well: its next end counts as the first."""
FINAL = frozenset(
    {
        ExitCode.OK, ExitCode.USAGE, ExitCode.JOB_INVALID, ExitCode.PROTOCOL_VERSION, ExitCode.TOKEN,
        ExitCode.INSECURE_BIND, ExitCode.STATE_DIR, ExitCode.RUN_OVER, ExitCode.DIVERGED,
        ExitCode.INTERRUPTED,
    }
)  # fmt: skip
"""Ends that another start with the same words would only repeat."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Start again after `wait_s`; `failures` ends in a row have led here."""

    wait_s: float
    failures: int


def restart_after(code: int, ran_s: float, failures: int) -> Restart | None:
    """What follows an end with exit code `code` (negative: of a signal) after `ran_s`. None: it is final."""
    if code in FINAL:
        return None
    failures = 1 if ran_s >= STEADY_S else failures + 1
    return Restart(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures - 1, 30)), failures)


class AlreadySupervised(Exception):
    """Another supervisor holds the name: says which process."""


class CannotSupervise(Exception):
    """There is no such command, or no room for the name or the log: says what to do."""


class Supervisor:
    """One command under supervision. `start` starts it and is told how often that was done before; `run`
    blocks; `stop`, from any thread, ends command and supervision."""

    def __init__(
        self,
        start: Callable[[int], subprocess.Popen[str]],
        say: Callable[[str], None],
        grace_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start, self._say, self._grace_s, self._clock = start, say, grace_s, clock
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self.starts = 0

    def run(self) -> int:
        """Keep the command running until its end is final or `stop` was called; the last exit code."""
        failures = 0
        while True:
            began_s = self._clock()
            with self._lock:
                if self._stopping.is_set():
                    return int(ExitCode.INTERRUPTED)
                self._child = self._start(self.starts)
            self.starts += 1
            code = self._child.wait()
            again = restart_after(code, self._clock() - began_s, failures)
            if again is None or self._stopping.is_set():
                self._say(f"ended for good: {describe(code)}")
                return code
            failures = again.failures
            self._say(f"ended with {describe(code)}; starts again in {again.wait_s:g} s")
            if self._stopping.wait(again.wait_s):
                return code

    def stop(self) -> None:
        """SIGTERM to the command, SIGKILL to it and its children after the grace; idempotent."""
        self._stopping.set()
        with self._lock:
            child = self._child
        if child is None or child.poll() is not None:
            return
        child.terminate()
        try:
            child.wait(self._grace_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)


def supervise(name: str, argv: Sequence[str], run_dir: Path, log: Path | None, detach: bool) -> int:
    """Supervise `argv` under `name`, which one supervisor of `run_dir` may hold. With `detach` the caller
    goes on at once and the log is the only voice. Raises AlreadySupervised, CannotSupervise."""
    if shutil.which(argv[0]) is None:
        raise CannotSupervise(
            f"{argv[0]}: found no such command; required one on PATH or by its path, after `--`"
        )
    try:
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.open("a").close()
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = _hold(run_dir / f"{name}.lock", name)
    except OSError as error:
        raise CannotSupervise(
            f"{error.filename}: found that it cannot be written ({reason_of(error)}); "
            "give another --run-dir or --log"
        ) from error
    if detach and not _leave_terminal():
        return int(ExitCode.OK)
    lock.seek(0)
    lock.truncate()
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    with lock, log.open("a", encoding="utf-8") if log is not None else nullcontext(sys.stderr) as out:

        def start(starts: int) -> subprocess.Popen[str]:  # noqa: ARG001 (the same words every time)
            return subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                text=True,
                start_new_session=True,
            )

        supervisor = Supervisor(
            start, lambda words: print(f"supervise {name}: {words}", file=out, flush=True)
        )

        def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (the signature is Python's)
            threading.Thread(target=supervisor.stop).start()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, on_signal)
        return supervisor.run()


def _hold(path: Path, name: str) -> IO[str]:
    held = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.seek(0)
        pid = held.read().strip()
        held.close()
        raise AlreadySupervised(
            f"{name} is supervised already, by process {pid}; stop that one first"
        ) from None
    return held


def _leave_terminal() -> bool:
    """Go on in a process of its own (True there, False in the one that was called)."""
    if os.fork() != 0:
        return False
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    return True
