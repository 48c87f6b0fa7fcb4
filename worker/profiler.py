"""How long each layer takes on this device, measured; its flops and bytes are `scheduler.analytic`'s.

Layers of one kind and shape are measured once; where sequences are to be divided, at a shard's length
(`lone_shard.py`). The clock is an argument. Knows no plan.
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

import torch
from torch import Tensor

from scheduler.analytic import job_profile
from scheduler.job import JobSpec, ModelSpec
from scheduler.profile import DeviceProfile, LayerProfile
from worker.codec_profiler import profile_codecs
from worker.device_clock import Clock, now
from worker.lone_shard import extrapolated, lone_shard, shard_length
from worker.model import Head, Layer, build_layer, initialize
from worker.model.ring import Shard
from worker.optimizer import StageOptimizer

REPEATS = 5
WARM_UPS = 2


def profile_model(
    job: JobSpec, model: ModelSpec, device: torch.device, name: str, clock: Clock
) -> tuple[tuple[LayerProfile, ...], DeviceProfile]:
    """All layers of the job for one micro-batch: what they cost anywhere, and the seconds they take here.
    `model` is the job's, its vocabulary set."""
    full: list[_Times] = []
    half: list[_Times] = []
    size = job.profiled_micro_batch
    smaller = size // 2 if job.micro_batch == "auto" else 0  # a size that the job names is the only one
    places = [None, *model.blocks, None]
    costs = job_profile(job, model).layers
    for index, parts in enumerate(places):
        alike = places.index(parts) if parts is not None else index
        if alike < index:
            full.append(full[alike])
            half += half[alike : alike + 1]
            continue
        layer = build_layer(model, index)
        initialize(layer, job.seed, index)
        layer.to(device)
        full.append(time_layer(layer, job, model, clock, size, costs[index]))
        if smaller:
            half.append(time_layer(layer, job, model, clock, smaller, costs[index]))
    divided = shard_length(job) < job.sequence_length
    profile = DeviceProfile(
        name,
        tuple(t.forward_s for t in full),
        tuple(t.backward_s for t in full),
        tuple(t.optimizer_s for t in full),
        tuple(_fixed_s(t.forward_s, h.forward_s, smaller / size) for t, h in zip(full, half, strict=False)),
        tuple(_fixed_s(t.backward_s, h.backward_s, smaller / size) for t, h in zip(full, half, strict=False)),
        codecs=profile_codecs(job, model, device, clock),
        forward_pairs_s=tuple(t.forward_pairs_s for t in full) if divided else (),
        backward_pairs_s=tuple(t.backward_pairs_s for t in full) if divided else (),
    )
    return costs, profile


def _fixed_s(whole_s: float, part_s: float, part: float) -> float:
    """What does not grow with the samples, if `part` of them take `part_s`: the line's value at none."""
    return min(whole_s, max(0.0, (part_s - part * whole_s) / (1 - part)))


class _Times(NamedTuple):
    forward_s: float
    backward_s: float
    optimizer_s: float
    forward_pairs_s: float = 0.0
    """Of `forward_s`, what grows with the square of the length, where that was measured."""
    backward_pairs_s: float = 0.0


def time_layer(
    layer: Layer, job: JobSpec, model: ModelSpec, clock: Clock, micro_batch: int, costs: LayerProfile
) -> _Times:
    """Median seconds of forward, backward and the optimizer's step for `micro_batch` samples. Where sequences
    are to be divided, of all their positions, told from two shards."""
    optimizer = StageOptimizer([layer], job.optimizer)
    length, device = shard_length(job), next(layer.parameters()).device

    def timed(before: int | None) -> _Times:
        runs = []
        for _ in range(WARM_UPS + REPEATS):
            shard = None if before is None else lone_shard(length, before, device)
            runs.append(_run_once(layer, optimizer, job, model, clock, (micro_batch, length), shard))
        columns = zip(*(run[:3] for run in runs[WARM_UPS:]), strict=True)
        return _Times(*(statistics.median(column) for column in columns))

    if length == job.sequence_length:
        return timed(None)
    alone = timed(0)
    second = timed(1) if costs.keys else alone
    growth, squares = job.sequence_length / length, costs.pair_flops > 0
    forward_s, forward_pairs_s = extrapolated(alone.forward_s, second.forward_s, growth, squares)
    backward_s, backward_pairs_s = extrapolated(alone.backward_s, second.backward_s, growth, squares)
    return _Times(forward_s, backward_s, alone.optimizer_s, forward_pairs_s, backward_pairs_s)


def _run_once(
    layer: Layer,
    optimizer: StageOptimizer,
    job: JobSpec,
    model: ModelSpec,
    clock: Clock,
    shape: tuple[int, int],
    shard: Shard | None,
) -> _Times:
    device = next(layer.parameters()).device
    rng = torch.Generator().manual_seed(job.seed)
    assert model.vocab is not None
    tokens = torch.randint(model.vocab, shape, generator=rng).to(device)
    takes_tokens = layer.name == "embedding"
    x = tokens if takes_tokens else torch.randn(*shape, model.hidden, generator=rng).to(device)
    if not takes_tokens:
        x.requires_grad_()
    # Two in each sample: what it costs to keep documents apart does not depend on how many there are.
    documents = None
    if job.data.documents == "apart":
        documents = (torch.arange(shape[1], device=device) * 2 // shape[1]).expand(shape)
    bf16 = job.precision == "bf16"
    begin = now(clock, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        state = None if shard is None else layer.in_shard(shard)
        y: Tensor = layer.loss(x, tokens) if isinstance(layer, Head) else layer(x, state, documents)[0]
    forwarded = now(clock, device)
    torch.autograd.backward(y, None if y.ndim == 0 else torch.ones_like(y))
    backwarded = now(clock, device)
    optimizer.step(0.0)
    stepped = now(clock, device)
    return _Times(forwarded - begin, backwarded - forwarded, stepped - backwarded)
