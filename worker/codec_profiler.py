"""How long this device takes to encode and decode with the codecs that the job may use, measured.

On tensors of a boundary's shape, by the codecs themselves, one after the other while nothing else runs. The
clock is an argument. Knows no plan and no links.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from torch import Tensor

from compression.codec import Key, make_codec
from scheduler.codec_speed import CodecSpeed
from scheduler.job import JobSpec, ModelSpec
from scheduler.job_compression import Kind
from scheduler.ladders import ladder
from scheduler.visits import UNKNOWN, Visits
from worker.device_clock import Clock, now

REPEATS = 5
WARM_UPS = 2
OFTEN = Visits(1, 1000)
FLAT_VALUES = 1 << 18
"""Of a layer's gradient, to measure its codecs with."""


def profile_codecs(
    job: JobSpec, model: ModelSpec, device: torch.device, clock: Clock
) -> tuple[CodecSpeed, ...]:
    """Seconds a value of every codec that the job names; of what `auto` may choose, one a family."""
    rng = torch.Generator().manual_seed(job.seed)
    size = job.profiled_micro_batch
    boundary = torch.randn(size, job.sequence_length, model.hidden, generator=rng).to(device)
    flat = torch.randn(FLAT_VALUES, generator=rng).to(device)
    if job.precision == "bf16":
        boundary = boundary.bfloat16()
    known: dict[str, CodecSpeed] = {}
    for kind, name in _names(job, tuple(boundary.shape), boundary.element_size()):
        if name not in known:
            x, key = (flat, (0,)) if kind == "reduce" else (boundary, tuple(range(size)))
            known[name] = time_codec(name, x, key, device, clock)
    return tuple(known.values())


def _names(job: JobSpec, shape: tuple[int, ...], value_bytes: int) -> Iterator[tuple[Kind, str]]:
    for _, kind, choice in job.compression.choices():
        if choice.auto is None:
            names = [choice.spec().name]
        else:
            auto = choice.auto  # whether samples come again is the planner's to find out
            rungs = [name for v in (UNKNOWN, OFTEN) for name in ladder(kind, auto, shape, value_bytes, v)]
            names = list({name.partition(":")[0]: name for name in rungs}.values())
        yield from ((kind, name) for name in names if name != "identity")


def time_codec(name: str, x: Tensor, key: Key, device: torch.device, clock: Clock) -> CodecSpeed:
    """Median seconds a value, from the second tensor with this key on: what is remembered is there."""
    sender, receiver = make_codec(name), make_codec(name)
    encode, decode = [], []
    for _ in range(WARM_UPS + REPEATS):
        begin = now(clock, device)
        encoded = sender.encode(x, key)
        sent = now(clock, device)
        receiver.decode(encoded, key).to(device)
        encode.append(sent - begin)
        decode.append(now(clock, device) - sent)
    n = x.numel()
    return CodecSpeed(name, *(statistics.median(times[WARM_UPS:]) / n for times in (encode, decode)))
