"""Faults on order, for tests: at a known moment this process, its connections, its disk or its clock fails.

    plan:rank:phase@step:how     1:2:backward@7:kill    the holder of rank 2 under plan 1, in step 7
                                 1:0:commit@3:stop=2    is stopped for two seconds
                                 2:1:save@10:term       is told to leave while it saves
                                 *:2:vote@4:kill        whoever holds rank 2 by then
                                 *:*:vote@4:reset       this worker, whatever it holds by then

A fault happens once, in the process that holds the rank then; under any plan, once among all workers that
share a state directory, so that who takes the place does not meet it again. What can be ordered is the table
HOWS. Real runs have no faults but their own.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from worker import faulty_sockets, lies

Phase = Literal["forward", "backward", "reduction", "vote", "commit", "save"]
PHASES: tuple[Phase, ...] = get_args(Phase)
Reached = Callable[[Phase, int, int, int], None]
"""(phase, step, plan version, rank): called when a rank is there."""


@dataclass(frozen=True, slots=True)
class How:
    """A way to fail. `does(seconds, coordinator's port)`; `timed`: whether it must be said for how long."""

    says: str
    does: Callable[[float, int], None]
    timed: bool = False
    linux: bool = False
    silent: bool = False
    """Whether the run goes on as if nothing were."""


def _stop(seconds: float, _: int) -> None:
    # Whoever is stopped cannot wake itself.
    pid = os.getpid()
    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {pid}"], start_new_session=True)
    os.kill(pid, signal.SIGSTOP)


def _full(seconds: float, _: int) -> None:
    import resource  # not on Windows

    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
    _later(seconds, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (before, most)))


def _clock(seconds: float, _: int) -> None:
    # Ahead only: gRPC makes deadlines of this clock and keeps them by the kernel's, which stays as it is.
    true = time.time
    time.time = lambda: true() + seconds


def _later(seconds: float, what: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, what)
    timer.daemon = True
    timer.start()


def _mute(seconds: float, port: int) -> None:
    muted = faulty_sockets.mute(port)
    _later(seconds, lambda: faulty_sockets.unmute(muted))


def _slow(seconds: float, port: int) -> None:
    slowed = faulty_sockets.slow(port, SLOW_BPS)
    _later(seconds, lambda: faulty_sockets.as_fast_as_before(slowed))


SLOW_BPS = 20_000
HOWS: dict[str, How] = {
    "kill": How("kill -9", lambda _s, _p: os.kill(os.getpid(), signal.SIGKILL)),
    "term": How("SIGTERM, as a spot machine's notice", lambda _s, _p: os.kill(os.getpid(), signal.SIGTERM)),
    "stop": How("SIGSTOP, and SIGCONT after so many seconds", _stop, timed=True),
    "cut": How(
        "the session's connection is reset", lambda _, port: faulty_sockets.reset(port, True), linux=True
    ),
    "reset": How(
        "every tensor connection is reset", lambda _, port: faulty_sockets.reset(port, False), linux=True
    ),
    "corrupt": How(
        "bytes that nobody sent join every tensor connection",
        lambda _, port: faulty_sockets.corrupt(port),
        linux=True,
    ),
    "mute": How(
        "half-open: nothing comes in over the tensor connections that are open, for so many seconds",
        _mute,
        timed=True,
        linux=True,
    ),
    "slow": How(
        f"tensor connections carry {SLOW_BPS} bytes a second, for so many seconds",
        _slow,
        timed=True,
        linux=True,
    ),
    "full": How("no file can grow, for so many seconds", _full, timed=True),
    "lie": How(
        f"what it computes comes out {lies.FACTOR} times as large, for so many seconds",
        lambda seconds, _: lies.lie(seconds),
        timed=True,
        silent=True,
    ),
    "late": How(
        "the phase takes so many seconds longer, and nothing else stands still",
        lambda seconds, _: time.sleep(seconds),
        timed=True,
        silent=True,
    ),
    "clock": How("the clock on the wall jumps ahead by so many seconds", _clock, timed=True),
}
_FORM = re.compile(r"(\d+|\*):(\d+|\*):([a-z]+)@(\d+):([a-z]+)(?:=(\d+(?:\.\d+)?))?")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to happen when this moment is reached."""

    plan_version: int | None
    """None: whatever plan."""
    rank: int | None
    """None: whatever rank this process holds."""
    phase: str
    step: int
    how: str
    seconds: float = 0.0

    def is_at(self, phase: str, step: int, plan_version: int, rank: int) -> bool:
        if self.plan_version not in (None, plan_version) or self.rank not in (None, rank):
            return False
        return (self.phase, self.step) == (phase, step)


def parse_fault(text: str) -> Fault:
    """Raises ValueError for what is not of the form above."""
    m = _FORM.fullmatch(text)
    if m is None or m[3] not in PHASES or m[5] not in HOWS or HOWS[m[5]].timed != (m[6] is not None):
        hows = ", ".join(f"{name}=SECONDS" if how.timed else name for name, how in HOWS.items())
        raise ValueError(
            f"found the fault {text!r}, required plan:rank:phase@step:how (*: any plan or rank) "
            f"with a phase of {', '.join(PHASES)} and one of {hows}"
        )
    if HOWS[m[5]].linux and sys.platform != "linux":
        raise ValueError(f"found the fault {text!r} on {sys.platform}, required Linux for {m[5]}")
    plan_version, rank = (None if x == "*" else int(x) for x in m.group(1, 2))
    return Fault(plan_version, rank, m[3], int(m[4]), m[5], float(m[6] or 0))


def no_faults(phase: Phase, step: int, plan_version: int, rank: int) -> None:
    """Nothing ever happens."""


class Faults:
    """Those that are still to happen in this process; `say` is told of each as it does."""

    def __init__(
        self, faults: Iterable[Fault], coordinator_port: int, say: Callable[..., None], shared: Path
    ) -> None:
        self._left = set(faults)
        self._port, self._say, self._met = coordinator_port, say, shared / "faults"

    def reached(self, phase: Phase, step: int, plan_version: int, rank: int) -> None:
        for fault in [f for f in self._left if f.is_at(phase, step, plan_version, rank)]:
            self._left.discard(fault)
            if fault.plan_version is None and fault.rank is not None and not self._is_first(fault):
                continue
            how = HOWS[fault.how]
            self._say(
                "fault", how=fault.how, says=how.says, phase=phase, step=step, plan=plan_version, rank=rank
            )
            how.does(fault.seconds, self._port)

    def _is_first(self, fault: Fault) -> bool:
        """Whether no process that shares the state directory has met it. Creating a file decides."""
        self._met.mkdir(parents=True, exist_ok=True)
        try:
            (self._met / f"{fault.rank}-{fault.phase}-{fault.step}-{fault.how}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
