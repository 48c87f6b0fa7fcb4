"""Isthmus beside its peers: one model, one batch, four workers behind four cities' links, in one run.

    python -m tests.benchmarks.peers [--quick] [--out FILE] [--hivemind-python PATH]

Four processes in network namespaces, joined by the packet switch, so that everybody's TCP is real;
the demo's model (untied) and batch of 32 x 128 tokens; the same weights, tokens, loss and optimizer
for all. Contenders take turns round by round, each begins a round anew, its first two steps
(connections, buffers, TCP's view of the path) are left out, and the best round of each counts: what
else the machine does makes a round slower, never faster.

    Isthmus        its workers' step over its own transport: as its planner cuts it for these links and
                   all four workers, and as four replicas, and as four stages, to be compared with one
                   peer each; with codecs
    torch DDP      data parallel over gloo, plain and with its fp16 hook
    torch pipelining  torch.distributed.pipelining over gloo, 1F1B and GPipe
    hivemind       its averager on every step's gradients, plain and fp16; in a Python of its own, as it
                   wants an older numpy (--hivemind-python: one that has it; else the row says so)

The ratio is tokens/s against Isthmus as planned. Neither side pays for a control plane: Isthmus without
its coordinator, torch without its elastic agent. `loss` is that of the last step of the last round, to
show that all did the same work. Replicas take their 8 samples in one pass, pipelines 8 micro-batches
of 4. The last line is JSON; the exit code is 1 if a peer is faster than Isthmus as planned by more than
the noise (10 %).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scheduler.job import JobSpec, ParallelismSpec, ScheduleSpec
from scheduler.job_compression import CompressionSpec
from scheduler.plan import Plan
from scheduler.planner import make_plan
from scheduler.profile import ModelProfile
from scheduler.topology import Device, Topology
from scheduler.trace import Sampler
from sim.trace import load
from tests.benchmarks.command import end_in_order, ended
from tests.benchmarks.peer_ranks import JOB, MICRO_BATCH, N_RANKS, SCALE, Ran
from tests.benchmarks.switched import switched, why_not
from tests.benchmarks.teams import Failed, Team, team

TRACE = "four_cities"
PLACES = ("Oregon", "Virginia", "London", "Tokyo")
STREAMS = 4
TENSOR_PORT, STORE_PORT = 29530, 29600
RANKS = "tests.benchmarks.peer_ranks"
TOKENS = JOB.global_batch * JOB.sequence_length
PLANNED = "Isthmus, as planned"
NOISE = 0.10
WARM_STEPS = 2
OPEN: dict[str, Any] = {
    "schedule": ScheduleSpec(name="auto", warmup_extra="auto"),
    "micro_batch": "auto",
}
"""What the planner is asked to choose."""
HALF = CompressionSpec.model_validate({"reduce": "fp16"})
EIGHT = CompressionSpec.model_validate(dict.fromkeys(("activations", "gradients", "reduce"), "kbit"))


@dataclass
class Row:
    """A contender, and what became of it."""

    name: str
    tokens_per_s: float = 0.0
    """Of the best round."""
    loss: float = 0.0
    why_not: str = ""


# ---- what the contenders are told


Begin = Callable[[Team], list[tuple[Any, ...]]]
"""The arguments of each rank's `begin`."""


@dataclass
class Contender:
    row: Row
    what: str
    begin: Begin
    in_hivemind_python: bool = False


class Plans:
    """Plans for Isthmus; each round wants a version of its own."""

    def __init__(self, workers: Team, bandwidth_scale: float) -> None:
        workers.pipes[0].send(("profile",))  # one alone: the others would share its cores
        layers, profile = workers.answer(workers.pipes[0])
        self._model = ModelProfile(layers, JOB.profiled_micro_batch, JOB.sequence_length)
        names = [str(rank) for rank in range(N_RANKS)]
        self._profiles = [replace(profile, device=name) for name in names]
        matrices = Sampler(load(TRACE).subset(PLACES)).at(0.0)
        devices = tuple(
            Device(name, region=place, host="here", host_cores=os.cpu_count() or 1)
            for name, place in zip(names, PLACES, strict=True)
        )
        self._topology = Topology(devices, matrices.one_way_s, matrices.bandwidth_Bps * bandwidth_scale)
        self._version = 0

    def make(self, **choices: Any) -> Plan:
        """The planner's plan; without a `parallelism`, the best that uses all workers, as the peers must.
        Left alone it would often leave some out, since here they share the cores of one machine."""
        if "parallelism" not in choices:
            shapes = [ParallelismSpec(stages=s, replicas=N_RANKS // s) for s in (1, 2, 4)]
            plans = [self.make(**choices, parallelism=shape) for shape in shapes]
            return min(plans, key=lambda plan: plan.predicted_step_s)
        self._version += 1
        job: JobSpec = JOB.model_copy(update=choices)
        return make_plan(job, self._model, self._profiles, self._topology, self._version)

    def begin(self, **choices: Any) -> Begin:
        def arguments(workers: Team) -> list[tuple[Any, ...]]:
            plan = self.make(**choices)
            addresses = [f"{space.address}:{TENSOR_PORT}" for space in workers.spaces]
            return [(plan, addresses, STREAMS)] * N_RANKS

        return arguments


def by_store(*more: Any) -> Begin:
    def arguments(workers: Team) -> list[tuple[Any, ...]]:
        return [(f"{workers.spaces[0].address}:{STORE_PORT}", *more)] * N_RANKS

    return arguments


def by_peers(fp16: bool) -> Begin:
    """The first is found by the others, so it begins before them."""

    def arguments(workers: Team) -> list[tuple[Any, ...]]:
        first = workers.pipes[0]
        first.send(("begin", "hivemind", ([], workers.spaces[0].address, fp16)))
        workers.answer(first)
        first.send(("addresses",))
        peers = workers.answer(first)
        return [(peers, space.address, fp16) for space in workers.spaces]

    return arguments


def contenders(plans: Plans) -> list[Contender]:
    each = JOB.global_batch // N_RANKS
    replicas = {"parallelism": ParallelismSpec(stages=1, replicas=N_RANKS), "micro_batch": each}
    stages = {"parallelism": ParallelismSpec(stages=N_RANKS, replicas=1), "micro_batch": MICRO_BATCH}
    told: list[tuple[str, str, Begin, bool]] = [
        (PLANNED, "isthmus", plans.begin(**OPEN), False),
        ("Isthmus, 4 replicas", "isthmus", plans.begin(**replicas), False),
        ("Isthmus, 4 stages, 1F1B", "isthmus", plans.begin(**stages), False),
        ("Isthmus, 4 replicas, fp16", "isthmus", plans.begin(**replicas, compression=HALF), False),
        ("Isthmus, as planned, 8 bits", "isthmus", plans.begin(**OPEN, compression=EIGHT), False),
        ("torch DDP, gloo", "ddp", by_store(False), False),
        ("torch DDP, gloo, fp16 hook", "ddp", by_store(True), False),
        ("torch pipelining, 1F1B, gloo", "pipelining", by_store("1f1b"), False),
        ("torch pipelining, GPipe, gloo", "pipelining", by_store("gpipe"), False),
        ("hivemind averaging", "hivemind", by_peers(False), True),
        ("hivemind averaging, fp16", "hivemind", by_peers(True), True),
    ]
    return [Contender(Row(name), what, begin, apart) for name, what, begin, apart in told]


# ---- measuring


def measure(contender: Contender, workers: Team, n_steps: int) -> None:
    """One round. Raises Failed."""
    arguments = contender.begin(workers)
    for pipe, own in zip(workers.pipes, arguments, strict=True):
        pipe.send(("begin", contender.what, own))
    for pipe in workers.pipes:
        workers.answer(pipe)
    workers.ask("run", 0, WARM_STEPS)
    ran: list[Ran] = workers.ask("run", WARM_STEPS, n_steps)
    starts_s, ends_s, losses = zip(*ran, strict=True)
    step_s = (max(ends_s) - min(starts_s)) / n_steps
    contender.row.tokens_per_s = max(contender.row.tokens_per_s, TOKENS / step_s)
    contender.row.loss = sum(losses) * SCALE


def compare(
    bandwidth_scale: float, n_rounds: int, n_steps: int, hivemind: str, log: Path
) -> tuple[Plan, list[Row]]:
    """The planner's choice and all contenders over the trace's links with their bandwidth scaled."""
    with ExitStack() as exit_stack:
        scale = ("--bandwidth-scale", str(bandwidth_scale))
        spaces = exit_stack.enter_context(switched(TRACE, PLACES, *scale))
        workers = exit_stack.enter_context(team(sys.executable, RANKS, spaces, log))
        apart, why = None, "not in this Python, whose numpy is too new for it; give --hivemind-python"
        if hivemind:
            try:
                apart = exit_stack.enter_context(team(hivemind, RANKS, spaces, log))
            except (Failed, OSError) as failure:
                why = str(failure)
        plans = Plans(workers, bandwidth_scale)
        told = contenders(plans)
        for _ in range(n_rounds):
            for contender in told:
                who = apart if contender.in_hivemind_python else workers
                if who is None:
                    contender.row.why_not = why
                if who is None or contender.row.why_not:
                    continue
                try:
                    measure(contender, who, n_steps)
                except Failed as failure:
                    contender.row.why_not = str(failure)
        return plans.make(**OPEN), [contender.row for contender in told]


def benchmark(quick: bool, hivemind: str, log: Path) -> tuple[list[str], bool]:
    n_rounds, n_steps = (1, 2) if quick else (2, 2)
    lines = [
        f"{N_RANKS} workers, {', '.join(PLACES)}; {TOKENS} tokens a step; packet switch;"
        f" best of {n_rounds} rounds of {n_steps} steps"
    ]
    results: dict[str, Any] = {}
    behind = []
    for scale in (1.0,) if quick else (1.0, 0.1):
        plan, rows = compare(scale, n_rounds, n_steps, hivemind, log)
        where = f"{TRACE}, bandwidth x {scale:g}"
        cut = f"{plan.n_stages} stages x {plan.n_replicas} replicas, micro-batches of {plan.micro_batch}"
        lines += ["", f"planned: {cut}, {plan.schedule}, {plan.predicted_step_s:.2f} s a step predicted;"]
        lines += [f"load average {os.getloadavg()[2]:.1f} on {os.cpu_count()} cores"]
        lines += [f"{where:34}{'tokens/s':>9}{'s a step':>9}{'ratio':>7}{'loss':>8}"]
        ours = rows[0].tokens_per_s
        results[where] = {}
        for row in rows:
            if row.why_not or not ours:
                lines.append(f"{row.name:34}{row.why_not or rows[0].why_not}")
                results[where][row.name] = {"why_not": row.why_not}
                continue
            speed, ratio = row.tokens_per_s, row.tokens_per_s / ours
            lines.append(f"{row.name:34}{speed:9.0f}{TOKENS / speed:9.2f}{ratio:7.2f}{row.loss:8.4f}")
            results[where][row.name] = {"tokens_per_s": round(speed, 1), "ratio": round(ratio, 3)}
            if ratio > 1 + NOISE and not row.name.startswith("Isthmus"):
                behind.append(f"{where}: {row.name} is {ratio:.2f} x as fast as {PLANNED}")
    lines += ["", *(behind or ["no peer is faster by more than the noise"])]
    lines.append(json.dumps({"benchmark": "peers", "passed": not behind, "links": results}))
    return lines, bool(behind)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one setting of the links, fewer rounds")
    parser.add_argument("--out", type=Path, help="also write what is printed to this file")
    parser.add_argument("--hivemind-python", default="", help="a Python that has torch and hivemind 1.1.12")
    parser.add_argument("--log", type=Path, default=Path("/dev/null"), help="what the ranks themselves say")
    options = parser.parse_args(arguments)
    if reason := why_not():
        print(f"not measured: {reason}\n" + json.dumps({"benchmark": "peers", "why_not": reason}))
        return 0
    end_in_order()
    lines, missed = benchmark(options.quick, options.hivemind_python, options.log)
    return ended(lines, missed, options.out)


if __name__ == "__main__":
    sys.exit(main())
