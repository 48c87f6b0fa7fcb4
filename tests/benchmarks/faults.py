"""Every way to fail in every phase of a step, with a living replica and without one, on real processes.

    python -m tests.benchmarks.faults [--only WORD ...] [--quick] [--out FILE]

A row of the matrix is a way (`worker/faults.py`'s table) with two replicas or with one. Its run meets the
fault in each of the six phases, one after the other, in steps of their own; spares stand by where it costs a
worker. Then comes what is more than one fault: two at once, a worker that flaps, all workers at once, a donor
that is lost while it serves, a coordinator killed in each state that a run has. Every run must end with the
weights of the undisturbed one, bit for bit (within TOLERANCE where all workers are lost and the first who are
back go on as fewer replicas), an exact ledger, all faults met and no process left over. The last line is
JSON; the exit code is 1 if a run did not. --quick: four rows. --only: rows that have all these words. --part
I/N: every N-th row from the I-th on, for N of them side by side.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local import LocalCluster
from deploy.processes import Child, Event
from scheduler.exit_codes import ExitCode
from tests.benchmarks.command import end_in_order
from tests.survival import (
    N_FILES,
    SAVE_EVERY,
    cluster_of,
    fail_at,
    furthest,
    happened,
    ledger_defect,
    left_over,
    weights,
)
from worker.faults import HOWS, PHASES

STEPS = 18
TIMES: dict[str, Any] = {"wait_for_workers_s": 120.0, "rejoin_timeout_s": 120.0}
COSTS_A_WORKER = ("kill", "term", "cut", "stop")
"""A spare stands by for each of these."""
SECONDS = {"stop": 12.0, "mute": 60.0, "slow": 1.0, "full": 2.0, "clock": 86400.0}
STEP_OF = dict(zip(PHASES, (1, 3, 5, 7, 9, 3 * SAVE_EVERY), strict=True))
QUICK = ("kill, a replica lives", "kill, none lives", "reset, a replica lives", "two at once")
TOLERANCE = 1e-5
"""Of a tensor's largest number: float32 added up in another order, over all steps, optimizer state too."""
KILLED_IN = ("profiling", "measuring", "planning", "loading", "running", "evaluating", "saving")

Follow = Callable[[LocalCluster, list[Event]], int]
"""Sees a run through: its exit code. What the coordinator says joins the list."""


@dataclass(frozen=True, slots=True)
class Row:
    """One run: what it is called, what its workers are told, and who follows it."""

    name: str
    replicas: int
    spares: int
    faults: tuple[str, ...]
    """Of every worker: whoever holds the rank under that plan meets it."""
    follow: Follow
    same_bits: bool = True
    """False: the run may go on with another number of replicas, which adds up in another order."""


# ---- how a run is followed


def to_its_end(cluster: LocalCluster, events: list[Event]) -> int:
    events += cluster.events()
    return cluster.wait()


def killing(who: Callable[[list[list[str]]], list[str]], at_step: int, start_again: bool = False) -> Follow:
    """Kills workers of the plan after a step, and starts them again if asked, as a supervisor would."""

    def follow(cluster: LocalCluster, events: list[Event]) -> int:
        placement: list[list[str]] = []
        left = [at_step]
        for event in cluster.events():
            events.append(event)
            if event["event"] == "plan":
                placement = event["placement"]
            if event["event"] == "step" and left and event["step"] == left[0]:
                left.clear()
                for name in (names := who(placement)):
                    cluster.workers[name].kill()
                for name in names if start_again else ():
                    cluster.workers[name].process.wait()
                    cluster.start_worker(name)
        return cluster.wait()

    return follow


def flapping(times: int) -> Follow:
    """One worker is killed again and again, as soon as it is back."""

    def follow(cluster: LocalCluster, events: list[Event]) -> int:
        left = times
        for event in cluster.events():
            events.append(event)
            comes = event["event"] == "joined" and event["name"] == "w1"
            if left and (comes or (event["event"] == "step" and event["step"] == 2 and left == times)):
                left -= 1
                cluster.workers["w1"].kill()
                cluster.workers["w1"].process.wait()
                cluster.start_worker("w1")
        return cluster.wait()

    return follow


def donor_lost(cluster: LocalCluster, events: list[Event]) -> int:
    """A rank is lost, and one whose replica is to hand the layers over as soon as there is a plan for it."""
    left = ["w1"]
    for event in cluster.events():
        events.append(event)
        if event["event"] == "step" and event["step"] == 6 and left:
            cluster.workers[left.pop()].kill()
            left = []
        if event["event"] == "recovery" and cluster.workers["w3"].running:
            cluster.workers["w3"].kill()
    return cluster.wait()


def coordinator_killed(phase: str) -> Follow:
    """Killed as it says that it is in this phase, and started again on its port."""

    def follow(cluster: LocalCluster, events: list[Event]) -> int:
        for event in cluster.events():
            events.append(event)
            if event["event"] == "phase" and event["phase"] == phase:
                cluster.coordinator.kill()
        port = cluster.address.rpartition(":")[2]
        again = Child(
            "again", cluster.coordinator_argv(f"127.0.0.1:{port}", resume=True), cluster.logs / "again.log"
        )
        try:
            events += again.events()
            code = again.process.wait()
        finally:
            again.stop()
        for child in cluster.workers.values():
            child.process.wait(60)
        return code

    return follow


# ---- the matrix


def rows() -> Iterator[Row]:
    for how in (name for name, h in HOWS.items() if not h.silent):  # a lie is what spot checks are for
        for replicas in (2, 1):
            yield matrix_row(how, replicas)
    yield Row("two at once", 2, 2, ("1:0:backward@3:kill", "1:1:backward@3:kill"), to_its_end)
    yield Row("two at once, of one stage", 2, 2, ("1:1:forward@6:kill", "1:3:forward@6:kill"), to_its_end)
    yield Row("a worker that flaps", 2, 1, (), flapping(4))
    everybody = killing(lambda p: [name for row in p for name in row], at_step=6, start_again=True)
    yield Row("all workers at once", 2, 0, (), everybody, same_bits=False)
    yield Row("a donor lost while it serves", 2, 2, (), donor_lost)
    for phase in KILLED_IN:
        yield Row(f"coordinator killed while {phase}", 2, 0, (), coordinator_killed(phase))


def matrix_row(how: str, replicas: int) -> Row:
    """Faults in all phases; the holder of another rank each time."""
    costs = how in COSTS_A_WORKER
    seconds = f"={SECONDS[how]:g}" if HOWS[how].timed else ""
    faults = []
    for i, phase in enumerate(PHASES):
        rank = i % 2 if phase == "save" else i % (2 * replicas)  # the first replica saves
        faults.append(f"*:{rank}:{phase}@{STEP_OF[phase]}:{how}{seconds}")
    name = f"{how}, {'a replica lives' if replicas == 2 else 'none lives'}"
    return Row(name, replicas, len(PHASES) if costs else 0, tuple(faults), to_its_end)


def defects(directory: Path, row: Row, name: str, undisturbed: dict[str, str]) -> list[str]:
    """Run it; what is not as it must be."""
    events: list[Event] = []
    options_of = {"worker": fail_at(*row.faults)}
    with cluster_of(directory, name, row.replicas, STEPS, row.spares, options_of, **TIMES) as cluster:
        try:
            code = row.follow(cluster, events)
        except BaseException:
            cluster.kill()
            raise
    found = []
    if code != ExitCode.OK:
        found.append(f"exit code {code}: {events[-1].get('reason', '')}")
    else:
        if wrong := ledger_defect(directory, name, STEPS):
            found.append(wrong)
        if weights(directory, name, STEPS) != undisturbed:
            off = furthest(directory, name, f"undisturbed-{row.replicas}", STEPS)
            if row.same_bits or off > TOLERANCE:
                found.append(f"the weights are off by {off:.1e} of the largest")
    met = happened(directory, name)
    for fault in row.faults:
        asked = ":".join(fault.partition("=")[0].split(":")[2:])
        if asked not in met:
            found.append(f"{asked} did not happen")
    if left := left_over(directory):
        found.append(f"{len(left)} processes are left")
    return found


def part(text: str) -> tuple[int, int]:
    """(I, N) of "I/N"."""
    i, _, n = text.partition("/")
    if not (i.isdigit() and n.isdigit() and 1 <= int(i) <= int(n)):
        raise argparse.ArgumentTypeError(f"found {text!r}, required I/N with I of 1 to N")
    return int(i), int(n)


def main() -> int:
    end_in_order()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="words that a row's name must have")
    parser.add_argument("--quick", action="store_true", help=f"the rows {'; '.join(QUICK)}")
    parser.add_argument("--part", type=part, default=(1, 1), metavar="I/N", help="every N-th of these rows")
    parser.add_argument("--keep", type=Path, help="a new folder for the runs' state and logs")
    parser.add_argument("--out", type=Path, help="also write what is printed to this file")
    asked = parser.parse_args()
    chosen = [r for r in rows() if all(w in r.name for w in asked.only)]
    chosen = [r for r in chosen if r.name in QUICK] if asked.quick else chosen
    chosen = chosen[asked.part[0] - 1 :: asked.part[1]]
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    missed = {}
    with tempfile.TemporaryDirectory() as temporary:
        directory = asked.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        undisturbed = {}
        for replicas in sorted({r.replicas for r in chosen}):
            with cluster_of(directory, f"undisturbed-{replicas}", replicas, STEPS, 0) as cluster:
                if to_its_end(cluster, []) != ExitCode.OK:
                    say(f"the undisturbed run of {replicas} replicas failed")
                    return 1
            undisturbed[replicas] = weights(directory, f"undisturbed-{replicas}", STEPS)
            assert len(undisturbed[replicas]) == N_FILES
        for i, row in enumerate(chosen):
            began_s = time.monotonic()
            wrong = defects(directory, row, f"run-{i}", undisturbed[row.replicas])
            right = "same bits" if row.same_bits else f"within {TOLERANCE:g}"
            seconds = f"{time.monotonic() - began_s:>5.0f} s"
            say(f"{row.name:<40} {len(row.faults) or 1:>2} {seconds}  {'; '.join(wrong) or right}")
            if wrong:
                missed[row.name] = wrong
    say(json.dumps({"benchmark": "faults", "rows": len(chosen), "missed": missed}))
    if asked.out:
        asked.out.write_text("\n".join(lines) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
