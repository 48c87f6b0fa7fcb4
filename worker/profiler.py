"""How long each layer takes on this device, measured; its flops and bytes are `scheduler.analytic`'s.

Layers of one kind and shape are measured once. The clock is an argument. Knows no plan.
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
from worker.model import Head, Layer, build_layer, initialize
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
    for index, parts in enumerate(places):
        alike = places.index(parts) if parts is not None else index
        if alike < index:
            full.append(full[alike])
            half += half[alike : alike + 1]
            continue
        layer = build_layer(model, index)
        initialize(layer, job.seed, index)
        layer.to(device)
        full.append(time_layer(layer, job, model, clock, size))
        if smaller:
            half.append(time_layer(layer, job, model, clock, smaller))
    profile = DeviceProfile(
        name,
        tuple(t.forward_s for t in full),
        tuple(t.backward_s for t in full),
        tuple(t.optimizer_s for t in full),
        tuple(_fixed_s(t.forward_s, h.forward_s, smaller / size) for t, h in zip(full, half, strict=False)),
        tuple(_fixed_s(t.backward_s, h.backward_s, smaller / size) for t, h in zip(full, half, strict=False)),
        codecs=profile_codecs(job, model, device, clock),
    )
    return job_profile(job, model).layers, profile


def _fixed_s(whole_s: float, part_s: float, part: float) -> float:
    """What does not grow with the samples, if `part` of them take `part_s`: the line's value at none."""
    return min(whole_s, max(0.0, (part_s - part * whole_s) / (1 - part)))


class _Times(NamedTuple):
    forward_s: float
    backward_s: float
    optimizer_s: float


def time_layer(layer: Layer, job: JobSpec, model: ModelSpec, clock: Clock, micro_batch: int) -> _Times:
    """Median seconds of forward, backward and the optimizer's step for `micro_batch` samples."""
    optimizer = StageOptimizer([layer], job.optimizer)
    runs = [_run_once(layer, optimizer, job, model, clock, micro_batch) for _ in range(WARM_UPS + REPEATS)]
    return _Times(*(statistics.median(column) for column in zip(*runs[WARM_UPS:], strict=True)))


def _run_once(
    layer: Layer, optimizer: StageOptimizer, job: JobSpec, model: ModelSpec, clock: Clock, micro_batch: int
) -> _Times:
    device = next(layer.parameters()).device
    rng = torch.Generator().manual_seed(job.seed)
    shape = (micro_batch, job.sequence_length)
    assert model.vocab is not None
    tokens = torch.randint(model.vocab, shape, generator=rng).to(device)
    takes_tokens = layer.name == "embedding"
    x = tokens if takes_tokens else torch.randn(*shape, model.hidden, generator=rng).to(device)
    if not takes_tokens:
        x.requires_grad_()
    bf16 = job.precision == "bf16"
    begin = now(clock, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        y: Tensor = layer.loss(x, tokens) if isinstance(layer, Head) else layer(x)[0]
    forwarded = now(clock, device)
    torch.autograd.backward(y, None if y.ndim == 0 else torch.ones_like(y))
    backwarded = now(clock, device)
    optimizer.step(0.0)
    stepped = now(clock, device)
    return _Times(forwarded - begin, backwarded - forwarded, stepped - backwarded)
