"""How long each layer takes on this device, measured; its flops and bytes are `scheduler.analytic`'s.

Layers of one kind and shape are measured once. The clock is an argument. Knows no plan.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from scheduler.analytic import job_profile
from scheduler.job import JobSpec, ModelSpec
from scheduler.profile import DeviceProfile, LayerProfile
from worker.model import Head, Layer, build_layer, initialize
from worker.optimizer import StageOptimizer

REPEATS = 5
WARM_UPS = 2
Clock = Callable[[], float]


def profile_model(
    job: JobSpec, model: ModelSpec, device: torch.device, name: str, clock: Clock
) -> tuple[tuple[LayerProfile, ...], DeviceProfile]:
    """All layers of the job for one micro-batch: what they cost anywhere, and the seconds they take here.
    `model` is the job's, its vocabulary set."""
    times: list[tuple[float, float, float]] = []
    block: tuple[float, float, float] | None = None
    for index in range(model.layers + 2):
        layer = build_layer(model, index)
        is_block = 0 < index <= model.layers
        if is_block and block is not None:  # blocks are alike
            times.append(block)
            continue
        initialize(layer, job.seed, index)
        times.append(time_layer(layer.to(device), job, model, clock))
        block = times[-1] if is_block else block
    forward_s, backward_s, optimizer_s = zip(*times, strict=True)
    return job_profile(job, model).layers, DeviceProfile(name, forward_s, backward_s, optimizer_s)


def time_layer(layer: Layer, job: JobSpec, model: ModelSpec, clock: Clock) -> tuple[float, float, float]:
    """Median seconds of forward, backward and the optimizer's step for one micro-batch."""
    optimizer = StageOptimizer([layer], job.optimizer)
    runs = [_run_once(layer, optimizer, job, model, clock) for _ in range(WARM_UPS + REPEATS)][WARM_UPS:]
    forward_s, backward_s, optimizer_s = (statistics.median(column) for column in zip(*runs, strict=True))
    return forward_s, backward_s, optimizer_s


def _run_once(
    layer: Layer, optimizer: StageOptimizer, job: JobSpec, model: ModelSpec, clock: Clock
) -> tuple[float, float, float]:
    device = next(layer.parameters()).device
    rng = torch.Generator().manual_seed(job.seed)
    shape = (job.micro_batch, job.sequence_length)
    assert model.vocab is not None
    tokens = torch.randint(model.vocab, shape, generator=rng).to(device)
    takes_tokens = layer.name == "embedding"
    x = tokens if takes_tokens else torch.randn(*shape, model.hidden, generator=rng).to(device)
    if not takes_tokens:
        x.requires_grad_()
    bf16 = job.precision == "bf16"
    begin = _now(clock, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        y: Tensor = layer.loss(x, tokens) if isinstance(layer, Head) else layer(x)[0]
    forwarded = _now(clock, device)
    torch.autograd.backward(y, None if y.ndim == 0 else torch.ones_like(y))
    backwarded = _now(clock, device)
    optimizer.step(0.0)
    stepped = _now(clock, device)
    return forwarded - begin, backwarded - forwarded, stepped - backwarded


def _now(clock: Clock, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()
