"""What bounds a plan's step: its slowest link or device, and the device with the least memory to spare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from scheduler.cost import durations, stage_memory
from scheduler.plan import Plan
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.remembered import kept_bytes
from scheduler.schedule import in_flight
from scheduler.settings import Setting, priced
from scheduler.timeline import COMPUTE, Timeline, critical_path
from scheduler.topology import Topology
from scheduler.units import duration, size


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The slowest device and the slowest link within a pipeline or a row of shards, each in seconds of one
    micro-batch."""

    device: str
    stage: int
    compute_s: float
    """Forward + backward, with its share of the host's cores if all of them are at work."""
    link: tuple[str, str] | None
    """None with one stage."""
    link_s: float
    """Bytes of one tensor over bandwidth: how long it keeps the link. Latency delays, but does not."""
    link_latency_s: float
    link_carries: str = "a tensor"
    """What takes `link_s`."""

    @property
    def is_link(self) -> bool:
        """Whether tensors leave more slowly than devices make them."""
        return self.link_s > self.compute_s

    def sentence(self) -> str:
        at = f"stage {self.stage} on {self.device}, {duration(self.compute_s)} forward and backward"
        if self.link is None:
            return f"The slowest device is {at} a micro-batch."
        src, dst = self.link
        takes = f"{duration(self.link_s)} {self.link_carries} and {duration(self.link_latency_s)} latency"
        over = f"{src} -> {dst}, {takes}"
        if self.is_link:
            return f"The bottleneck is the link {over}; the slowest device is {at} a micro-batch."
        return f"The bottleneck is {at} a micro-batch; the slowest link is {over}."


def bottleneck(
    plan: Plan,
    model: ModelProfile,
    devices: Sequence[DeviceProfile],
    topology: Topology,
) -> Bottleneck:
    """The slowest device and link of `plan` in its steady state."""
    d = durations(plan, model, devices, topology)
    topology = priced(Setting.of(plan), model, devices, topology).topology
    slowdown = {r: max(1.0, len(ranks) / cores) for ranks, cores in d.shared_cores for r in ranks}
    compute_s = [slowdown.get(r, 1.0) * (d.forward_s[r] + d.backward_s[r]) for r in range(plan.n_ranks)]
    slowest = max(range(plan.n_ranks), key=compute_s.__getitem__)
    links: list[tuple[float, float, tuple[str, str], str]] = []

    def carries(src: str, dst: str, n_bytes: int, what: str) -> None:
        i, j = topology.index(src), topology.index(dst)
        keeps_s = n_bytes / float(topology.bandwidth_Bps[i, j])
        links.append((keeps_s, float(topology.latency_s[i, j]), (src, dst), what))

    for r, pipeline in enumerate(plan.placement):
        for b in range(plan.n_stages - 1):
            near, far = pipeline[b], pipeline[b + 1]
            for src, dst, n_bytes in (
                (near, far, d.activation_bytes[plan.rank(r, b)]),
                (far, near, d.gradient_bytes[plan.rank(r, b + 1)]),
            ):
                carries(src, dst, n_bytes, "a tensor")
    if d.rows is not None:
        for r, (row, behind) in enumerate(pairwise(plan.placement)):
            for s in range(plan.n_stages):
                n_bytes = d.rows.handed_on_bytes(s, r)
                carries(row[s], behind[s], n_bytes, "a micro-batch's keys")
                carries(behind[s], row[s], n_bytes, "a micro-batch's gradients of keys")
    link_s, latency_s, link, what = max(links, default=(0.0, 0.0, None, ""))
    at = plan.device(slowest), plan.stage_of(slowest), compute_s[slowest]
    return Bottleneck(*at, link, link_s, latency_s, what)


@dataclass(frozen=True, slots=True)
class Headroom:
    """What one rank needs of its device's memory; `memory_bytes` 0: not known."""

    rank: int
    device: str
    stage: int
    needed_bytes: int
    memory_bytes: int

    @property
    def spare_bytes(self) -> int:
        return self.memory_bytes - self.needed_bytes

    def sentence(self) -> str:
        return (
            f"Memory is tightest on {self.device} (stage {self.stage}): {size(self.needed_bytes)} of "
            f"{size(self.memory_bytes)}, {size(self.spare_bytes)} to spare."
        )


def headroom(plan: Plan, model: ModelProfile, topology: Topology) -> tuple[Headroom, ...]:
    """By rank, what its stage needs of its device's memory."""
    model = replace(model, buffer_bytes=0, keeps_residuals=False)  # as the plan has it, not at most
    model = priced(Setting.of(plan), model, (), topology).model
    memory = {d.name: d.memory_bytes for d in topology.devices}
    ranks = []
    for rank in range(plan.n_ranks):
        stage, device = plan.stage_of(rank), plan.device(rank)
        needed = stage_memory(model.of_replica(plan.replica_of(rank)), *plan.partition[stage]).total_bytes(
            in_flight(plan.actions(rank))
        )
        needed += kept_bytes(plan, rank, model, topology)
        ranks.append(Headroom(rank, device, stage, needed, memory[device]))
    return tuple(ranks)


def least_headroom(plan: Plan, model: ModelProfile, topology: Topology) -> Headroom | None:
    """The rank with the least memory to spare, of those whose memory is known."""
    known = [h for h in headroom(plan, model, topology) if h.memory_bytes > 0]
    return min(known, key=lambda h: h.spare_bytes, default=None)


def what_takes_long(timeline: Timeline, between: str = "stages") -> str:
    """What the step's critical path consists of, as a sentence; shares that round to 0 % are left out.
    `between`: what tensors are sent between."""
    transfers = f"transfers between {between}"
    parts = {"compute": 0.0, transfers: 0.0, "gradient reduction": 0.0}
    for span in critical_path(timeline):
        if span.kind in COMPUTE:
            parts["compute"] += span.duration_s
        elif span.kind == "send":
            parts[transfers] += span.duration_s
        elif span.kind == "reduce":
            parts["gradient reduction"] += span.duration_s
    whole = timeline.duration_s
    told = [f"{s / whole:.0%} {name}" for name, s in parts.items() if whole > 0 and s / whole >= 0.005]
    return f"The step's critical path is {', '.join(told) or 'empty'}."
