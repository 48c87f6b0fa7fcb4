"""The codecs of a plan: the job's where it names them; under `auto` the least that makes the step short."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compression.spec import codec_spec
from scheduler.choose_codecs import LADDERS, SLACK, choose_codecs, job_codecs
from scheduler.cost import durations, step_time_s
from scheduler.job import JobSpec, parse_job
from scheduler.plan import Plan
from scheduler.planner import make_plan
from scheduler.profile import DeviceProfile, LayerProfile, ModelProfile
from scheduler.topology import Device, Topology

HIDDEN, BATCH, LENGTH = 512, 2, 128
BOUNDARY_BYTES = 4 * HIDDEN * BATCH * LENGTH  # 524 kB


def job(compression: str, stages: int = 3, replicas: int = 1) -> JobSpec:
    return parse_job(
        f"""
name: choose
model: {{layers: 4, hidden: {HIDDEN}, heads: 4}}
data: {{files: [a.txt]}}
sequence_length: {LENGTH}
global_batch: 16
micro_batch: {BATCH}
steps: 10
parallelism: {{stages: {stages}, replicas: {replicas}}}
compression: {compression}
""",
        "choose.yaml",
    )


def model() -> ModelProfile:
    layer = LayerProfile("l", 1e9, 2e9, 4_000_000, BOUNDARY_BYTES, 1000, 1000)
    return ModelProfile(tuple(replace(layer, name=f"l{i}") for i in range(6)), BATCH, LENGTH)


def devices(n: int, seconds: float = 0.01) -> list[DeviceProfile]:
    return [DeviceProfile(f"d{i}", (seconds,) * 6, (2 * seconds,) * 6, (0.001,) * 6) for i in range(n)]


def topology(n: int, slow: dict[tuple[int, int], float], fast_Bps: float = 1e9) -> Topology:
    bandwidth_Bps = np.full((n, n), fast_Bps)
    for (i, j), rate in slow.items():
        bandwidth_Bps[i, j] = bandwidth_Bps[j, i] = rate
    return Topology(tuple(Device(f"d{i}") for i in range(n)), np.zeros((n, n)), bandwidth_Bps)


def choose(asked: JobSpec, links: Topology, n: int = 3) -> Plan:
    cut = ((0, 2), (2, 4), (4, 6))
    plan = Plan(1, (tuple(f"d{i}" for i in range(n)),), cut, (8,), "1f1b")
    return choose_codecs(asked, plan, model(), lambda p: step_time_s(p, model(), devices(n), links))


AUTO = "{activations: auto, gradients: auto}"


def test_without_a_word_of_the_job_a_plan_has_no_codecs() -> None:
    plan = Plan(1, (("d0", "d1", "d2"),), ((0, 2), (2, 4), (4, 6)), (8,), "1f1b")
    assert choose_codecs(job("{}"), plan, model(), lambda _: 1.0) is plan


def test_the_job_s_codecs_stand_at_every_boundary_and_stage_and_are_priced() -> None:
    plan = choose(job("{activations: {kbit: {bits: 4}}, reduce: kbit}"), topology(3, {}))
    assert plan.codecs.activation == ("kbit:bits=4",) * 2
    assert plan.codecs.gradient == ()
    assert plan.codecs.reduce == ("kbit",) * 3
    priced = durations(plan, model(), devices(3), topology(3, {}))
    assert priced.activation_bytes == (codec_spec("kbit:bits=4").wire_bytes((BATCH, LENGTH, HIDDEN), 4),) * 2
    assert priced.gradient_bytes == (BOUNDARY_BYTES,) * 2
    assert priced.reduce_bytes == (codec_spec("kbit").wire_bytes((2_000_000,), 4),) * 3


def test_the_search_prices_what_the_plan_will_say() -> None:
    asked = job("{activations: {kbit: {bits: 4}}, gradients: fp16, reduce: kbit}")
    plan = Plan(1, (("d0", "d1", "d2"),), ((0, 2), (2, 4), (4, 6)), (8,), "1f1b")
    before = durations(plan, model(), devices(3), topology(3, {}), job_codecs(asked, model()))
    assert before == durations(choose(asked, topology(3, {})), model(), devices(3), topology(3, {}))


def test_auto_leaves_links_alone_that_hold_nothing_up() -> None:
    plan = choose(job(AUTO), topology(3, {}))
    assert plan.codecs == Plan(1, (), (), (), "").codecs
    assert "No link is worth compressing" in plan.reasons[-1]


def test_auto_compresses_the_slow_boundary_and_no_other() -> None:
    plan = choose(job(AUTO), topology(3, {(1, 2): 10e6}))  # 52 ms a tensor, 20 ms a forward
    assert plan.codecs.activation[0] == "identity"
    assert plan.codecs.activation[1] != "identity"
    assert plan.codecs.gradient[0] == "identity"
    assert plan.codecs.gradient[1] != "identity"
    assert "against" in plan.reasons[-1]


def test_auto_takes_no_more_than_is_needed_and_all_of_it_where_it_is_not_enough() -> None:
    enough, slow = (topology(3, {(1, 2): rate}) for rate in (30e6, 0.1e6))
    mild, strong = choose(job(AUTO), enough), choose(job(AUTO), slow)
    ladder = LADDERS["activation"]
    assert 0 < ladder.index(mild.codecs.activation[1]) < ladder.index(strong.codecs.activation[1])
    assert strong.codecs.activation[1] == ladder[-1]
    most = replace(
        strong,
        codecs=replace(strong.codecs, activation=(ladder[-1],) * 2, gradient=(LADDERS["gradient"][-1],) * 2),
    )
    for plan, links in ((mild, enough), (strong, slow)):
        assert plan.predicted_step_s <= step_time_s(most, model(), devices(3), links) * (1 + SLACK)


def test_two_links_that_hold_the_step_up_alike_are_both_compressed() -> None:
    plan = choose(job(AUTO), topology(3, {(0, 1): 1e6, (1, 2): 1e6}))
    assert "identity" not in plan.codecs.activation


def test_auto_stays_within_the_error_budget() -> None:
    tight = "{activations: {auto: {max_error: 0.01}}}"
    plan = choose(job(tight), topology(3, {(1, 2): 0.1e6}))
    shape = (BATCH, LENGTH, HIDDEN)
    assert plan.codecs.activation[1] == "kbit"
    assert all(codec_spec(name).relative_error(shape) <= 0.01 for name in plan.codecs.activation)


def test_the_planner_gives_its_plan_the_codecs() -> None:
    asked = job("{activations: auto, gradients: auto, reduce: auto}", stages=3, replicas=2)
    links = topology(6, {(i, j): 0.5e6 for i in range(6) for j in range(i)})
    plan = make_plan(asked, model(), devices(6), links, 1)
    assert plan.codecs.activation
    assert plan.codecs.reduce
    assert plan.predicted_step_s == pytest.approx(step_time_s(plan, model(), devices(6), links))
    assert any("Codecs, the least" in reason for reason in plan.reasons)
