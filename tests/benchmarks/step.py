"""What the runtime costs: workers as processes over loopback, against the bare computation on the same cores.

    python -m tests.benchmarks.step [--quick] [--out FILE]

Every process uses one torch thread. The computation is measured as a plain loop (no pipeline code,
same micro-batches, same optimizer) in as many processes at once as there are cores, so that it pays
for shared caches and clocks as the workers do: `compute` = their step time / cores is the least time
that these cores can take for one step, "the sum of compute" spread over them. Then

    overhead = step time of the workers / compute - 1        (4 stages: at most 15 %, bubble included)
    late     = time in which a stage waits though its input has arrived / step time
               (the worst rank of 4 stages: below 3 %)

Plain and distributed runs take turns, and the best round of each counts: whatever else the machine
does makes a round slower, never faster. The last line is JSON; the exit code is 1 if a bound is missed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from scheduler.job import DataSpec, JobSpec, ModelSpec, OptimizerSpec
from scheduler.plan import Plan
from tests.benchmarks.command import run as run_command
from tests.benchmarks.tokens import tokens_of
from tests.benchmarks.voting import ByRankZero
from worker.addresses import PeerAddress
from worker.model import Head, build_layers, initialize
from worker.optimizer import StageOptimizer
from worker.stage import Stage
from worker.step import LinkCodecs, StepContext, StepResult, run_step
from worker.zmq_transport import DataEndpoint

CORES = 2
MAX_OVERHEAD = 0.15
MAX_LATE = 0.03
JUDGED = "4 workers: 4 stages"


def make_job(quick: bool) -> JobSpec:
    """8 equal blocks, so that 4 stages are equal; embedding and head are small (bytes)."""
    model = ModelSpec(
        family="gpt2", layers=8, hidden=256, heads=8, kv_heads=8, ffn=1024, vocab=257, max_positions=128
    )
    return JobSpec(
        name="step",
        model=model,
        data=DataSpec(files=("none",)),
        sequence_length=128,
        global_batch=32 if quick else 64,
        micro_batch=2,
        steps=1_000_000,
        optimizer=OptimizerSpec(lr=1e-4),
    )


def make_plan(job: JobSpec, version: int, stages: int, replicas: int) -> Plan:
    cuts = [0, *(1 + 8 * s // stages for s in range(1, stages)), job.n_layers]
    return Plan(
        version=version,
        placement=tuple(tuple(f"{r}.{s}" for s in range(stages)) for r in range(replicas)),
        partition=tuple((cuts[s], cuts[s + 1]) for s in range(stages)),
        micro_batches=(job.micro_batches // replicas,) * replicas,
        schedule="1f1b",
        micro_batch=job.profiled_micro_batch,
    )


@dataclass(frozen=True)
class Ran:
    """`steps` steps of one process: clock at both ends, its processor time, time waited too long."""

    start_s: float
    end_s: float
    cpu_s: float
    late_s: float


# ---- in the child


def serve(pipe: Connection, quick: bool) -> None:
    """Obey (name, *arguments) until told to stop: the whole life of a process."""
    torch.set_num_threads(1)
    job = make_job(quick)
    endpoint = DataEndpoint("127.0.0.1:0", streams=1)
    pipe.send(endpoint.address)
    step: Callable[[int], float] | None = None
    while True:
        what, *arguments = pipe.recv()
        if what == "stop":
            break
        if what == "plain":
            step = plain(job)
            pipe.send("ready")
        elif what == "plan":
            stage = stage_of(job, endpoint, *arguments)
            step = partial(late_s_of, stage)
            pipe.send("ready")
        elif what == "run":
            assert step is not None
            pipe.send(run(step, *arguments))
    endpoint.close()


def run(step: Callable[[int], float], first: int, n: int) -> Ran:
    cpu_s, start_s = time.process_time(), time.monotonic()
    late_s = sum(step(i) for i in range(first, first + n))
    return Ran(start_s, time.monotonic(), time.process_time() - cpu_s, late_s)


def plain(job: JobSpec) -> Callable[[int], float]:
    """The training loop without any of the runtime, micro-batch by micro-batch."""
    layers = build_layers(job.shape, 0, job.n_layers)
    for i, layer in enumerate(layers):
        initialize(layer, 0, i)
    head = layers[-1]
    assert isinstance(head, Head)
    parameters = list(torch.nn.ModuleList(layers).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    scale = 1.0 / (job.global_batch * job.sequence_length)

    def step(i: int) -> float:
        for tokens in tokens_of(job, i).split(job.profiled_micro_batch):  # type: ignore[no-untyped-call]
            x = tokens[:, :-1]
            for layer in layers[:-1]:
                x, _ = layer(x)
            torch.autograd.backward(head.loss(x, tokens[:, 1:]) * scale)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return 0.0

    return step


def late_s_of(step: Callable[[int], StepResult], i: int) -> float:
    return step(i).late_s


def stage_of(
    job: JobSpec, endpoint: DataEndpoint, plan: Plan, rank: int, addresses: Sequence[str]
) -> Callable[[int], StepResult]:
    """One rank of the plan, as the worker runs it."""
    peers = {r: PeerAddress(a) for r, a in enumerate(addresses) if r != rank}
    transport = endpoint.open(
        run="step", plan_version=plan.version, rank=rank, peers=peers, streams=plan.streams
    )
    codecs, agreement = LinkCodecs(plan, rank, job.seed), ByRankZero(plan, rank, transport)
    context = StepContext(plan, rank, job, transport, codecs, agreement, receive_timeout_s=120.0)
    start, stop = plan.partition[context.stage]
    layers = build_layers(job.shape, start, stop)
    for i, layer in enumerate(layers):
        initialize(layer, 0, start + i)
    is_first, is_last = context.stage == 0, context.stage == plan.n_stages - 1
    stage = Stage(layers, is_first, is_last, recompute=plan.recompute)
    optimizer = StageOptimizer(layers, job.optimizer)
    first = plan.first_micro_batch(context.replica)

    def step(i: int) -> StepResult:
        tokens = tokens_of(job, i)

        def batch(mb: int) -> Tensor:
            return tokens[(first + mb) * plan.micro_batch :][: plan.micro_batch]

        return run_step(context, stage, optimizer, i, batch, time.monotonic)

    return step


# ---- in the parent


@dataclass
class Setup:
    """Something to measure: a name, the processes that take part, and what they are told first."""

    name: str
    workers: int
    plan: Plan | None
    step_s: float = float("inf")
    cpu_s: float = float("inf")
    late: float = 0.0
    """Of the best round: seconds a step, processor seconds of all processes a step, worst rank's share."""


def measure(setup: Setup, pipes: Sequence[Connection], addresses: Sequence[str], n_steps: int) -> None:
    """One round; the best one stays."""
    pipes = pipes[: setup.workers]
    for rank, pipe in enumerate(pipes):
        pipe.send(("plain",) if setup.plan is None else ("plan", setup.plan, rank, addresses[: len(pipes)]))
    for pipe in pipes:
        pipe.recv()
    ask(pipes, 0, 1)  # the first step allocates and connects
    ran = ask(pipes, 1, n_steps)
    step_s = (max(r.end_s for r in ran) - min(r.start_s for r in ran)) / n_steps
    if setup.plan is None:  # each of them did all the work
        step_s /= setup.workers
    if step_s < setup.step_s:
        setup.step_s = step_s
        setup.cpu_s = sum(r.cpu_s for r in ran) / n_steps / (setup.workers if setup.plan is None else 1)
        setup.late = max(r.late_s / (r.end_s - r.start_s) for r in ran)


def ask(pipes: Sequence[Connection], first: int, n: int) -> list[Ran]:
    for pipe in pipes:
        pipe.send(("run", first, n))
    return [pipe.recv() for pipe in pipes]


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(benchmark, __doc__, "smaller batches, fewer rounds", arguments)


def benchmark(quick: bool) -> tuple[list[str], bool]:
    job = make_job(quick)
    n_rounds, n_steps = (2, 2) if quick else (5, 3)
    start_method = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    for _ in range(4):
        near, far = start_method.Pipe()
        process = start_method.Process(target=serve, args=(far, quick), daemon=True)
        process.start()
        pipes.append(near)
        processes.append(process)
    addresses = [pipe.recv() for pipe in pipes]
    setups: list[Setup] = []
    try:
        version = 0
        for i in range(n_rounds):
            fresh = [
                Setup(f"plain loop, {CORES} at once", CORES, None),
                Setup("2 workers: 2 stages", 2, make_plan(job, version + 1, 2, 1)),
                Setup(JUDGED, 4, make_plan(job, version + 2, 4, 1)),
                Setup("4 workers: 2 stages x 2 replicas", 4, make_plan(job, version + 3, 2, 2)),
            ]
            version += 3
            if i == 0:
                setups = fresh
            for setup, new in zip(setups, fresh, strict=True):
                setup.plan = new.plan
                measure(setup, pipes, addresses, n_steps)
    finally:
        for pipe in pipes:
            pipe.send(("stop",))
        for process in processes:
            process.join(30)
    return report(job, setups, n_rounds, n_steps)


def report(job: JobSpec, setups: Sequence[Setup], n_rounds: int, n_steps: int) -> tuple[list[str], bool]:
    compute = setups[0]
    n_tokens = job.global_batch * job.sequence_length
    lines = [
        f"{job.micro_batches} micro-batches of {job.profiled_micro_batch} x {job.sequence_length} tokens,"
        f" {CORES} cores, one torch thread a process, best of {n_rounds} rounds of {n_steps} steps",
        f"{'':34}{'tokens/s':>9}{'of plain':>9}{'overhead':>9}{'processor':>10}{'late':>7}",
    ]
    rows: dict[str, Any] = {}
    for s in setups:
        overhead = s.step_s / compute.step_s - 1
        processor = s.cpu_s / compute.cpu_s - 1
        lines.append(
            f"{s.name:34}{n_tokens / s.step_s:9.0f}{compute.step_s / s.step_s:9.2f}"
            f"{overhead:9.1%}{processor:10.1%}{s.late:7.2%}"
        )
        rows[s.name] = {
            "tokens_per_s": round(n_tokens / s.step_s, 1),
            "overhead": round(overhead, 4),
            "processor_overhead": round(processor, 4),
            "late": round(s.late, 5),
        }
    judged = rows[JUDGED]
    missed = [
        f"{what} {judged[key]:.1%}, required {'at most' if key == 'overhead' else 'below'} {bound:.0%}"
        for what, key, bound, bad in (
            ("overhead", "overhead", MAX_OVERHEAD, judged["overhead"] > MAX_OVERHEAD),
            ("late", "late", MAX_LATE, judged["late"] >= MAX_LATE),
        )
        if bad
    ]
    lines.append(f"{JUDGED}: " + ("; ".join(missed) if missed else "both bounds kept"))
    lines.append(json.dumps({"benchmark": "step", "passed": not missed, "setups": rows}))
    return lines, bool(missed)


if __name__ == "__main__":
    sys.exit(main())
