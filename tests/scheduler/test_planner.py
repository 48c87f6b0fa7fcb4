"""Plans from measurements: the shape that is fastest, who stands beside whom, and what is said about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from scheduler.bottleneck import bottleneck, what_takes_long
from scheduler.cost import step_time_s
from scheduler.job import DataSpec, JobSpec, ModelSpec, ParallelismSpec, ScheduleSpec
from scheduler.partition import DoesNotFit
from scheduler.placement import region_order
from scheduler.planner import Placing, PlanError, describe, make_plan, split_micro_batches, stage_of_layers
from scheduler.profile import DeviceProfile, LayerProfile, ModelProfile
from scheduler.timeline import Span, Timeline
from scheduler.topology import Device, Topology
from scheduler.units import duration, size

MB = 2**20


def a_job(
    layers: int = 6,
    batch: int = 8,
    shape: tuple[int, int] | None = None,
    name: str = "1f1b",
    **keys: object,
) -> JobSpec:
    job = JobSpec(
        name="t",
        model=ModelSpec(layers=layers),
        data=DataSpec(files=("x.txt",)),
        sequence_length=8,
        global_batch=batch,
        micro_batch=1,
        steps=1,
        parallelism="auto" if shape is None else ParallelismSpec(stages=shape[0], replicas=shape[1]),
        schedule=ScheduleSpec(name=name),  # type: ignore[arg-type]
    )
    return job.model_copy(update=keys)


def a_model(layers: int = 6, boundary: int = MB, parameters: int = MB) -> ModelProfile:
    middle = tuple(
        LayerProfile(f"block.{i}", 1, 2, parameters, boundary, MB, 2 * parameters) for i in range(layers)
    )
    first = LayerProfile("embedding", 1, 2, parameters, boundary, MB, 2 * parameters)
    last = LayerProfile("head", 1, 2, parameters, boundary, MB, 2 * parameters, tied_to="embedding")
    return ModelProfile((first, *middle, last), 1, 8)


def profiles(names: Sequence[str], n_layers: int = 8, seconds: float = 0.01) -> list[DeviceProfile]:
    forward, backward = (seconds,) * n_layers, (2 * seconds,) * n_layers
    return [DeviceProfile(n, forward, backward, (seconds / 10,) * n_layers) for n in names]


def a_topology(
    regions: Sequence[str], far_s: float = 0.05, memory: int = 0, near_Bps: float = 1e9
) -> Topology:
    """Devices d0, d1, … in `regions`; 1 ms within a region, `far_s` and a hundredth of the rate between."""
    same = np.array([[a == b for b in regions] for a in regions])
    devices = tuple(Device(f"d{i}", region=r, memory_bytes=memory) for i, r in enumerate(regions))
    return Topology(devices, np.where(same, 1e-3, far_s), np.where(same, near_Bps, near_Bps / 100))


def names(topology: Topology) -> list[str]:
    return [d.name for d in topology.devices]


def test_one_device_holds_everything() -> None:
    t = a_topology(["eu"])
    plan = make_plan(a_job(), a_model(), profiles(names(t)), t, version=3)
    assert (plan.version, plan.placement, plan.partition) == (3, (("d0",),), ((0, 8),))
    assert plan.predicted_step_s == pytest.approx(8 * 8 * 0.03 + 8 * 0.001)


def test_of_many_placements_the_twin_says_what_their_plans_would_take_unless_cards_are_shared() -> None:
    t = a_topology(["eu", "eu", "us", "us"])
    rows = [(("d0", "d1"), ("d2", "d3")), (("d0", "d2"), ("d1", "d3")), (("d3", "d0"), ("d1", "d2"))]
    placing = Placing(a_job(), a_model(), profiles(names(t)), t)
    found = [placing.placed(r) for r in rows]
    assert all(f.exact for f in found)
    assert [f.step_s for f in found] == pytest.approx([f.plan(1).predicted_step_s for f in found])
    assert len({round(f.step_s, 9) for f in found}) > 1
    carded = Topology(tuple(replace(d, uplink_Bps=1e7) for d in t.devices), t.latency_s, t.bandwidth_Bps)
    assert not Placing(a_job(), a_model(), profiles(names(t)), carded).placed(rows[0]).exact


def test_auto_takes_the_shape_with_the_shortest_step_and_says_against_what() -> None:
    t = a_topology(["eu"] * 4)
    model, devices = a_model(), profiles(names(t))
    plan = make_plan(a_job(), model, devices, t, version=1)
    assert plan.predicted_step_s == step_time_s(plan, model, devices, t)
    forced = [make_plan(a_job(shape=s), model, devices, t, version=1) for s in ((4, 1), (2, 2), (1, 4))]
    assert plan.predicted_step_s == min(p.predicted_step_s for p in forced)
    first = plan.reasons[0]
    _, second, *_ = sorted(forced, key=lambda p: p.predicted_step_s)
    assert f"{second.n_stages} x {second.n_replicas}: {duration(second.predicted_step_s)}" in first


def test_heavy_weights_make_pipelines_and_heavy_boundaries_make_replicas() -> None:
    t = a_topology(["eu"] * 4, near_Bps=1e8)
    devices = profiles(names(t))
    heavy_weights = a_model(boundary=1, parameters=100 * MB)
    assert make_plan(a_job(), heavy_weights, devices, t, 1).n_replicas == 1
    heavy_boundaries = a_model(boundary=100 * MB, parameters=1)
    assert make_plan(a_job(), heavy_boundaries, devices, t, 1).n_stages == 1


def test_neighbours_in_a_pipeline_are_near() -> None:
    t = a_topology(["eu", "us", "eu", "us", "eu", "us"])
    plan = make_plan(a_job(shape=(6, 1)), a_model(), profiles(names(t)), t, version=1)
    region = {d.name: d.region for d in t.devices}
    crossings = [
        (a, b)
        for a, b in zip(plan.placement[0], plan.placement[0][1:], strict=False)
        if region[a] != region[b]
    ]
    assert len(crossings) == 1


def test_near_regions_stand_next_to_each_other() -> None:
    """On a line a - b - c the middle one is between, whatever the names' order."""
    devices = (Device("x", region="b"), Device("y", region="c"), Device("z", region="a"))
    at = [1.0, 2.0, 0.0]
    latency = np.array([[abs(p - q) for q in at] for p in at])
    t = Topology(devices, latency, np.full((3, 3), 1e9))
    assert region_order(t, ["x", "y", "z"], 1.0) in {("z", "x", "y"), ("y", "x", "z")}


def test_unknown_regions_are_each_their_own() -> None:
    t = a_topology(["eu", "us", "eu"])
    nameless = Topology(tuple(replace(d, region="") for d in t.devices), t.latency_s, t.bandwidth_Bps)
    order = region_order(nameless, names(t), MB)
    assert order.index("d1") in (0, 2)


def test_with_heavy_weights_the_replicas_of_a_stage_stand_side_by_side() -> None:
    t = a_topology(["eu", "eu", "us", "us"])
    model = a_model(boundary=1000, parameters=20 * MB)
    plan = make_plan(a_job(shape=(2, 2)), model, profiles(names(t)), t, version=1)
    assert set(plan.placement) == {("d0", "d2"), ("d1", "d3")}
    assert any(r.startswith("Placed as replicas of a stage side by side") for r in plan.reasons)


def test_a_given_shape_takes_the_first_devices_and_no_more() -> None:
    t = a_topology(["eu", "us", "eu"])
    plan = make_plan(a_job(shape=(2, 1)), a_model(), profiles(names(t)), t, version=1)
    assert set(plan.placement[0]) == {"d0", "d2"}
    assert any("Left out: d1; the job needs no more" in r for r in plan.reasons)


def test_devices_that_no_shape_can_use_are_left_out() -> None:
    """Five devices, three layers, one micro-batch: no more than three stages of one replica."""
    t = a_topology(["eu"] * 5, near_Bps=1e12)
    plan = make_plan(a_job(layers=1, batch=1), a_model(1), profiles(names(t), 3), t, version=1)
    assert plan.n_replicas == 1
    assert any("Left out: d" in r for r in plan.reasons)


def test_a_device_that_makes_the_step_slower_is_left_out_with_its_price() -> None:
    t = a_topology(["eu", "eu", "moon"], far_s=30.0)
    plan = make_plan(a_job(), a_model(), profiles(names(t)), t, version=1)
    assert {name for row in plan.placement for name in row} == {"d0", "d1"}
    told = next(
        r for r in plan.reasons if r.startswith("Left out: d2; the best plan found with more devices")
    )
    worse = min(
        make_plan(a_job(shape=s), a_model(), profiles(names(t)), t, version=1).predicted_step_s
        for s in ((3, 1), (1, 3))
    )
    assert duration(worse) in told


def test_micro_batches_that_do_not_divide_are_told() -> None:
    assert split_micro_batches(7, 3) == (3, 2, 2)
    t = a_topology(["eu"] * 3)
    plan = make_plan(a_job(batch=7, shape=(1, 3)), a_model(), profiles(names(t)), t, version=1)
    assert plan.micro_batches == (3, 2, 2)
    assert any("7 micro-batches do not divide among 3 replicas" in r for r in plan.reasons)


def test_memory_forbids_shapes_and_is_told() -> None:
    """A device holds half the model: replicas of the whole cannot be."""
    t = a_topology(["eu", "eu"], memory=30 * MB)
    plan = make_plan(a_job(), a_model(boundary=1), profiles(names(t)), t, version=1)
    assert (plan.n_stages, plan.n_replicas) == (2, 1)
    assert "1 x 2: lacks memory on d0" in plan.reasons[0]
    assert any(r.startswith("Memory is tightest on d") for r in plan.reasons)
    tiny = a_topology(["eu", "eu"], memory=MB)
    with pytest.raises(DoesNotFit, match="are missing") as caught:
        make_plan(a_job(), a_model(), profiles(names(tiny)), tiny, version=1)
    # Of thousands of settings that do not fit each keeps its words, not the frames with the cuts it tried.
    assert "partition" not in {entry.name for entry in caught.traceback}


def test_gpipe_needs_the_memory_of_all_its_micro_batches() -> None:
    t = a_topology(["eu", "eu"], memory=45 * MB)
    assert make_plan(a_job(shape=(2, 1)), a_model(), profiles(names(t)), t, version=1).n_stages == 2
    job = a_job(shape=(2, 1), name="gpipe", recompute=False)
    with pytest.raises(DoesNotFit):
        make_plan(job, a_model(), profiles(names(t)), t, version=1)


def test_what_lacks_memory_is_recomputed_where_the_job_leaves_that_open() -> None:
    t = a_topology(["eu", "eu"], memory=45 * MB)
    plan = make_plan(a_job(shape=(2, 1), name="gpipe"), a_model(), profiles(names(t)), t, version=1)
    assert plan.recompute
    assert any(r.startswith("Run so because doing forwards again saves memory; ") for r in plan.reasons)
    roomy = a_topology(["eu", "eu"], memory=1000 * MB)
    plain = make_plan(a_job(shape=(2, 1), name="gpipe"), a_model(), profiles(names(t)), roomy, version=1)
    assert not plain.recompute
    assert plain.predicted_step_s < plan.predicted_step_s


def test_open_knobs_are_turned_where_that_pays() -> None:
    """Latency of 50 ms against 10 ms a layer: more in flight, and more flows where one carries a tenth."""
    t = a_topology(["eu", "us"])
    slow_flows = Topology(t.devices, t.latency_s, t.bandwidth_Bps, t.bandwidth_Bps / 10)
    fixed = a_job(shape=(2, 1), batch=32)
    job = fixed.model_copy(
        update={"schedule": ScheduleSpec(name="auto", warmup_extra="auto"), "micro_batch": "auto"}
    )
    taken = make_plan(fixed, a_model(), profiles(names(t)), slow_flows, version=1)
    plan = make_plan(job, a_model(), profiles(names(t)), slow_flows, version=1)
    assert taken.streams > 1
    assert plan.streams > 1
    assert plan.warmup_extra > 0
    assert plan.samples == taken.samples == 32
    assert plan.predicted_step_s < taken.predicted_step_s
    assert plan.predicted_step_s == step_time_s(plan, a_model(), profiles(names(t)), slow_flows)


def test_the_bottleneck_is_named() -> None:
    devices = profiles(["d0", "d1", "d2"])
    devices[1] = profiles(["d1"], seconds=0.5)[0]
    t = a_topology(["eu"] * 3)
    plan = make_plan(a_job(shape=(1, 3), batch=3), a_model(), devices, t, version=1)
    worst = bottleneck(plan, a_model(), devices, t)
    assert (worst.device, worst.link, worst.is_link) == ("d1", None, False)
    slow = a_topology(["eu", "us"], near_Bps=1e7)
    plan = make_plan(a_job(shape=(2, 1)), a_model(), profiles(names(slow)), slow, version=1)
    assert any(r.startswith("The bottleneck is the link d") for r in plan.reasons)


def test_the_critical_path_is_told_in_shares() -> None:
    spans = (
        Span(0, "forward", 0, 1, mb=0),
        Span(0, "send", 1, 3, mb=0, peer=1),
        Span(1, "wait", 0, 3, mb=0, peer=0),
        Span(1, "backward", 3, 4, mb=0),
        Span(1, "reduce", 4, 8),
    )
    told = what_takes_long(Timeline(2, spans))
    assert told == (
        "The step's critical path is 25% compute, 25% transfers between stages, 50% gradient reduction."
    )
    assert what_takes_long(Timeline(1, ())) == "The step's critical path is empty."


def test_the_same_measurements_give_the_same_plan_in_any_order() -> None:
    t = a_topology(["eu", "us", "eu", "asia"])
    devices = profiles(names(t))
    plan = make_plan(a_job(), a_model(), devices, t, version=1)
    assert make_plan(a_job(), a_model(), devices[::-1], t, version=1) == plan
    turned = t.subset([3, 1, 0, 2])
    assert make_plan(a_job(), a_model(), devices, turned, version=1) == plan


def test_stage_of_layers_follows_the_partition() -> None:
    t = a_topology(["eu"] * 2)
    plan = make_plan(a_job(shape=(2, 1)), a_model(), profiles(names(t)), t, version=1)
    stages = stage_of_layers(plan)
    assert len(stages) == 8
    assert list(stages) == sorted(stages)
    assert all(a <= i < b for i, s in enumerate(stages) for a, b in [plan.partition[s]])


def test_describe_tells_who_holds_what_and_why() -> None:
    t = a_topology(["eu", "us"], memory=1000 * MB)
    model, devices = a_model(), profiles(names(t))
    plan = make_plan(a_job(shape=(2, 1)), model, devices, t, version=7)
    lines = describe(plan, model, t, devices).splitlines()
    assert lines[0] == "plan 7: 2 stages x 1 replica, 1f1b, 8 micro-batches of 1 sample a step"
    assert lines[1].startswith(f"predicted step: {duration(plan.predicted_step_s)}; ")
    table = [line for line in lines if " d0 " in line or " d1 " in line][:2]
    assert "0-3 (embedding … block.2)" in table[0]
    assert "4-7 (block.3 … head)" in table[1]
    assert all("MiB" in row for row in table)
    for reason in plan.reasons:
        assert f"  - {reason}" in lines


@pytest.mark.parametrize(
    ("job", "n_devices", "says"),
    [
        (a_job(shape=(2, 2)), 3, "found 3 devices, required 4 for 2 stages x 2 replicas; let 1 more join"),
        (a_job(), 0, "found no device"),
        (a_job(layers=5), 2, "found profiles of 8 layers, required 7"),
        (a_job(shape=(9, 1)), 9, "found 9 stages, required at most 8"),
        (a_job(batch=2, shape=(1, 3)), 3, "found 3 replicas, required at most 2"),
        (
            a_job().model_copy(update={"micro_batch": 3}),
            2,
            "global_batch 8, required a multiple of micro_batch 3",
        ),
    ],
)
def test_impossible_requests_say_what_is_required(job: JobSpec, n_devices: int, says: str) -> None:
    t = a_topology(["eu"] * max(n_devices, 1))
    with pytest.raises(PlanError, match=says):
        make_plan(job, a_model(), profiles(names(t)[:n_devices]), t, version=1)


def test_unmeasured_devices_are_named() -> None:
    t = a_topology(["eu"])
    with pytest.raises(PlanError, match="profiles of d1, which no link was measured to"):
        make_plan(a_job(), a_model(), profiles(["d0", "d1"]), t, version=1)


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (3, "3 B"), (1024, "1.00 KiB"), (1536 * MB, "1.50 GiB"), (-2 * MB, "-2.00 MiB")],
)
def test_sizes_read_well(n: int, text: str) -> None:
    assert size(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (1.214, "1.21 s"),
        (0.035, "35.0 ms"),
        (1.2e-4, "120 µs"),
        (125.4, "2 min 05 s"),
        (0.9999, "1.00 s"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
