"""What the engine's schedule holds at its fullest moment is what the cost model says a rank needs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.analytic import device_profile, model_profile
from scheduler.bottleneck import headroom
from scheduler.cost import predict, stage_memory_bytes
from scheduler.job import ModelSpec
from scheduler.partition import DoesNotFit, partition
from scheduler.plan import Plan
from scheduler.schedule import in_flight
from scheduler.settings import Setting, priced
from scheduler.timeline import Timeline
from scheduler.topology import Device, Topology

SHAPE = ModelSpec(layers=6, hidden=32, heads=4, vocab=300, max_positions=32)
MODEL = model_profile(SHAPE, 2, 32, dtype_bytes=2)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any cut into 1 to 4 stages, 1 to 3 replicas of unequal shares, any setting."""
    n_stages, n_replicas = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    inner = draw(st.lists(st.integers(1, 7), min_size=n_stages - 1, max_size=n_stages - 1, unique=True))
    return Plan(
        1,
        tuple(tuple(f"d{r}.{s}" for s in range(n_stages)) for r in range(n_replicas)),
        tuple(pairwise([0, *sorted(inner), 8])),
        tuple(draw(st.integers(1, 7)) for _ in range(n_replicas)),
        draw(st.sampled_from(["gpipe", "1f1b"])),
        warmup_extra=draw(st.integers(0, 3)),
        micro_batch=draw(st.sampled_from([1, 2, 4])),
        recompute=draw(st.booleans()),
    )


def held_bytes(timeline: Timeline, rank: int, kept: int, meanwhile: int) -> int:
    """The most that `rank` holds of activations at one time: `kept` from the end of a forward to the end of
    its backward, and `meanwhile` while a backward runs."""
    changes: list[tuple[float, int, int]] = []  # what ends, ends before what begins at that moment
    for s in timeline.spans:
        if s.rank == rank and s.kind == "forward":
            changes.append((s.end_s, 1, kept))
        if s.rank == rank and s.kind == "backward":
            changes += [(s.end_s, 0, -kept), (s.start_s, 2, meanwhile), (s.end_s, 0, -meanwhile)]
    most = held = 0
    for _, _, change in sorted(changes):
        held += change
        most = max(most, held)
    return most


@settings(max_examples=60, deadline=None)
@given(plans(), st.floats(0.0, 0.01), st.randoms(use_true_random=False))
def test_the_fullest_moment_of_the_timeline_is_what_is_priced(
    plan: Plan, latency_s: float, chance: object
) -> None:
    names = [plan.device(r) for r in range(plan.n_ranks)]
    n = len(names)
    rng = np.random.default_rng(chance.getrandbits(32))  # type: ignore[attr-defined]
    topology = Topology(
        tuple(Device(name) for name in names), np.full((n, n), latency_s), rng.uniform(1e6, 1e9, (n, n))
    )
    devices = [device_profile(MODEL, name, float(rng.uniform(1e8, 1e10)), 1e9) for name in names]
    timeline = predict(plan, MODEL, devices, topology)
    model = priced(Setting.of(plan), MODEL, devices, topology).model
    for rank, needed in enumerate(headroom(plan, MODEL, topology)):
        start, stop = plan.partition[plan.stage_of(rank)]
        layers = model.layers[start:stop]
        tokens = plan.micro_batch * 32 * 8
        if plan.recompute:
            inputs = tokens if start == 0 else model.layers[start - 1].boundary_bytes
            kept = inputs + (tokens if stop == 8 else 0)
            meanwhile = sum(x.saved_bytes for x in layers)
        else:
            kept, meanwhile = sum(x.saved_bytes for x in layers), 0
        weights = sum(2 * x.parameter_bytes + x.state_bytes for x in layers)
        if (start, stop) == (0, 8):  # a tied head is the embedding's
            shared = min(layers[0].parameter_bytes, layers[-1].parameter_bytes)
            weights -= 2 * shared + min(layers[0].state_bytes, layers[-1].state_bytes)
        boundary = max(x.boundary_bytes for x in model.layers[max(0, start - 1) : stop])
        weights += sum(x.working_bytes for x in layers)
        assert needed.needed_bytes == weights + boundary + held_bytes(timeline, rank, kept, meanwhile)
        assert held_bytes(timeline, rank, 1, 0) == in_flight(plan.actions(rank))


@settings(max_examples=60, deadline=None)
@given(plans(), st.floats(0.05, 1.5))
def test_what_a_cut_lets_through_fits_and_what_it_refuses_does_not(plan: Plan, share: float) -> None:
    """A device has `share` of what the plan's own cut needs of it."""
    names = [plan.device(r) for r in range(plan.n_ranks)]
    n = len(names)
    bare = Topology(tuple(Device(name) for name in names), np.zeros((n, n)), np.ones((n, n)))
    needs = headroom(plan, MODEL, bare)
    memory = {h.device: max(1, int(share * h.needed_bytes)) for h in needs}
    devices = tuple(Device(name, memory_bytes=memory[name]) for name in names)
    topology = Topology(devices, bare.latency_s, bare.bandwidth_Bps)
    profiles = {name: device_profile(MODEL, name, 1e9) for name in names}
    model = priced(Setting.of(plan), MODEL, list(profiles.values()), topology).model
    most = [max(in_flight(plan.actions(r)) for r in plan.group(s)) for s in range(plan.n_stages)]
    stages = [[profiles[plan.device(r)] for r in plan.group(s)] for s in range(plan.n_stages)]
    try:
        cut = partition(model, stages, memory, most)
    except DoesNotFit:
        # The plan's own cut is one of those that were refused.
        needed = [stage_memory_bytes(model, *plan.partition[s], most[s]) for s in range(plan.n_stages)]
        assert any(
            n_bytes > min(memory[p.device] for p in stage)
            for n_bytes, stage in zip(needed, stages, strict=True)
        )
        return
    fitted = replace(plan, partition=cut)
    assert all(h.spare_bytes >= 0 for h in headroom(fitted, MODEL, topology))
