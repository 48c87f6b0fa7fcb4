"""Small plans run in one process, a thread a rank, and the plain loop they are compared with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from scheduler.job import DataSpec, JobSpec, ModelSpec, OptimizerSpec
from scheduler.plan import Plan
from scheduler.samples import step_samples
from worker.agreement import Committee
from worker.memory_transport import MemoryHub, MemoryTransport
from worker.model import Head, Layer, build_layers, initialize, tied_parameter
from worker.optimizer import StageOptimizer, learning_rate
from worker.outer import OuterOptimizer
from worker.stage import Stage
from worker.step import LinkCodecs, StepContext, StepResult, boundary_dtype, run_step
from worker.transport import Transport

VOCAB = 48
N_SAMPLES = 1 << 20
"""So many that a short run sees none twice."""
torch.set_num_threads(1)  # ranks are threads; more would only fight for the same cores
T = TypeVar("T")


def make_job(family: str = "gpt2", **changes: object) -> JobSpec:
    """A model of 5 layers, 8 samples a step in micro-batches of 2."""
    model = ModelSpec.model_validate(
        {
            "family": family,
            "layers": 3,
            "hidden": 32,
            "heads": 4,
            "kv_heads": 4 if family == "gpt2" else 2,
            "vocab": VOCAB,
            "max_positions": 16,
            "tied": family == "gpt2",
        }
    )
    job = JobSpec(
        name="tiny",
        model=model,
        data=DataSpec(files=("none",)),
        sequence_length=8,
        global_batch=8,
        micro_batch=2,
        steps=20,
        # eps far above the rounding of gradients (1e-8 here): AdamW divides by their size, so one that is
        # zero but for rounding (a key's bias) would otherwise become a whole step of either sign.
        optimizer=OptimizerSpec(lr=3e-3, eps=1e-4, warmup_steps=3, clip_norm=0.5),
    )
    return job.model_copy(update=dict(changes)).model_copy(update={"model": changes.get("model", model)})


def make_plan(
    job: JobSpec,
    stages: int,
    micro_batches: tuple[int, ...],
    schedule: str = "1f1b",
    recompute: bool = False,
) -> Plan:
    """Layers cut as evenly as they go; micro-batches of equal size that make up the global batch."""
    micro_batch, rest = divmod(job.global_batch, sum(micro_batches))
    assert rest == 0, "the micro-batches must divide the global batch"
    cuts = [job.n_layers * s // stages for s in range(stages + 1)]
    return Plan(
        version=1,
        placement=tuple(tuple(f"d{r}.{s}" for s in range(stages)) for r in range(len(micro_batches))),
        partition=tuple(pairwise(cuts)),
        micro_batches=micro_batches,
        schedule=schedule,
        micro_batch=micro_batch,
        recompute=recompute,
    )


def sequence_plan(
    job: JobSpec,
    stages: int,
    shards: int,
    schedule: str = "1f1b",
    recompute: bool = False,
    sizes: tuple[int, ...] = (),
) -> Plan:
    """Every replica takes every micro-batch, of its own positions; `sizes`: how many, () for equal parts."""
    plan = make_plan(job, stages, (job.micro_batches,), schedule, recompute)
    placement = tuple(tuple(f"d{r}.{s}" for s in range(stages)) for r in range(shards))
    shares = (job.micro_batches,) * shards
    return replace(plan, placement=placement, micro_batches=shares, split="sequence", shard_sizes=sizes)


def tokens_of(job: JobSpec, step: int) -> Tensor:
    """The global batch of a step: int64 (global_batch, sequence_length + 1), with something to learn."""
    rng = torch.Generator().manual_seed(1000 + step)
    start = torch.randint(VOCAB, (job.global_batch, 1), generator=rng)
    stride = torch.randint(1, 4, (job.global_batch, 1), generator=rng)
    return (start + stride * torch.arange(job.sequence_length + 1)) % VOCAB


def fresh_layers(job: JobSpec, start: int, stop: int) -> list[Layer]:
    layers = build_layers(job.shape, start, stop)
    for i, layer in enumerate(layers):
        initialize(layer, job.seed, start + i)
    return layers


def make_stage(job: JobSpec, plan: Plan, rank: int) -> Stage:
    s = plan.stage_of(rank)
    start, stop = plan.partition[s]
    autocast = torch.bfloat16 if boundary_dtype(job.precision) == torch.bfloat16 else None
    return Stage(fresh_layers(job, start, stop), s == 0, s == plan.n_stages - 1, autocast, plan.recompute)


@dataclass
class Rank:
    """One rank of a plan, ready to run steps."""

    context: StepContext
    stage: Stage
    optimizer: StageOptimizer
    committee: Committee
    measure_errors: bool = False
    n_samples: int = N_SAMPLES
    outer: OuterOptimizer | None = None

    def run_first(self) -> StepResult:
        return self.run_step(0)

    def run_step(self, step: int, clock: Callable[[], float] = time.monotonic) -> StepResult:
        job, plan = self.context.job, self.context.plan
        ids = step_samples(job.seed, self.n_samples, job.global_batch, step)
        # A data set of a few samples comes again and again; otherwise every step has tokens of its own.
        tokens = tokens_of(job, step)
        if self.n_samples < N_SAMPLES:
            batches = [tokens_of(job, i) for i in range(self.n_samples // job.global_batch)]
            tokens = torch.cat(batches)[list(ids)]
        first = plan.first_micro_batch(self.context.replica)

        def batch(mb: int) -> Tensor:
            return tokens[(first + mb) * plan.micro_batch : (first + mb + 1) * plan.micro_batch]

        def samples(mb: int) -> tuple[int, ...]:
            return ids[(first + mb) * plan.micro_batch : (first + mb + 1) * plan.micro_batch]

        return run_step(
            self.context,
            self.stage,
            self.optimizer,
            step,
            batch,
            clock,
            samples,
            self.measure_errors,
            self.outer,
        )


def make_rank(
    job: JobSpec,
    plan: Plan,
    rank: int,
    transport: Transport,
    committee: Committee,
    timeout_s: float = 60.0,
    separator: int | None = None,
) -> Rank:
    codecs = LinkCodecs(plan, rank, job.seed)
    seat = committee.seat(rank)
    context = StepContext(plan, rank, job, transport, codecs, seat, timeout_s, separator=separator)
    stage = make_stage(job, plan, rank)
    made = Rank(context, stage, StageOptimizer(stage.layers, job.optimizer), committee)
    if plan.local_steps:
        assert job.local_steps is not None
        first = plan.partition[context.stage][0]
        made.outer = OuterOptimizer(stage, job.local_steps, first, job.n_layers)
    return made


def make_ranks(job: JobSpec, plan: Plan, timeout_s: float = 60.0, separator: int | None = None) -> list[Rank]:
    """All ranks, with fresh weights, over the in-memory transport."""
    hub = MemoryHub()
    transports = [MemoryTransport(hub, r, plan.version) for r in range(plan.n_ranks)]
    committee = Committee(plan)
    return [make_rank(job, plan, r, t, committee, timeout_s, separator) for r, t in enumerate(transports)]


@dataclass
class Run:
    """What all ranks of a plan did: `losses[step]` is the mean, `results[rank][step]` the rest."""

    ranks: list[Rank]
    results: list[list[StepResult]]
    losses: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.losses = [
            sum(r.loss_sum for r in step) / sum(r.tokens for r in step)
            for step in zip(*self.results, strict=True)
        ]

    def weights(self, replica: int = 0) -> dict[str, Tensor]:
        """`layer.parameter` -> value, of one replica."""
        return {
            f"{layer.name}.{name}": value
            for rank in self.ranks
            if rank.context.replica == replica
            for layer in rank.stage.layers
            for name, value in layer.state_dict().items()
        }


def in_threads(ranks: list[Rank], work: Callable[[Rank], T]) -> list[T]:
    """`work` of every rank at once. The first error aborts the others' transports, and is raised."""
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            results[i] = work(ranks[i])
        except BaseException as e:  # whatever it is, the caller sees it
            errors.append(e)
            for rank in ranks:
                rank.context.transport.abort(f"rank {i} failed: {e}")
                rank.committee.abort(f"rank {i} failed: {e}")

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(ranks))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
    return [results[i] for i in range(len(ranks))]


def train(job: JobSpec, plan: Plan, steps: int | None = None, separator: int | None = None) -> Run:
    """Run the plan from fresh weights, over the in-memory transport."""
    ranks = make_ranks(job, plan, separator=separator)
    n = job.steps if steps is None else steps
    return Run(ranks, in_threads(ranks, lambda rank: [rank.run_step(step) for step in range(n)]))


def train_by(
    job: JobSpec, loss_of: Callable[[list[Layer], int], Tensor]
) -> tuple[list[float], dict[str, Tensor]]:
    """One process, torch's own clipping and optimizer: losses and final weights. `loss_of(layers, step)`:
    that of a step's whole batch."""
    layers, spec = fresh_layers(job, 0, job.n_layers), job.optimizer
    parameters = list(torch.nn.ModuleList(layers).parameters())  # each once, also a tied one
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps)
    losses = []
    for step in range(job.steps):
        loss = loss_of(layers, step)
        torch.autograd.backward(loss)
        if spec.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, spec.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(spec, step, job.steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {f"{x.name}.{name}": v for x in layers for name, v in x.state_dict().items()}


def train_plainly(job: JobSpec) -> tuple[list[float], dict[str, Tensor]]:
    """`train_by` the mean cross entropy, of all samples at once."""

    def mean(layers: list[Layer], step: int) -> Tensor:
        head, tokens = layers[-1], tokens_of(job, step)
        assert isinstance(head, Head)
        if job.model.tied:
            assert tied_parameter(layers[0]) is head.weight
        x = tokens[:, :-1]
        for layer in layers:
            x, _ = layer(x)
        return torch.nn.functional.cross_entropy(x.flatten(0, 1), tokens[:, 1:].flatten())

    return train_by(job, mean)
