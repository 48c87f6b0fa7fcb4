"""A plan's codecs, link by link: the job's where it names them; under `auto` the least that is needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compression.spec import AcsgdSpec, codec_spec
from scheduler.bottleneck import headroom
from scheduler.choose_codecs import link_codecs
from scheduler.cost import durations, step_time_s
from scheduler.describe import describe
from scheduler.job import JobSpec, parse_job
from scheduler.job_compression import ActivationAutoOptions, AutoOptions
from scheduler.ladders import ladder
from scheduler.link_codecs import codecs_of_cells, codecs_of_plan
from scheduler.partition import DoesNotFit
from scheduler.plan import Plan
from scheduler.plan_codecs import NO_CODECS, PlanCodecs, same_everywhere
from scheduler.planner import make_plan, plan_for, search_for
from scheduler.profile import DeviceProfile, LayerProfile, ModelProfile
from scheduler.relax_codecs import SLACK, Place, relaxed
from scheduler.step_search import StepSearchOptions
from scheduler.step_time import plan_step_s, pricing_of
from scheduler.topology import Device, Topology
from scheduler.visits import Visits, acsgd_bytes

HIDDEN, BATCH, LENGTH = 512, 2, 128
BOUNDARY_BYTES = 4 * HIDDEN * BATCH * LENGTH  # 524 kB
SHAPE = (BATCH, LENGTH, HIDDEN)


def job(compression: str, stages: int = 3, replicas: int = 1, micro_batch: str = str(BATCH)) -> JobSpec:
    return parse_job(
        f"""
name: choose
model: {{layers: 4, hidden: {HIDDEN}, heads: 4}}
data: {{files: [a.txt]}}
sequence_length: {LENGTH}
global_batch: 16
micro_batch: {micro_batch}
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


def choose(asked: JobSpec, links: Topology) -> Plan:
    """Three stages in a row."""
    return plan_for((("d0", "d1", "d2"),), asked, model(), devices(3), links, 1)


def step_s(plan: Plan, links: Topology) -> float:
    return step_time_s(plan, model(), devices(len(links)), links)


AUTO = "{activations: auto, gradients: auto}"


def test_without_a_word_of_the_job_a_plan_has_no_codecs() -> None:
    plan = choose(job("{}"), topology(3, {(1, 2): 1e6}))
    assert plan.codecs == NO_CODECS
    assert not plan.reasons


def test_the_job_s_codecs_stand_at_every_boundary_and_stage_and_are_priced() -> None:
    plan = choose(job("{activations: {kbit: {bits: 4}}, reduce: kbit}"), topology(3, {}))
    assert plan.codecs == PlanCodecs((("kbit:bits=4",) * 2,), (), ("kbit",) * 3)
    priced = durations(plan, model(), devices(3), topology(3, {}))
    each = codec_spec("kbit:bits=4").wire_bytes(SHAPE, 4)
    assert priced.activation_bytes == (each, each, 0)
    assert priced.gradient_bytes == (0, BOUNDARY_BYTES, BOUNDARY_BYTES)
    assert priced.reduce_bytes == (codec_spec("kbit").wire_bytes((2_000_000,), 4),) * 3


def test_another_size_of_micro_batch_is_priced_at_its_own_shape() -> None:
    # Priced at the profiled size, rows of half a micro-batch were half as wide: no group of 64 divided 96.
    asked = parse_job(
        """
name: sizes
model: {layers: 4, hidden: 192, heads: 4}
data: {files: [a.txt]}
sequence_length: 128
global_batch: 16
micro_batch: auto
steps: 10
parallelism: {stages: 3, replicas: 1}
compression: {activations: {kbit: {bits: 4}}, gradients: tile}
""",
        "sizes.yaml",
    )
    sizes = model()
    wide = [replace(x, boundary_bytes=4 * 192 * asked.profiled_micro_batch * LENGTH) for x in sizes.layers]
    profiled = replace(sizes, layers=tuple(wide), micro_batch=asked.profiled_micro_batch)
    plan = make_plan(asked, profiled, devices(3), topology(3, {(1, 2): 1e6}), 1)
    assert plan.codecs == same_everywhere(3, 1, "kbit:bits=4", "tile")
    assert plan.micro_batch < asked.profiled_micro_batch  # the slow link fills sooner
    spec, shape = codec_spec("kbit:bits=4"), (plan.micro_batch, LENGTH, 192)
    priced = durations(plan, profiled, devices(3), topology(3, {}))
    assert priced.activation_bytes[0] == spec.wire_bytes(shape, 4)


LINKS = """
  reduce: kbit
  links:
    - {between: regions, activations: {kbit: {bits: 4}}, reduce: feedback}
    - {between: hosts, below_mbps: 100, activations: fp16, gradients: fp16}
    - {between: devices, reduce: identity}
"""


def regions() -> Topology:
    """a0 and a1 on one host, a2 on another of the region; b0 elsewhere; c0 of no region. a1 -> a2 is slow."""
    of = (("a", "h"), ("a", "h"), ("a", "g"), ("b", ""), ("", ""))
    known = tuple(Device(f"d{i}", region=r, host=h) for i, (r, h) in enumerate(of))
    return replace(topology(5, {(1, 2): 1e6}), devices=known)


def test_each_link_has_the_codecs_of_its_class() -> None:
    def across(*pipeline: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        tables = link_codecs(job(LINKS), model(), devices(5), regions())
        found = codecs_of_cells(tables, np.array([pipeline]), 5)
        return (found.activation or ((),))[0], (found.gradient or ((),))[0]

    assert across(0, 1) == ((), ())
    assert across(1, 2) == (("fp16",), ("fp16",))
    assert across(0, 2, 3) == (("identity", "kbit:bits=4"), ())
    assert across(3, 4) == (("kbit:bits=4",), ())  # who has no region is in nobody's


def test_replicas_share_the_codec_of_the_first_rule_that_fits_a_link_among_them() -> None:
    tables = link_codecs(job(LINKS), model(), devices(5), regions())
    cells = np.array([[0, 2, 4], [1, 3, 2]])
    assert codecs_of_cells(tables, cells, 5).reduce == ("identity", "feedback", "feedback")
    assert codecs_of_cells(tables, cells[:, :1], 5).reduce == ()
    # One replica: what it exchanges is a tied weight's, between its first and its last stage.
    assert codecs_of_cells(tables, cells[:1, :2], 5).reduce == ("kbit", "kbit")


def test_a_plan_names_codecs_link_by_link_and_the_engine_prices_them() -> None:
    asked = job("{links: [{between: regions, activations: {kbit: {bits: 2}}}]}", stages=2, replicas=2)
    links = regions().subset([0, 1, 2, 3])
    plan = plan_for((("d0", "d1"), ("d2", "d3")), asked, model(), devices(4), links, 1)
    assert plan.codecs.activation == (("identity",), ("kbit:bits=2",))
    told = describe(plan, model(), links, devices(4)).splitlines()
    assert told[2] == "codecs by link: activation identity on 1, kbit:bits=2 on 1"
    priced = durations(plan, model(), devices(4), links)
    assert priced.activation_bytes[plan.rank(0, 0)] == BOUNDARY_BYTES
    assert priced.activation_bytes[plan.rank(1, 0)] == codec_spec("kbit:bits=2").wire_bytes(SHAPE, 4)


def test_auto_leaves_links_alone_that_hold_nothing_up() -> None:
    plan = choose(job(AUTO), topology(3, {}))
    assert plan.codecs == NO_CODECS
    assert "No link is worth compressing" in plan.reasons[-1]


def test_auto_compresses_the_slow_boundary_and_no_other() -> None:
    plan = choose(job(AUTO), topology(3, {(1, 2): 10e6}))  # 52 ms a tensor, 20 ms a forward
    for ((near, far),) in (plan.codecs.activation, plan.codecs.gradient):
        assert near == "identity"
        assert far != "identity"
    assert "against" in plan.reasons[-1]


def test_auto_takes_no_more_than_is_needed_and_all_of_it_where_it_is_not_enough() -> None:
    enough, slow = (topology(3, {(1, 2): rate}) for rate in (30e6, 0.1e6))
    mild, strong = choose(job(AUTO), enough), choose(job(AUTO), slow)
    down, up = (ladder(kind, AutoOptions(), SHAPE, 4) for kind in ("activations", "gradients"))
    assert 0 < down.index(mild.codecs.activation[0][1]) < down.index(strong.codecs.activation[0][1])
    assert strong.codecs.activation[0][1] == down[-1]
    most = replace(strong, codecs=same_everywhere(3, 1, down[-1], up[-1]))
    for plan, links in ((mild, enough), (strong, slow)):
        assert plan.predicted_step_s <= step_s(most, links) * (1 + SLACK)
        assert plan.predicted_step_s == pytest.approx(step_s(plan, links))


def test_two_links_that_hold_the_step_up_alike_are_both_compressed() -> None:
    plan = choose(job(AUTO), topology(3, {(0, 1): 1e6, (1, 2): 1e6}))
    assert "identity" not in plan.codecs.activation[0]


def test_only_the_replica_that_is_slow_is_compressed() -> None:
    asked = job(AUTO, stages=2, replicas=2)
    links = topology(4, {(2, 3): 5e6})
    plan = plan_for((("d0", "d1"), ("d2", "d3")), asked, model(), devices(4), links, 1)
    assert plan.codecs.activation[0] == ("identity",)
    assert plan.codecs.activation[1] != ("identity",)


def test_where_cores_are_shared_the_engine_judges() -> None:
    links = topology(3, {(1, 2): 5e6})
    shared = replace(links, devices=tuple(replace(d, host="h", host_cores=2) for d in links.devices))
    plan = choose(job(AUTO), shared)
    assert plan.codecs.activation[0][0] == "identity"
    assert plan.codecs.activation[0][1] != "identity"
    assert plan.predicted_step_s == pytest.approx(step_s(plan, shared))


def test_auto_stays_within_the_error_budget() -> None:
    tight = "{activations: {auto: {max_error: 0.01}}}"
    plan = choose(job(tight), topology(3, {(1, 2): 0.1e6}))
    assert plan.codecs.activation[0][1] != "identity"
    assert all(codec_spec(name).relative_error(SHAPE) <= 0.01 for name in plan.codecs.activation[0])


def test_a_rule_may_leave_its_links_to_the_planner() -> None:
    asked = job("{activations: fp16, links: [{between: regions, activations: auto}]}")
    apart = tuple(Device(f"d{i}", region=r) for i, r in enumerate("aab"))
    links = replace(topology(3, {(1, 2): 1e6}), devices=apart)
    plan = choose(asked, links)
    assert plan.codecs.activation[0][0] == "fp16"
    assert plan.codecs.activation[0][1] not in ("fp16", "identity")


def test_a_ladder_goes_from_less_error_to_fewer_bytes() -> None:
    loose = AutoOptions(max_error=1.0)
    for kind in ("activations", "gradients", "reduce"):
        names = ladder(kind, loose, SHAPE, 4)
        shape = SHAPE if kind != "reduce" else (1 << 20,)
        specs = [codec_spec(name) for name in names]
        errors = [s.relative_error(shape) for s in specs]
        sizes = [s.wire_bytes(shape, 4) for s in specs]
        assert errors == sorted(errors)
        assert sizes == sorted(sizes, reverse=True)
        assert names[0] == "identity"
    assert {name.partition(":")[0] for name in ladder("reduce", loose, SHAPE, 4)} >= {
        "feedback",
        "topk",
    }
    assert {name.partition(":")[0] for name in ladder("activations", loose, SHAPE, 4)} >= {"tile"}
    assert ladder("activations", loose, (2, 8, 6), 4) == ("identity", "fp16")


def test_the_planner_gives_its_plan_the_codecs() -> None:
    asked = job("{activations: auto, gradients: auto, reduce: auto}", stages=3, replicas=2)
    links = topology(6, {(i, j): 0.5e6 for i in range(6) for j in range(i)})
    plan = make_plan(asked, model(), devices(6), links, 1)
    assert plan.codecs.activation
    assert plan.codecs.reduce
    assert plan.predicted_step_s == pytest.approx(step_s(plan, links))
    assert any("Codecs, the least" in reason for reason in plan.reasons)


AGAIN = "{activations: {auto: {change: 0.2}}}"


def returning(n_samples: int = 100, epochs: int = 50) -> ModelProfile:
    return replace(model(), visits=Visits(n_samples, n_samples * epochs))


def test_auto_remembers_samples_where_they_come_again_often_or_are_said_to_change_little() -> None:
    links = topology(3, {(1, 2): 0.2e6})

    def family(asked: str, profiled: ModelProfile) -> str:
        plan = plan_for((("d0", "d1", "d2"),), job(asked), profiled, devices(3), links, 1)
        return plan.codecs.activation[0][1].partition(":")[0]

    assert family(AGAIN, returning()) == "acsgd"
    assert family(AGAIN, returning(epochs=1)) == "kbit"  # each visit is a first one
    assert family(AGAIN, model()) == "kbit"  # nobody knows whether they come again
    assert family("{activations: auto}", returning()) == "acsgd"  # so often, they settle
    assert family("{activations: {auto: {change: 1}}}", returning()) == "kbit"  # the job knows better


def test_the_most_that_a_budget_allows_is_remembered_samples_only_in_long_runs() -> None:
    def most(epochs: int, change: float | None = None) -> str:
        visits = Visits(100, 100 * epochs)
        return ladder("activations", ActivationAutoOptions(change=change), SHAPE, 4, visits)[-1]

    assert most(50) == "acsgd:bits=3,first=8,memory=disk"
    assert most(50, change=1.0) == most(1) == "kbit:bits=4"
    assert most(4) == most(4, change=0.2) == "kbit:bits=4"  # a quarter of all visits are first ones


def test_more_to_choose_from_never_ends_slower() -> None:
    """The search with AC-SGD begins where the one without it ends."""
    rng = np.random.default_rng(0)
    slow = {(i, j): float(rng.uniform(1e5, 2e6)) for i in range(7) for j in range(i)}
    asked = job("{activations: {auto: {change: 0.2}}, gradients: auto, reduce: auto}", 3, 2)
    options = StepSearchOptions(actions=2e5, rounds=((1, 1, 1.0),), exhaustive=0)
    with_it, without = (
        search_for(asked, profiled, devices(7), topology(7, slow), 1, options)[1].plan.predicted_step_s
        for profiled in (returning(), model())
    )
    assert with_it <= without * (1 + 1e-9)


def test_first_visits_make_a_plan_dearer_the_more_replicas_share_the_samples() -> None:
    asked = job("{activations: acsgd}", stages=2, replicas=2)
    links = topology(4, {(i, j): 1e6 for i in range(4) for j in range(i)})
    rows = (("d0", "d1"), ("d2", "d3"))
    plans = [plan_for(rows, asked, m, devices(4), links, 1) for m in (model(), returning(epochs=3))]
    assert plans[0].codecs == plans[1].codecs
    unknown, known = (p.predicted_step_s for p in plans)
    assert known > unknown
    spec = codec_spec("acsgd")
    assert isinstance(spec, AcsgdSpec)
    sent = durations(plans[1], returning(epochs=3), devices(4), links).activation_bytes[0]
    assert sent == acsgd_bytes(spec, SHAPE, 4, Visits(100, 300), 2)
    assert step_time_s(plans[1], returning(epochs=3), devices(4), links) == pytest.approx(known)
    tables = codecs_of_plan(plans[1], [f"d{i}" for i in range(4)])
    twin = pricing_of(returning(epochs=3), devices(4), links, tables, n_replicas=2)
    assert plan_step_s(twin, plans[1]) == pytest.approx(known, rel=1e-9)


def test_what_codecs_remember_counts_as_memory_where_the_device_s_is_its_host_s() -> None:
    asked = job("{activations: acsgd, reduce: feedback}", stages=2, replicas=2)
    rows = (("d0", "d1"), ("d2", "d3"))
    many = returning(n_samples=1000)

    def cpus(memory_bytes: int) -> Topology:
        links = topology(4, {})
        known = [replace(d, host=d.name, host_cores=1, memory_bytes=memory_bytes) for d in links.devices]
        return replace(links, devices=tuple(known))

    plan = plan_for(rows, asked, many, devices(4), cpus(10**12), 1)
    plain, kept = (
        headroom(p, many, cpus(10**12))[0].needed_bytes for p in (replace(plan, codecs=NO_CODECS), plan)
    )
    parameters = 3 * 4_000_000
    assert kept - plain == 1000 * 2 * HIDDEN * LENGTH + parameters
    assert headroom(plan, many, topology(4, {}))[0].needed_bytes == plain  # a GPU's memory is its own
    assert plan_for(rows, asked, many, devices(4), cpus(kept), 1).n_stages == 2
    with pytest.raises(DoesNotFit):
        plan_for(rows, asked, many, devices(4), cpus(kept - 1), 1)


def test_joint_search_beats_codecs_for_a_placement_that_stands() -> None:
    # Heavy boundaries stay inside a region while nothing is compressed; compressed they may cross it.
    rates = [2e6, 5e6, 10e6, 20e6]
    gains = []
    for rate in rates:
        links = topology(4, {(i, j): rate for i in (0, 1) for j in (2, 3)})
        plain = job("{}")
        free = {"parallelism": "auto"}
        before = make_plan(plain.model_copy(update=free), model(), devices(4), links, 1)
        asked = job(AUTO).model_copy(update=free)
        joint = make_plan(asked, model(), devices(4), links, 1)
        after = plan_for(before.placement, asked, model(), devices(4), links, 1)
        gains.append(after.predicted_step_s / joint.predicted_step_s)
    assert min(gains) >= 1 - SLACK
    assert max(gains) > 1.1


def test_an_estimate_that_gives_back_too_much_is_put_right_by_the_engine_where_it_can_in_time() -> None:
    slow = topology(3, {(1, 2): 0.5e6})
    plan = choose(job("{activations: {kbit: {bits: 4}}}"), slow)
    rungs = ("identity", "fp16", "kbit", "kbit:bits=4")
    ladders = {Place("activation", 0, b): rungs for b in (0, 1)}

    def engine(codecs: PlanCodecs) -> float:
        return step_s(replace(plan, codecs=codecs), slow)

    def hopeful(codecs: PlanCodecs) -> float:  # sees no link at all
        del codecs
        return 1.0

    found = relaxed(plan, ladders, hopeful, False, engine)
    assert found.codecs.activation == (("identity", "kbit:bits=4"),)
    assert relaxed(plan, ladders, hopeful, True, engine).codecs == NO_CODECS
    large = replace(plan, micro_batches=(40_000,))
    kept = relaxed(large, ladders, hopeful, False, lambda c: 1.0 if c == large.codecs else 2.0)
    assert kept.codecs == large.codecs
