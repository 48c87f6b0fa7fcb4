"""A plan as a text that a person can judge: who holds what, how long a step takes, and why.

Only reads; the numbers come from the cost model and the engine.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.bottleneck import headroom
from scheduler.cost import durations, predict
from scheduler.plan import Plan
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.timeline import bubble_fraction, use_by_rank
from scheduler.topology import Topology
from scheduler.units import count, duration, size

_HEADER = ("rank", "replica", "stage", "device", "region", "layers", "fwd+bwd", "busy", "memory", "to spare")


def describe(
    plan: Plan,
    model: ModelProfile,
    topology: Topology,
    devices: Sequence[DeviceProfile],
) -> str:
    """A table of the ranks, the predicted step, and the plan's reasons. `fwd+bwd`: of one micro-batch,
    alone on its host; `busy`: share of the step in which the rank computes."""
    timeline = predict(plan, model, devices, topology)
    costs = durations(plan, model, devices, topology)
    uses, memory = use_by_rank(timeline), headroom(plan, model, topology)
    region = {d.name: d.region for d in topology.devices}
    step_s = timeline.duration_s
    rows = [_HEADER]
    for r in range(plan.n_ranks):
        start, stop = plan.partition[plan.stage_of(r)]
        h = memory[r]
        rows.append(
            (
                str(r),
                str(plan.replica_of(r)),
                str(plan.stage_of(r)),
                plan.device(r),
                region[plan.device(r)] or "-",
                _layers(model, start, stop),
                duration(costs.forward_s[r] + costs.backward_s[r]),
                f"{uses[r].busy_s / step_s:.0%}" if step_s else "-",
                size(h.needed_bytes),
                size(h.spare_bytes) if h.memory_bytes else "unknown",
            )
        )
    micro = count(plan.n_micro_batches, "micro-batch").replace("batchs", "batches")
    warmup = f", {plan.warmup_extra} extra in flight a stage" if plan.warmup_extra else ""
    micro += f" of {count(plan.micro_batch or model.micro_batch, 'sample')}"
    recomputes = ", forward recomputed in backward" if plan.recompute else ""
    streams = f", {count(plan.streams, 'stream')} a link" if plan.streams else ""
    shards = f", sequences in {plan.n_replicas} shards" if plan.sequence_shards > 1 else ""
    local = f", local steps: each weight's change every {plan.local_steps}" if plan.local_steps else ""
    lines = [
        f"plan {plan.version}: {count(plan.n_stages, 'stage')} x {count(plan.n_replicas, 'replica')}, "
        f"{plan.schedule}{warmup}{recomputes}{streams}{local}{shards}, {micro} a step",
        f"predicted step: {duration(step_s)}; devices idle in {bubble_fraction(timeline):.0%} of it",
        *([f"codecs by link: {plan.codecs.told}"] if plan.codecs.told else []),
        "",
        *_table(rows),
        "",
        "why:",
        *(f"  - {reason}" for reason in plan.reasons),
    ]
    return "\n".join(lines)


def _layers(model: ModelProfile, start: int, stop: int) -> str:
    """`0-3 (embedding … block.2)`."""
    first, last = model.layers[start].name, model.layers[stop - 1].name
    return f"{start} ({first})" if stop - start == 1 else f"{start}-{stop - 1} ({first} … {last})"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, width, strict=True)).rstrip() for row in rows]
    return [lines[0], "  ".join("-" * w for w in width), *lines[1:]]
