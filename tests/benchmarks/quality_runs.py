"""What `quality` compares, and one training run of it: the worker's steps and codecs, ranks as threads.

The in-memory transport stands in for the network, so bytes are those of a real run and time is not. Knows
no table and no verdict.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from scheduler.job import JobSpec, parse_job
from scheduler.plan import Plan
from scheduler.plan_codecs import same_everywhere
from scheduler.samples import step_samples
from worker.agreement import Agreement, Committee
from worker.data import Dataset
from worker.generate import generate
from worker.memory_transport import MemoryHub, MemoryTransport
from worker.model import Layer, build_layers, initialize
from worker.optimizer import StageOptimizer
from worker.outer import OuterOptimizer
from worker.stage import Stage
from worker.step import LinkCodecs, StepContext, run_eval, run_step
from worker.tokenizer import ByteTokenizer

T = TypeVar("T")

JOB = """
name: quality
model: {preset: demo, hidden: %(hidden)d, heads: %(heads)d, kv_heads: %(heads)d, vocab: 257}
data: {files: ["%(files)s"], eval_samples: %(eval_samples)d}
sequence_length: %(length)d
global_batch: 8
micro_batch: 4
steps: %(steps)d
optimizer: {lr: 4e-3, warmup_steps: 10}
compression: {%(compression)s}
seed: %(seed)d
%(extra)s
"""
PROMPT = "KING. "
WARM_UP = "WARM_UP"
"""In a setting: a sixth of the run's steps."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is trained: one number for all settings, so that they can be compared."""

    hidden: int
    length: int
    samples: int
    epochs: int
    eval_samples: int

    @property
    def steps(self) -> int:
        return self.samples * self.epochs // 8


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of the table: stages x replicas, and what the job says of compression and local steps."""

    name: str
    stages: int = 2
    replicas: int = 1
    compression: str = ""
    extra: str = ""
    """Another section of the job."""

    @property
    def label(self) -> str:
        return f"{self.name} ({self.stages}x{self.replicas})"


def _boundary(forward: str, backward_bits: int) -> str:
    return f"activations: {forward}, gradients: {{kbit: {{bits: {backward_bits}, rounding: stochastic}}}}"


def _direct(bits: int) -> str:
    """As many bits backward as AC-SGD has, so that the two differ in one thing."""
    return _boundary(f"{{kbit: {{bits: {bits}}}}}", 2 * bits)


def _acsgd(bits: int) -> str:
    return _boundary(f"{{acsgd: {{forward_bits: {bits}}}}}", 2 * bits)


def _tile(bits: int) -> str:
    return _boundary(f"{{tile: {{bits: {bits}}}}}", 2 * bits)


BOUNDARIES = {
    "fp32": "",
    "direct fw2/bw4": _direct(2),
    "AC-SGD fw3/bw6": _acsgd(3),
    "AC-SGD fw4/bw8": _acsgd(4),
    "direct fw3/bw6": _direct(3),
    "direct fw4/bw8": _direct(4),
    "AC-SGD fw2/bw4": _acsgd(2),
    "tile fw3/bw6": _tile(3),
    "tile fw4/bw8": _tile(4),
}
"""What crosses a boundary; the judged ones first, so that a run that is cut short has them."""


JUDGED = tuple(BOUNDARIES)[:4]


def _settings() -> Iterator[Setting]:
    for name in JUDGED:
        yield Setting(name, 2, 1, BOUNDARIES[name])
    yield Setting("fp32", 2, 2)
    for bits in (4, 8):
        yield Setting(f"weights {bits} bits", 2, 2, f"reduce: {{feedback: {{bits: {bits}}}}}")
    for bits in (1, 4):
        momentum = f"reduce: {{momentum: {{bits: {bits}, warmup_steps: {WARM_UP}}}}}"
        yield Setting(f"momentum {bits} bits", 2, 2, momentum)
    for bits in (8, 4):
        change = f"reduce: {{feedback: {{bits: {bits}}}}}"
        yield Setting(f"local steps, every 8, {bits} bits", 2, 2, change, "local_steps: {every: 8}")
    change = "reduce: {feedback: {bits: 8}}"
    for every in (8, 4):
        averaged = f"local_steps: {{every: {every}, lr: 1.0, momentum: 0.0}}"
        yield Setting(f"averages, every {every}, 8 bits", 2, 2, change, averaged)
    for name in JUDGED:
        yield Setting(name, 4, 1, BOUNDARIES[name])
    for name, text in BOUNDARIES.items():
        if name not in JUDGED:
            yield Setting(name, 2, 1, text)
    for name in ("AC-SGD fw4/bw8", "AC-SGD fw3/bw6", "direct fw4/bw8", "tile fw4/bw8"):
        for bits in (4, 8):
            both = f"{BOUNDARIES[name]}, reduce: {{feedback: {{bits: {bits}}}}}"
            yield Setting(f"{name}, weights {bits} bits", 2, 2, both)
    yield Setting("weights top-k 1 %", 2, 2, "reduce: {topk: {}}")
    for name, text in BOUNDARIES.items():
        if name not in JUDGED:
            yield Setting(name, 4, 1, text)


SETTINGS: dict[str, Setting] = {s.label: s for s in _settings()}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a setting came to with one seed."""

    held_out: tuple[float, ...]
    """Nats a token after every epoch."""
    sent_bytes: int
    """By all ranks in the last step."""
    text: str
    """What the model writes behind the prompt, drawn with the same random numbers in every setting."""
    cpu_s: float

    @property
    def loss(self) -> float:
        return self.held_out[-1]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def job_of(setting: Setting, size: Size, seed: int, files: str) -> JobSpec:
    values = {
        "hidden": size.hidden,
        "heads": max(2, size.hidden // 32),
        "files": files,
        "eval_samples": size.eval_samples,
        "length": size.length,
        "steps": size.steps,
        "extra": setting.extra,
        "compression": setting.compression.replace(WARM_UP, str(max(1, size.steps // 6))),
        "seed": seed,
    }
    return parse_job(JOB % values, setting.label)


def plan_of(setting: Setting, job: JobSpec) -> Plan:
    """Layers cut evenly, the job's codecs on every boundary and in every stage."""
    n = setting.stages
    cuts = [job.n_layers * s // n for s in range(n + 1)]

    names = {kind: choice.spec().name for _, kind, choice in job.compression.choices()}
    return Plan(
        version=1,
        placement=tuple(tuple(f"{r}.{s}" for s in range(n)) for r in range(setting.replicas)),
        partition=tuple(pairwise(cuts)),
        micro_batches=(job.micro_batches // setting.replicas,) * setting.replicas,
        schedule="1f1b",
        micro_batch=job.profiled_micro_batch,
        local_steps=job.local_steps.every if job.local_steps is not None else 0,
        codecs=same_everywhere(
            n, setting.replicas, names["activations"], names["gradients"], names["reduce"]
        ),
    )


def trained(setting: Setting, size: Size, seed: int, files: str, data: Dataset) -> Outcome:
    """Train from the seed's weights; every setting of a seed begins and reads alike."""
    job = job_of(setting, size, seed, files)
    plan, cpu_s = plan_of(setting, job), time.process_time()
    hub = MemoryHub()
    transports = [MemoryTransport(hub, rank, plan.version) for rank in range(plan.n_ranks)]
    committee = Committee(plan)
    runs = [
        _Rank(job, plan, rank, transport, committee.seat(rank), size, data)
        for rank, transport in enumerate(transports)
    ]

    def abort(reason: str) -> None:
        for transport in transports:
            transport.abort(reason)
        committee.abort(reason)

    _in_threads(plan.n_ranks, lambda rank: runs[rank].run(), abort)
    sums = [[r.evaluations[epoch] for r in runs] for epoch in range(size.epochs)]
    held_out = tuple(sum(loss for loss, _ in epoch) / sum(n for _, n in epoch) for epoch in sums)
    layers = [layer for r in runs if plan.replica_of(r.rank) == 0 for layer in r.layers]
    text = _written(layers)
    sent_bytes = sum(r.sent_bytes for r in runs)
    return Outcome(held_out, sent_bytes, text, round(time.process_time() - cpu_s, 2))


class _Rank:
    """One rank's run, from fresh weights to the last step."""

    def __init__(
        self,
        job: JobSpec,
        plan: Plan,
        rank: int,
        transport: MemoryTransport,
        agreement: Agreement,
        size: Size,
        data: Dataset,
    ) -> None:
        self.rank, self._job, self._plan, self._size, self._data = rank, job, plan, size, data
        codecs = LinkCodecs(plan, rank, job.seed)
        self._context = StepContext(plan, rank, job, transport, codecs, agreement, receive_timeout_s=3600.0)
        start, stop = plan.partition[self._context.stage]
        self.layers = build_layers(job.shape, start, stop)
        for i, layer in enumerate(self.layers):
            initialize(layer, job.seed, start + i)
        self._stage = Stage(self.layers, self._context.stage == 0, self._context.stage == plan.n_stages - 1)
        self._outer = None
        if job.local_steps is not None:
            self._outer = OuterOptimizer(self._stage, job.local_steps, start, job.n_layers)
        self.sent_bytes = 0
        self.evaluations: list[tuple[float, int]] = []
        """After every epoch: (cross entropy summed, tokens)."""

    def run(self) -> None:
        job, plan, data = self._job, self._plan, self._data
        optimizer = StageOptimizer(self.layers, job.optimizer)
        first = plan.first_micro_batch(self._context.replica)
        each_epoch = self._size.samples // job.global_batch
        for step in range(job.steps):
            ids = step_samples(job.seed, self._size.samples, job.global_batch, step)

            def samples(mb: int, ids: tuple[int, ...] = ids) -> tuple[int, ...]:
                at = (first + mb) * plan.micro_batch
                return ids[at : at + plan.micro_batch]

            def batch(mb: int, ids_of: Callable[[int], tuple[int, ...]] = samples) -> Tensor:
                return _stacked([data.sample(i) for i in ids_of(mb)])

            done = run_step(
                self._context,
                self._stage,
                optimizer,
                step,
                batch,
                time.monotonic,
                samples,
                outer=self._outer,
            )
            self.sent_bytes = done.sent_bytes
            if (step + 1) % each_epoch == 0:
                self._evaluate(step)

    def _evaluate(self, step: int) -> None:
        data = self._data

        def batch(wanted: Sequence[int]) -> Tensor:
            return _stacked([data.eval_sample(i) for i in wanted])

        self.evaluations.append(
            run_eval(self._context, self._stage, step, data.n_eval, batch, time.monotonic)
        )


def _stacked(samples: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(samples).astype(np.int64))


def _written(layers: Sequence[Layer], n: int = 96) -> str:
    tokenizer = ByteTokenizer()
    rng = torch.Generator().manual_seed(1)
    new = generate(layers, tokenizer.encode(PROMPT), n, 0.7, 0, rng)
    return PROMPT + tokenizer.decode(new)


def _in_threads(n: int, work: Callable[[int], T], abort: Callable[[str], None]) -> list[T]:
    """`work(rank)` of every rank at once. The first error ends the others and is raised."""
    found: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            found[rank] = work(rank)
        except BaseException as e:  # whatever it is, the caller sees it
            errors.append(e)
            abort(f"rank {rank} failed: {e}")

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
    return [found[rank] for rank in range(n)]
