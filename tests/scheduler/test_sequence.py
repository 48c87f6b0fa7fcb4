"""Sequences divided among replicas: what a job may ask, what it costs, how the engine replays it."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.analytic import device_profile, job_profile
from scheduler.cost import durations, predict, stage_memory_bytes, step_time_s
from scheduler.engine import replay
from scheduler.flows import TopologyNetwork
from scheduler.job import JobError, JobSpec, ScheduleSpec, parse_job
from scheduler.layer_sources import holdings_of
from scheduler.network import FreeNetwork
from scheduler.partition import DoesNotFit
from scheduler.plan import Plan
from scheduler.planner import describe, make_plan
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.recovery import Gather, GoOn, Standing, recover
from scheduler.replan import Measured
from scheduler.schedule import in_flight
from scheduler.sequence import earlier_shards, passed_on, shard_bounds
from scheduler.settings import Setting, priced
from scheduler.topology import Device, Topology
from scheduler.traffic import traffic
from tests.scheduler.test_flows import Counted, steady

JOB = """
name: long
model: {family: llama, layers: LAYERS, hidden: 64, heads: 4, kv_heads: 2, vocab: 300}
data: {files: [x.txt]}
sequence_length: LENGTH
global_batch: 8
micro_batch: 2
steps: 10
recompute: false
streams: 1
parallelism: {stages: STAGES, replicas: REPLICAS, split: sequence}
"""


def a_job(
    stages: int = 2, replicas: int = 2, length: int = 512, layers: str = "4", more: str = ""
) -> JobSpec:
    text = JOB.replace("LAYERS", layers).replace("LENGTH", str(length))
    return parse_job(text.replace("STAGES", str(stages)).replace("REPLICAS", str(replicas)) + more, "t.yaml")


def a_network(n: int, latency_s: float = 0.001, bandwidth_Bps: float = 1e8, memory: int = 0) -> Topology:
    devices = tuple(Device(f"d{i}", memory_bytes=memory) for i in range(n))
    return Topology(devices, np.full((n, n), latency_s), np.full((n, n), bandwidth_Bps))


def profiles(model: ModelProfile, speeds: list[float]) -> list[DeviceProfile]:
    return [device_profile(model, f"d{i}", s, memory_Bps=1e12) for i, s in enumerate(speeds)]


def a_plan(job: JobSpec, recompute: bool = False) -> Plan:
    assert job.asked_shape is not None
    stages, replicas = job.asked_shape
    cuts = [job.n_layers * s // stages for s in range(stages + 1)]
    rows = tuple(tuple(f"d{r * stages + s}" for s in range(stages)) for r in range(replicas))
    shares = (job.micro_batches,) * replicas
    return Plan(
        1,
        rows,
        tuple(pairwise(cuts)),
        shares,
        "1f1b",
        micro_batch=2,
        recompute=recompute,
        split="sequence",
    )


# ---- what a job may ask


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("[[ssd, mlp]]", r"block.00 has 'ssd', which carries a state .*; required attention to all earlier"),
        ("[[attention, mlp], [attention butterfly=16, mlp]]", r"block.01 .* sees a butterfly of blocks"),
        ("[[attention, experts balance=0.01]]", r"block.00 .* looks at all positions of a sample"),
        ("[[attention kernel=triton, mlp]]", r"block.00 .* asks for one kernel over all positions"),
    ],
)
def test_layers_that_cannot_be_divided_are_named(layers: str, said: str) -> None:
    with pytest.raises(JobError, match=f"parallelism.split: found sequence for a model whose {said}"):
        a_job(layers=layers)


def test_a_split_that_cannot_be_is_refused() -> None:
    with pytest.raises(JobError, match="9 replicas for sequences of 8 positions; required at most 8"):
        a_job(1, 9, 8)
    with pytest.raises(JobError, match=r"local_steps: found it beside parallelism.split sequence"):
        a_job(more="local_steps: {every: 2}")
    said = r"parallelism.split: found .samples.; required 'auto', 'batch' or 'sequence'"
    with pytest.raises(JobError, match=said):
        parse_job(JOB.replace("split: sequence", "split: samples").replace("LAYERS", "2"), "t.yaml")


def test_more_replicas_than_micro_batches_may_share_sequences() -> None:
    assert a_job(1, 8).most_replicas == 512
    assert a_job(1, 8, layers="[[attention window=8, mlp], [attention, experts]]").split == "sequence"


# ---- arithmetic


@given(st.integers(1, 300), st.integers(1, 12), st.integers(0, 320))
def test_a_shard_sees_exactly_the_shards_with_positions_it_sees(
    length: int, shards: int, window: int
) -> None:
    bounds = shard_bounds(length, min(shards, length))
    for i, (start, _) in enumerate(bounds):
        seen = [j for j in range(i) if not window or bounds[j][1] - 1 > start - window]
        assert list(earlier_shards(bounds, i, window)) == seen[::-1]
        following = list(earlier_shards(bounds, i + 1, window)) if i + 1 < len(bounds) else []
        assert list(passed_on(bounds, i, window)) == following


@pytest.mark.parametrize("length", [512, 509])
def test_shards_together_cost_what_the_whole_costs(length: int) -> None:
    job = a_job(1, 3, length)
    model = job_profile(job)
    whole = device_profile(model, "d0", 1e12)
    shards = [whole.in_shard(a, b, length) for a, b in shard_bounds(length, 3)]
    for layer in range(len(model.layers)):
        for way in ("forward_s", "backward_s"):
            assert sum(getattr(s, way)[layer] for s in shards) == pytest.approx(getattr(whole, way)[layer])
    blocks = [s.forward_s[1] for s in shards]
    assert blocks[0] < blocks[1] < blocks[2]
    # Of a square of pairs the third third has five ninths: what positions cost alone is shared evenly.
    pairs = model.layers[1].pair_flops / 1e12
    assert blocks[2] - blocks[0] == pytest.approx(pairs * 4 / 9, rel=0.02)


def test_a_shards_tensors_are_its_part_and_it_keeps_the_keys_it_is_sent() -> None:
    model = job_profile(a_job())
    shard = priced(Setting(shards=4), model, (), a_network(1)).model
    assert (shard.sequence_length, shard.tokens_bytes) == (128, 2 * 128 * 8)
    for a, b in zip(model.layers, shard.layers, strict=True):
        assert b.boundary_bytes * 4 == a.boundary_bytes
        keys = 2 * 2 * 512 * 2 * 16 * 4 if a.name.startswith("block") else 0
        assert sum(k.n_bytes for k in a.keys) == keys
        assert b.saved_bytes == a.saved_bytes // 4 + keys
        assert b.parameter_bytes == a.parameter_bytes
    assert priced(Setting(shards=4), shard, (), a_network(1)).model == shard, "priced once only"


# ---- the engine


def test_without_links_a_row_ends_with_its_last_shard() -> None:
    """One micro-batch, one stage: no forward waits, and each backward waits for the gradients of its keys."""
    job = replace_batch(a_job(1, 2))
    model = job_profile(job)
    plan = replace(a_plan(job), micro_batches=(1, 1))
    costs = durations(plan, model, profiles(model, [1e10, 1e10]), a_network(2))
    timeline = replay(plan, costs, FreeNetwork())
    ends = [
        max(s.end_s for s in timeline.spans if s.rank == r and s.kind in ("forward", "backward"))
        for r in (0, 1)
    ]
    assert costs.forward_s[1] > costs.forward_s[0]
    assert ends[1] == pytest.approx(costs.forward_s[1] + costs.backward_s[1])
    waits = [s for s in timeline.spans if s.kind == "wait" and s.mb == 0]
    assert waits
    assert {(s.rank, s.peer) for s in waits} == {(0, 1)}
    # Behind the last shard's last attention the first still has that block's backward and the embedding's.
    assert costs.rows is not None
    assert ends[0] == pytest.approx(
        ends[1] - sum(costs.rows.backward_pieces_s[1][:1]) + costs.rows.backward_pieces_s[0][0]
    )


def replace_batch(job: JobSpec) -> JobSpec:
    return job.model_copy(update={"global_batch": 2})


def test_keys_that_take_long_delay_who_needs_them() -> None:
    job = replace_batch(a_job(1, 2))
    model = job_profile(job)
    plan = replace(a_plan(job), micro_batches=(1, 1))
    devices, latency_s = profiles(model, [1e15, 1e15]), 0.5
    network = TopologyNetwork(a_network(2, latency_s, 1e15))
    timeline = replay(plan, durations(plan, model, devices, a_network(2)), network)
    first_backward = min(s.start_s for s in timeline.spans if s.rank == 1 and s.kind == "backward")
    last_backward = max(s.end_s for s in timeline.spans if s.rank == 0 and s.kind == "backward")
    # Four blocks' keys leave one behind the other, at once; the way back is waited for once a block, but the
    # gradients of all blocks are under way together, too.
    assert first_backward == pytest.approx(latency_s, rel=1e-3)
    assert last_backward == pytest.approx(2 * latency_s, rel=1e-3)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from(["4", "[[attention window=200, mlp], [attention, attention window=3, mlp]]"]),
    st.booleans(),
    st.booleans(),
)
def test_the_engine_moves_what_the_plan_says(
    stages: int, replicas: int, layers: str, again: bool, unequal: bool
) -> None:
    job = a_job(stages, replicas, layers=layers)
    sizes = (512 - 100 * (replicas - 1), *(100,) * (replicas - 1)) if unequal and replicas > 1 else ()
    model, plan = job_profile(job), replace(a_plan(job, again), shard_sizes=sizes)
    n = stages * replicas
    costs = durations(plan, model, profiles(model, [1e12] * n), a_network(n))
    network = Counted(steady(0.1, 1e6))
    timeline = replay(plan, costs, network)
    said = {(plan.device(a), plan.device(b)): n for (a, b), n in traffic(plan, costs).items() if n}
    assert said == pytest.approx({link: n for link, n in network.sent.items() if n})
    # Every rank computes what it was said to, however its spans are parted.
    for rank in range(plan.n_ranks):
        for kind, each in (("forward", costs.forward_s), ("backward", costs.backward_s)):
            told = sum(s.duration_s for s in timeline.spans if (s.rank, s.kind) == (rank, kind))
            assert told == pytest.approx(job.micro_batches * each[rank])


# ---- plans


def test_a_job_that_divides_sequences_is_planned_and_told() -> None:
    job = a_job(2, 3)
    model, network = job_profile(job), a_network(6)
    devices = profiles(model, [1e11] * 6)
    plan = make_plan(job, model, devices, network, 1)
    assert (plan.n_stages, plan.n_replicas, plan.split) == (2, 3, "sequence")
    assert plan.micro_batches == (4, 4, 4)
    assert plan.samples == job.global_batch
    assert plan.predicted_step_s == pytest.approx(step_time_s(plan, model, devices, network))
    text = describe(plan, model, network, devices)
    assert "sequences in 3 shards, 4 micro-batches of 2 samples a step" in text
    sizes = ", ".join(map(str, plan.shard_sizes))
    assert f"Replicas share every sequence: shards of {sizes} positions, longer where each" in plan.explain()
    assert "No plan of the shapes" not in plan.explain()
    slow = a_network(6, bandwidth_Bps=1e5)
    told = make_plan(job, model, devices, slow, 1).explain()
    assert re.search(r"The bottleneck is the link .* a micro-batch's (gradients of )?keys", told)
    assert re.search(r"The step's critical path is .*\d\d% transfers between stages and shards", told)


def test_the_last_shard_which_has_most_pairs_is_given_to_the_fastest() -> None:
    job = a_job(1, 3, 8192)
    model = job_profile(job)
    for speeds in ([1e11, 4e11, 2e11], [4e11, 1e11, 2e11]):
        plan = make_plan(job, model, profiles(model, speeds), a_network(3, 1e-4, 1e12), 1)
        by_speed = [plan.devices[r] for r in range(3)]
        assert [speeds[int(d[1])] for d in by_speed] == [1e11, 2e11, 4e11]


def test_shards_fit_where_whole_sequences_do_not() -> None:
    job = a_job(1, 4, 4096)
    model = job_profile(job)
    whole = job.model_copy(update={"parallelism": job.parallelism.model_copy(update={"split": "batch"})})  # type: ignore[union-attr]
    shard = priced(Setting(shards=4), model, (), a_network(1)).model
    needed = stage_memory_bytes(shard, 0, len(model.layers), 1)
    network = a_network(4, memory=needed)
    devices = profiles(model, [1e12] * 4)
    assert make_plan(job, model, devices, network, 1).split == "sequence"
    with pytest.raises(DoesNotFit):
        make_plan(whole, model, devices, network, 1)


def test_links_within_a_row_are_chosen_for_the_keys() -> None:
    """Two sites, two stages, two shards: long sequences of a small model want a row within a site."""
    job = a_job(2, 2, 4096, layers="8")
    model = job_profile(job)
    devices = tuple(Device(f"d{i}", region="ab"[i % 2]) for i in range(4))
    same = np.array([[a.region == b.region for b in devices] for a in devices])
    network = Topology(devices, np.where(same, 1e-3, 0.05), np.where(same, 1e9, 1e7))
    plan = make_plan(job, model, profiles(model, [1e12] * 4), network, 1)
    for stage in range(2):
        assert len({int(plan.device(r)[1]) % 2 for r in plan.group(stage)}) == 1, plan.placement


# ---- recovery


def standing_of(plan: Plan, here: tuple[str, ...]) -> Standing:
    return Standing(plan, here, holdings_of(plan, 7, here), 7, 100, 5)


def test_a_lost_shard_leaves_longer_shards_to_the_others() -> None:
    job = a_job(1, 3, 512)
    model = job_profile(job)
    plan, here = a_plan(job), ("d0", "d2")
    network = a_network(3).subset([0, 2])
    found = recover(
        standing_of(plan, here),
        "too few",
        Measured(model, [p for p in profiles(model, [1e12] * 3) if p.device in here], network),
    )
    assert isinstance(found, GoOn)
    assert (found.way, found.plan.placement, found.plan.micro_batches) == (
        "fewer replicas",
        (("d0",), ("d2",)),
        (4, 4),
    )
    assert found.plan.shard_bounds(512) == ((0, 256), (256, 512))
    assert found.plan.predicted_step_s == pytest.approx(
        predict(found.plan, model, profiles(model, [1e12] * 3), a_network(3)).duration_s
    )


def test_longer_shards_that_do_not_fit_are_waited_for() -> None:
    job = a_job(1, 3, 512)
    model = job_profile(job)
    plan, here = a_plan(job), ("d0", "d2")
    in_three = priced(Setting(shards=3), model, (), a_network(1)).model
    needed = stage_memory_bytes(in_three, 0, len(model.layers), in_flight(plan.actions(0)))
    network = a_network(3, memory=needed).subset([0, 2])
    now = Measured(model, [p for p in profiles(model, [1e12] * 3) if p.device in here], network)
    found = recover(standing_of(plan, here), "found 2 devices, required 3", now)
    assert isinstance(found, Gather)
    assert "d1 is gone; 2 devices left: found 2 devices, required 3" in found.reason


def test_how_many_are_in_flight_is_judged_by_the_engine_which_sees_what_hides_keys() -> None:
    open_depth = {"schedule": ScheduleSpec(warmup_extra="auto"), "global_batch": 32}
    job = a_job(2, 2, 4096).model_copy(update=open_depth)
    model, network = job_profile(job), a_network(4, 0.2, 1e9)
    devices = profiles(model, [1e12] * 4)
    plan = make_plan(job, model, devices, network, 1)
    for extra in (0, 1, 2):
        other = replace(plan, warmup_extra=extra)
        assert plan.predicted_step_s <= step_time_s(other, model, devices, network) * (1 + 1e-9)
    flat = step_time_s(replace(plan, warmup_extra=0), model, devices, network)
    assert plan.warmup_extra > 0
    assert plan.predicted_step_s < 0.5 * flat
    lead = [in_flight(replace(plan, warmup_extra=2).actions(rank)) for rank in range(4)]
    assert lead == [1 + 3 + 2, 1 + 2, 1 + 3, 1], "as far ahead as stages follow and shards are behind"
