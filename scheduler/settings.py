"""How a shape is run: schedule, warm-up depth, size of the micro-batches, recomputation, streams.

A setting says so, `priced` turns it into the profiles and links that a plan with it would see, so
that whoever prices plans needs to know no knob.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import ceil, log2
from typing import NamedTuple, TypedDict

import numpy as np

from scheduler.job import JobSpec
from scheduler.plan import Plan
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.sequence import Split
from scheduler.topology import Topology
from scheduler.units import count

MAX_STREAMS = 64
"""Of one link; more flows than that disturb one another."""


class Knobs(TypedDict):
    """The fields of a plan that a setting decides."""

    schedule: str
    warmup_extra: int
    micro_batch: int
    recompute: bool
    streams: int
    local_steps: int
    split: Split
    shard_sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """One choice of each knob; see the plan's fields of the same names. `reason`: why it is worth trying."""

    schedule: str = "1f1b"
    warmup_extra: int = 0
    micro_batch: int = 0
    """Samples; 0: as many as were profiled."""
    recompute: bool = False
    streams: int = 0
    """0: as many as there are."""
    local_steps: int = 0
    shards: int = 1
    """Replicas that share every sequence; 1: they share the batch."""
    reason: str = field(default="", compare=False)
    shard_sizes: tuple[int, ...] = ()
    """Positions of each shard; (): as equal as can be."""

    @staticmethod
    def of(plan: Plan) -> Setting:
        """The setting that `plan` runs under."""
        p = plan
        knobs = p.schedule, p.warmup_extra, p.micro_batch, p.recompute, p.streams, p.local_steps
        return Setting(*knobs, p.sequence_shards, shard_sizes=p.shard_sizes)

    @property
    def knobs(self) -> Knobs:
        """For `Plan(…, **setting.knobs)`, or `replace`."""
        return {
            "schedule": self.schedule,
            "warmup_extra": self.warmup_extra,
            "micro_batch": self.micro_batch,
            "recompute": self.recompute,
            "streams": self.streams,
            "local_steps": self.local_steps,
            "split": "sequence" if self.shards > 1 else "batch",
            "shard_sizes": self.shard_sizes,
        }


class Priced(NamedTuple):
    """Profiles and links as a setting makes them."""

    model: ModelProfile
    devices: tuple[DeviceProfile, ...]
    topology: Topology


def priced(
    setting: Setting, model: ModelProfile, devices: Sequence[DeviceProfile], topology: Topology
) -> Priced:
    """What plans under `setting` are priced with: profiles of its micro-batches (`DeviceProfile.scaled`),
    backward with the forward in front of it where it recomputes, links that its streams fill. Where sequences
    are divided the model is that of a shard; devices stay as they are for all positions, because shards
    differ (`DeviceProfile.in_shard`).

    What is priced already stays as it is, so that it may be priced again with the plan that was made of it.
    """
    if setting.micro_batch and setting.micro_batch != model.micro_batch:
        ratio = setting.micro_batch / model.micro_batch
        model, devices = model.scaled(setting.micro_batch), [d.scaled(ratio) for d in devices]
    if setting.shards > 1 and not model.bounds:
        model = model.sharded(setting.shards, setting.shard_sizes)
    if setting.recompute and not model.recompute:
        model, devices = replace(model, recompute=True), [d.recomputing() for d in devices]
    if setting.local_steps:
        model = replace(model, local_steps=setting.local_steps)
    if setting.streams:
        topology = topology.striped(setting.streams)
    return Priced(model, tuple(devices), topology)


@dataclass(frozen=True, slots=True)
class Choices:
    """What a job leaves open, knob by knob; of each the first is what is taken unless another pays."""

    streams: tuple[int, ...]
    micro_batches: tuple[int, ...]
    """Samples: the profiled size, then its nearest."""
    orders: tuple[tuple[str, int], ...]
    """(schedule, warmup_extra)."""
    recompute: tuple[bool, ...]
    local_steps: int = 0
    """As the job says; 0 where there is one replica."""
    shards: int = 1
    """Replicas that share every sequence, as the job says."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many positions each knob has, in the order of the fields."""
        return tuple(map(len, (self.streams, self.micro_batches, self.orders, self.recompute)))

    def positions(self, setting: Setting) -> tuple[int, int, int, int]:
        """The positions that `at` makes `setting` of."""
        order = (setting.schedule, setting.warmup_extra)
        return (
            self.streams.index(setting.streams),
            self.micro_batches.index(setting.micro_batch),
            self.orders.index(order),
            self.recompute.index(setting.recompute),
        )

    def at(self, positions: Sequence[int]) -> Setting:
        """The setting with each knob in its position, and what speaks for those that are turned."""
        i, j, k, m = positions
        streams, size, recompute = self.streams[i], self.micro_batches[j], self.recompute[m]
        schedule, extra = self.orders[k]
        why = []
        if i:
            why.append(f"{count(streams, 'stream')} carry more than one flow")
        if j:
            smaller = size < self.micro_batches[0]
            gain = "take less memory and leave a smaller bubble" if smaller else "cost less a sample"
            why.append(f"micro-batches of {count(size, 'sample')} {gain}")
        if k:
            ahead = f"with {extra} more in flight a stage hides transfers"
            why.append(f"{schedule} {ahead if extra else 'keeps all in flight'}")
        if m:
            why.append("doing forwards again saves memory")
        reason = "; ".join(why)
        return Setting(schedule, extra, size, recompute, streams, self.local_steps, self.shards, reason)


def choices(job: JobSpec, topology: Topology, n_stages: int, n_replicas: int) -> Choices:
    """What `job` allows for a shape. Micro-batches are from a quarter to four times the profiled size,
    beyond which its line is not to be trusted, and at least one a replica; warm-ups double until all
    micro-batches are in flight, which is gpipe; streams double until links are full."""
    shards = n_replicas if job.split == "sequence" else 1
    sizes = _micro_batch_sizes(job, n_replicas // shards)
    most = ceil(job.global_batch / (min(sizes) * (n_replicas // shards)))
    names = ("1f1b", "gpipe") if job.schedule.name == "auto" else (job.schedule.name,)
    extra = job.schedule.warmup_extra
    depths = [0, *_doubling(most - 1)] if extra == "auto" else [extra]
    orders = tuple((name, d) for name in names for d in (depths if name == "1f1b" else depths[:1]))
    return Choices(
        _stream_counts(topology) if job.streams == "auto" else (job.streams,),
        sizes,
        orders if n_stages > 1 or shards > 1 else orders[:1],  # of one stage alone, all take as long
        (False, True) if job.recompute == "auto" else (job.recompute,),
        job.local_steps.every if job.local_steps is not None and n_replicas > 1 else 0,
        shards,
    )


def _micro_batch_sizes(job: JobSpec, n_replicas: int) -> tuple[int, ...]:
    profiled = job.profiled_micro_batch
    if job.micro_batch != "auto":
        return (profiled,)
    near = (n for n in range(ceil(profiled / 4), 4 * profiled + 1) if job.global_batch % n == 0)
    enough = [n for n in near if job.global_batch // n >= n_replicas]
    return tuple(sorted(enough or [1], key=lambda n: (abs(log2(n / profiled)), n)))


def _stream_counts(topology: Topology) -> tuple[int, ...]:
    """1, 2, 4 … until the link that needs most is full; all there are, where no flow was measured."""
    if topology.flow_Bps is None:
        return (0,)
    off = ~np.eye(len(topology), dtype=bool)
    needed = float((topology.bandwidth_Bps / topology.flow_Bps)[off].max(initial=1.0))
    fewer = _doubling(min(MAX_STREAMS, needed * (1 - 1e-9)))
    return (1, *(2 * n for n in fewer))


def _doubling(most: float) -> list[int]:
    """1, 2, 4 … up to `most`; nothing below 1."""
    return [1 << i for i in range(int(most).bit_length())]


def settings(job: JobSpec, topology: Topology, n_stages: int, n_replicas: int) -> tuple[Setting, ...]:
    """Every setting that `job` allows for a shape: first what is taken unless another pays, then those
    that turn fewer knobs less far."""
    c = choices(job, topology, n_stages, n_replicas)
    return tuple(c.at(p) for p in sorted(product(*map(range, c.sizes)), key=sum))
