"""A run that is never left alone: faults at a rate, for a given time, and what they cost.

    python -m tests.benchmarks.chaos [--minutes 30] [--every 50] [--seed 0] [--quick]

Six workers are processes behind relays (every link 80 Mbit/s, 120 ms there and back), two stages of two
replicas and two spares. In a drawn one of every 50 steps one of the four ranks, drawn too, meets a fault
within the next step: kill -9, SIGTERM, or SIGSTOP for 12 s. What has ended is started again 5 s later, as a
supervisor would. Said at the end: steps committed and done again, the time from a fault to the next commit,
what of it passed until the coordinator knew, how fast newcomers got their layers, and goodput: committed
steps per second beside the same run without faults, which is measured before and after (a twentieth of the
time each) and, because machines are shared, also beside this run's own steps that no fault was near. Goals,
for one failure every 50 steps: goodput at least 0.9 by either measure, a fault noticed within 3 heartbeats,
layers at 0.7 of the link's bandwidth. The last lines are a table and one JSON; the exit code is 1 if a goal
is missed. --quick: three minutes, a fault every 15 steps, and only what does not hang on the rate is judged.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, permutations
from pathlib import Path
from statistics import median, quantiles

from coordinator.history import read_history
from coordinator.store import Store
from deploy.local import LinkOptions, LocalCluster, LocalOptions
from scheduler.liveness import HEARTBEAT_S
from scheduler.trace import About, Node, Trace, steady
from scheduler.trace_write import format_trace
from tests.benchmarks.command import end_in_order, ended

TEXT = Path(__file__).parent.parent / "data" / "text.txt"
WORKERS, GLOBAL_BATCH = 6, 16
BANDWIDTH_BPS, RTT_S = 1e7, 0.12
STOP_S, AGAIN_S = 12.0, 5.0
FIRST_STEPS = 5
"""That nothing happens in."""
HOWS = ("kill", "kill", "term", "stop")
"""Drawn from evenly: half of all failures are of a machine that is gone at once."""
GOODPUT, HEARTBEATS, BANDWIDTH = 0.9, 3.0, 0.7
JOB = f"""
name: chaos
model: {{family: gpt2, layers: 4, hidden: 256, heads: 4}}
data: {{files: ["{TEXT}"], held_out: 0.05, eval_samples: 0}}
sequence_length: 32
global_batch: {GLOBAL_BATCH}
micro_batch: 1
steps: 1000000
optimizer: {{lr: 1e-3, warmup_steps: 20}}
checkpoint: {{every: 100, keep: 2}}
parallelism: {{stages: 2, replicas: 2}}
"""


@dataclass(slots=True)
class Fault:
    """One that happened; moments are seconds of the monotonic clock."""

    how: str
    victim: str
    at_s: float
    noticed_s: float | None = None
    """When the coordinator said that the victim is gone."""
    over_s: float | None = None
    """When the next step was committed after that."""


@dataclass(slots=True)
class Seen:
    """What a run showed from its first step on."""

    steps: list[tuple[float, int]] = field(default_factory=list)
    """(when, step that was committed), also those that count no more."""
    faults: list[Fault] = field(default_factory=list)
    recoveries: list[str] = field(default_factory=list)
    failed: str = ""
    end_s: float = 0.0

    @property
    def seconds(self) -> float:
        """From the first commit to the end, whether there were steps or not."""
        return self.end_s - self.steps[0][0] if self.steps else 0.0

    @property
    def kept(self) -> int:
        """Steps that stand, but the first, from which time is counted."""
        return self.steps[-1][1] - self.steps[0][1] if self.steps else 0

    @property
    def step_s(self) -> float:
        """Median seconds between two commits that no fault is near."""
        near = [(f.at_s, f.over_s or self.steps[-1][0]) for f in self.faults]
        alone = [b - a for (a, _), (b, _) in pairwise(self.steps) if not _touches((a, b), near)]
        return median(alone) if alone else float("nan")


def _touches(span: tuple[float, float], spans: list[tuple[float, float]]) -> bool:
    return any(a <= span[1] and span[0] <= b for a, b in spans)


def write_links(directory: Path) -> Path:
    """A trace of a link for every pair, all alike."""
    names = [f"site{i}" for i in range(WORKERS)]
    links = dict.fromkeys(permutations(names, 2), steady(RTT_S, BANDWIDTH_BPS))
    about = About(0.5, "round trips", "of all flows", source="made for this", licence="MIT")
    trace = Trace("even", {n: Node(n) for n in names}, links, about)
    for ending, lines in format_trace(trace).items():
        (directory / f"even{ending}").write_text("".join(lines))
    return directory / "even.csv"


def options(directory: Path, name: str) -> LocalOptions:
    names = [f"w{i}-site{i}" for i in range(WORKERS)]
    plan = {
        "version": 1,
        "placement": [names[0:2], names[2:4]],
        "partition": [[0, 3], [3, 6]],
        "micro_batches": [8, 8],
        "schedule": "1f1b",
        "micro_batch": 1,
    }
    (directory / "plan.json").write_text(json.dumps(plan))
    return LocalOptions(
        workers=WORKERS,
        links=LinkOptions(str(write_links(directory))),
        state_dir=directory / name,
        plan=directory / "plan.json",
        wait_for_workers_s=300.0,
        rejoin_timeout_s=300.0,
    )


class Chaos:
    """Does one run for a time; when faults happen, to whom and how are drawn from one seed."""

    def __init__(self, cluster: LocalCluster, every: int, seed: int) -> None:
        self._cluster, self._rng = cluster, random.Random(seed)
        self._every, self._due = every, -1
        self._timers: list[threading.Timer] = []
        self._ranks: list[str] = []
        self._changing = threading.Lock()
        self._over = False
        """Whether nothing is done to the cluster any more; guarded by `_changing`."""
        self.seen = Seen()

    def run(self, seconds: float) -> Seen:
        """Follow the run for so long from its first step on, or to its end if it fails."""
        began_s = None
        try:
            for event in self._events():
                now_s = time.monotonic()
                self._see(event, now_s)
                if self.seen.failed:
                    break
                if event["event"] == "step":
                    began_s = now_s if began_s is None else began_s
                    self._perhaps()
                if began_s is not None and now_s - began_s > seconds:
                    break
        finally:
            with self._changing:  # a worker that is started from here on would be nobody's to end
                self._over = True
            for timer in self._timers:
                timer.cancel()
        self.seen.end_s = time.monotonic()
        return self.seen

    def _events(self) -> Iterator[dict[str, object]]:
        """What the coordinator says, and a word of our own while it says nothing."""
        said: queue.Queue[dict[str, object] | None] = queue.Queue()

        def read() -> None:
            for event in self._cluster.events():
                said.put(event)
            said.put({"event": "failed", "reason": "the coordinator has ended"})

        threading.Thread(target=read, daemon=True).start()
        while True:
            try:
                event = said.get(timeout=5.0)
            except queue.Empty:
                event = {"event": "nothing"}
            assert event is not None
            yield event

    def _see(self, event: dict[str, object], now_s: float) -> None:
        seen = self.seen
        match event["event"]:
            case "step":
                seen.steps.append((now_s, int(str(event["step"]))))
                for fault in seen.faults:
                    if fault.noticed_s is not None and fault.over_s is None:
                        fault.over_s = now_s
            case "plan":
                placement = event["placement"]
                assert isinstance(placement, list)
                self._ranks = [name for row in placement for name in row]
            case "left":
                for fault in seen.faults:
                    if fault.victim == event["name"] and fault.noticed_s is None:
                        fault.noticed_s = now_s
            case "recovery":
                seen.recoveries.append(str(event["way"]))
            case "failed":
                seen.failed = str(event["reason"])

    # ---- faults

    def _perhaps(self) -> None:
        """A fault in a drawn one of each `every` steps behind the first: the rate is what was asked for."""
        behind = len(self.seen.steps) - FIRST_STEPS
        if not self._every or behind < 0:
            return
        if behind % self._every == 0:
            self._due = behind + self._rng.randrange(self._every)
        if behind != self._due:
            return
        how, rank, when = self._rng.choice(HOWS), self._rng.randrange(4), self._rng.random()
        self._later(when * 1.5, lambda: self._happen(how, rank))

    def _later(self, after_s: float, what: Callable[[], None]) -> None:
        def unless_over() -> None:
            with self._changing:
                if not self._over:
                    what()

        timer = threading.Timer(after_s, unless_over)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _happen(self, how: str, rank: int) -> None:
        victim = self._ranks[rank % len(self._ranks)]
        child = self._cluster.workers[victim]
        if not child.running:
            return
        self.seen.faults.append(Fault(how, victim, time.monotonic()))
        print(f"{time.strftime('%H:%M:%S')} {how} {victim}", flush=True)
        if how == "stop":
            child.process.send_signal(signal.SIGSTOP)
            self._later(STOP_S, lambda: child.process.send_signal(signal.SIGCONT))
            return
        child.process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
        self._later(AGAIN_S, lambda: self._again(victim))

    def _again(self, victim: str) -> None:
        if self._cluster.workers[victim].running:  # told to leave, it is still handing over
            self._later(AGAIN_S, lambda: self._again(victim))
        else:
            self._cluster.start_worker(victim)


def one(directory: Path, name: str, seconds: float, every: int, seed: int) -> Seen:
    (directory / name).mkdir()
    with LocalCluster(directory / "job.yaml", options(directory, name)) as cluster:
        try:
            return Chaos(cluster, every, seed).run(seconds)
        finally:
            cluster.kill()


def layers_fetched(logs: Path) -> list[tuple[int, float]]:
    """(bytes, seconds) of every newcomer's layers, as workers said."""
    found = []
    for log in logs.glob("w*.log"):
        for line in log.read_text(errors="replace").splitlines():
            if '"event": "layers"' in line or '"event":"layers"' in line:
                said = json.loads(line)
                if said.get("kept") == 0 and said.get("seconds", 0) > 0:
                    found.append((int(said["n_bytes"]), float(said["seconds"])))
    return found


def check_ledger(state_dir: Path) -> str:
    """'' or what is wrong: every sample of every step that stands, once."""
    steps = [s.step for s in read_history(state_dir).steps]
    with Store(state_dir, read_only=True) as store:
        ranges = store.ledger().ranges
    if steps != list(range(len(steps))):
        return "steps are missing or there twice"
    return "" if ranges == ((0, len(steps) * GLOBAL_BATCH),) else f"the ledger has the ranges {ranges}"


def p95(values: list[float]) -> float:
    return quantiles(values, n=20)[-1] if len(values) > 1 else values[0]


def report(
    calm: Sequence[Seen], rough: Seen, fetched: list[tuple[int, float]], ledger: str, quick: bool
) -> list[str]:
    """The table, then the JSON line. `calm`: without faults, before and after."""
    to_recover = [f.over_s - f.at_s for f in rough.faults if f.over_s is not None]
    unseen = [(f.noticed_s - f.at_s) / HEARTBEAT_S for f in rough.faults if f.noticed_s and f.how != "term"]
    shares = [n / s / BANDWIDTH_BPS for n, s in fetched]
    rate = rough.kept / rough.seconds if rough.seconds else 0.0
    goodput_own = rate * rough.step_s
    calm_s = sum(c.seconds for c in calm)
    goodput = rate * calm_s / kept if (kept := sum(c.kept for c in calm)) else 0.0
    calm_steps_s = " and ".join(f"{c.step_s:.2f}" for c in calm)
    again = len(rough.steps) - 1 - rough.kept
    hows = {how: sum(f.how == how for f in rough.faults) for how in dict.fromkeys(HOWS)}
    lines = [
        f"steps committed                  {rough.kept} in {rough.seconds:.0f} s",
        f"faults                           {len(rough.faults)} "
        f"({', '.join(f'{n} {how}' for how, n in hows.items())})",
        f"recoveries                       {len(rough.recoveries)}, "
        f"{sum(w != 'repair' for w in rough.recoveries)} of them no repair in place",
        f"steps committed and done again   {again}",
        f"step without a fault near        {rough.step_s:.2f} s (undisturbed run: {calm_steps_s} s)",
    ]
    if to_recover:
        lines += [
            f"fault to next commit             median {median(to_recover):.1f} s, p95 {p95(to_recover):.1f} s"
        ]
    if unseen:
        lines += [f"heartbeats until it is noticed   median {median(unseen):.2f}, worst {max(unseen):.2f}"]
    if shares:
        lines += [
            f"layers fetched                   {len(shares)} x, at median {median(shares):.0%} of the link"
        ]
    lines += [
        f"goodput                          {goodput_own:.3f} of this run's own steps, "
        f"{goodput:.3f} of the undisturbed run's",
        f"ledger                           {ledger or 'exact'}",
    ]
    missed = []
    if rough.failed:
        missed.append(f"the run ended: {rough.failed}")
    if ledger:
        missed.append(ledger)
    if unseen and max(unseen) >= HEARTBEATS:
        missed.append(f"a fault was noticed after {max(unseen):.2f} heartbeats, goal: {HEARTBEATS:g}")
    if shares and median(shares) < BANDWIDTH:
        missed.append(f"layers came at {median(shares):.2f} of the link's bandwidth, goal: {BANDWIDTH}")
    for found_goodput, of in ((goodput_own, "of its own steps"), (goodput, "of the undisturbed run's")):
        if not quick and found_goodput < GOODPUT:
            missed.append(f"goodput {found_goodput:.3f} {of}, goal: {GOODPUT}")
    calm_failed = [c.failed for c in calm if c.failed]
    missed += [f"an undisturbed run ended: {reason}" for reason in calm_failed]
    found = {
        "benchmark": "chaos", "seconds": round(rough.seconds), "steps": rough.kept, "again": again,
        "faults": len(rough.faults), "recover_median_s": median(to_recover) if to_recover else None,
        "recover_p95_s": p95(to_recover) if to_recover else None,
        "heartbeats_worst": max(unseen) if unseen else None,
        "bandwidth_share": median(shares) if shares else None,
        "goodput": goodput_own, "goodput_beside_undisturbed": goodput, "missed": missed,
    }  # fmt: skip
    return [*lines, *(f"MISSED: {m}" for m in missed), json.dumps(found)]


def main() -> int:
    end_in_order()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=int, default=50, help="steps in which there is one fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", type=Path, help="a new folder for the runs' state and logs")
    parser.add_argument("--out", type=Path, help="also write what is printed to this file")
    asked = parser.parse_args()
    seconds, every = (180.0, 15) if asked.quick else (asked.minutes * 60, asked.every)
    with tempfile.TemporaryDirectory() as name:
        directory = asked.keep or Path(name)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "job.yaml").write_text(JOB)
        before = one(directory, "before", seconds / 20, 0, asked.seed)
        rough = one(directory, "rough", seconds, every, asked.seed)
        after = one(directory, "after", seconds / 20, 0, asked.seed)
        ledger = check_ledger(directory / "rough")
        lines = report(
            (before, after), rough, layers_fetched(directory / "rough" / "logs"), ledger, asked.quick
        )
    head = f"chaos: {seconds / 60:g} min, a fault every {every} steps, seed {asked.seed}, "
    head += f"{os.cpu_count()} cores"
    lines = [head, "", *lines]
    return ended(lines, bool(json.loads(lines[-1])["missed"]), asked.out)


if __name__ == "__main__":
    sys.exit(main())
