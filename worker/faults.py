"""Faults on order, for tests: this process dies, stops for a while or is told to leave at a known moment.

    plan:rank:phase@step:how     1:2:backward@7:kill    the holder of rank 2 under plan 1, in step 7
                                 1:0:commit@3:stop=2    is stopped for two seconds
                                 2:1:save@10:term       is told to leave while it saves

A fault happens once, in the process that holds the rank then. Real runs have none.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Phase = Literal["forward", "backward", "reduction", "vote", "commit", "save"]
Reached = Callable[[Phase, int, int, int], None]
"""(phase, step, plan version, rank): called when a rank is there."""

_FORM = re.compile(r"(\d+):(\d+):([a-z]+)@(\d+):(kill|term|stop=(\d+(?:\.\d+)?))")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to happen when this moment is reached."""

    plan_version: int
    rank: int
    phase: str
    step: int
    how: str
    stop_s: float = 0.0


def parse_fault(text: str) -> Fault:
    """Raises ValueError for what is not of the form above."""
    m = _FORM.fullmatch(text)
    if m is None or m[3] not in get_args(Phase):
        raise ValueError(
            f"found the fault {text!r}, required plan:rank:phase@step:how with a phase of "
            f"{', '.join(get_args(Phase))} and kill, term or stop=SECONDS"
        )
    return Fault(int(m[1]), int(m[2]), m[3], int(m[4]), m[5].partition("=")[0], float(m[6] or 0))


def no_faults(phase: Phase, step: int, plan_version: int, rank: int) -> None:
    """Nothing ever happens."""


class Faults:
    """Those that are still to happen in this process."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._left = set(faults)

    def reached(self, phase: Phase, step: int, plan_version: int, rank: int) -> None:
        here = (plan_version, rank, phase, step)
        for fault in [f for f in self._left if (f.plan_version, f.rank, f.phase, f.step) == here]:
            self._left.discard(fault)
            _happen(fault)


def _happen(fault: Fault) -> None:
    pid = os.getpid()
    if fault.how == "kill":
        os.kill(pid, signal.SIGKILL)
    elif fault.how == "term":
        os.kill(pid, signal.SIGTERM)
    else:
        # Whoever is stopped cannot wake itself.
        subprocess.Popen(["sh", "-c", f"sleep {fault.stop_s}; kill -CONT {pid}"], start_new_session=True)
        os.kill(pid, signal.SIGSTOP)
