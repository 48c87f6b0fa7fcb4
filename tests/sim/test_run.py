"""Whole runs: the arithmetic of steps, losses and restarts; a moving trace; money; determinism."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scheduler.exit_codes import ExitCode
from scheduler.liveness import HEARTBEAT_S, SILENCE, STEP
from scheduler.plan import Plan, PlanError
from scheduler.profile import DeviceProfile, LayerProfile, ModelProfile
from scheduler.replan import Patience
from scheduler.topology import Device, Topology
from scheduler.trace import About, Node, Trace, series
from sim.fault_script import FaultError, read_script
from sim.faults import Faults, Rate
from sim.network import StillNetwork, TraceNetwork
from sim.prices import PriceError, Prices, bill, read_prices
from sim.replay import Work, replay_at
from sim.run import simulate_run
from sim.run_records import RunOptions, RunResult

DEVICES = tuple(Device(f"d{i}", region=f"r{i}") for i in range(3))
NETWORK = StillNetwork(Topology(DEVICES, np.full((3, 3), 0.5), np.full((3, 3), 100.0)))
LAYERS = tuple(LayerProfile(f"l{i}", 1, 1, 40, 100, 1, 1) for i in range(2))
WORK = Work(
    ModelProfile(LAYERS, 1, 1),
    tuple(DeviceProfile(d.name, (1.0, 1.0), (2.0, 2.0), (0.1, 0.1)) for d in DEVICES),
)
PLAN = Plan(1, (("d0", "d1"),), ((0, 1), (1, 2)), (2,), "1f1b")
STEP_S = replay_at(PLAN, WORK, NETWORK).duration_s
SILENCE_S = SILENCE.deadline_s([HEARTBEAT_S] * 3)


def planner(topology: Topology, names: Sequence[str], version: int) -> Plan:  # noqa: ARG001
    """The first two that are there."""
    if len(names) < 2:
        raise PlanError(f"found {len(names)} devices, required 2")
    return replace(PLAN, version=version, placement=((names[0], names[1]),))


def run(faults: Faults = Faults(), steps: int = 10, **options: float) -> RunResult:
    o = RunOptions(steps, 8, save_every=4, restart_s=30.0, **options)  # type: ignore[arg-type]
    return simulate_run(WORK, NETWORK, PLAN, o, planner, faults)


def test_a_quiet_run_is_its_steps() -> None:
    r = run()
    assert r.total_s == pytest.approx(10 * STEP_S)
    assert [s.step for s in r.steps] == list(range(10))
    assert (r.tokens, r.restarts, r.code) == (80, 0, ExitCode.OK)
    assert r.tokens_per_s == pytest.approx(8 / STEP_S)
    assert dict(r.device_s) == pytest.approx({"d0": 10 * STEP_S, "d1": 10 * STEP_S})
    a_step = {"r0": 2 * 100 + 8, "r1": 2 * 100 + 8}
    assert dict(r.egress_bytes) == {k: 10 * v for k, v in a_step.items()}


def test_a_crash_costs_half_a_step_the_steps_since_the_checkpoint_and_a_restart() -> None:
    r = run(Faults().fail_at(rank=1, step=6))
    assert (r.restarts, r.steps_lost) == (1, 2)
    assert r.total_s == pytest.approx((6 + 0.5) * STEP_S + 30 + 6 * STEP_S)
    assert [s.step for s in r.steps] == list(range(10))
    assert [s.plan_version for s in r.steps] == [1] * 4 + [2] * 6
    assert r.events[0].text == "d1 is lost: its connection ended (crashed)"
    assert "nobody holds layer 1: back to the checkpoint of step 4, 2 steps again" in r.events[1].text


def test_a_device_that_leaves_is_replaced_and_waits_for_the_next_plan_when_it_is_back() -> None:
    at_s = 5.25 * STEP_S
    r = run(Faults().leave("d0", at_s).join("d0", at_s + 60))
    assert r.total_s == pytest.approx(at_s + 30 + 6 * STEP_S)
    assert r.plans[1].placement == (("d1", "d2"),)
    assert len(r.plans) == 2


def test_a_crash_of_nobody_is_refused() -> None:
    with pytest.raises(PlanError, match="found a crash of rank 2, required one of 0 to 1"):
        run(Faults().fail_at(rank=2, step=1))


def test_who_was_not_there_at_the_start_cannot_be_planned_with() -> None:
    with pytest.raises(PlanError, match="needs d1, absent at 0 s"):
        run(Faults().join("d1", 5.0))


def test_a_run_without_enough_devices_waits_for_one_or_ends() -> None:
    faults = Faults().leave("d1", 1.0).leave("d2", 1.0)
    r = run(faults, wait_for_workers_s=100.0)
    assert (r.code, r.tokens) == (ExitCode.WORKER_LOST, 0)
    assert r.total_s == pytest.approx(101)
    assert "1 device left: found 1 devices, required 2; nobody came" in r.reason
    late = run(faults.join("d2", 500.0), wait_for_workers_s=500.0)
    assert late.code is ExitCode.WORKER_LOST, "it has come and is not measured yet"
    r = run(faults.join("d2", 500.0), wait_for_workers_s=600.0, measure_s=40.0)
    assert r.code is ExitCode.OK
    assert r.total_s == pytest.approx(500 + 40 + 30 + 10 * STEP_S)


FOUR = tuple(Device(f"d{i}", region=f"r{i}") for i in range(5))
TWICE = replace(PLAN, placement=(("d0", "d1"), ("d2", "d3")), micro_batches=(1, 1))
WIDE_WORK = replace(WORK, profiles=tuple(replace(WORK.profiles[0], device=d.name) for d in FOUR))
LAYER_BYTES = 40 + 1
"""Weights and the optimizer's state."""


def on_replicas(n_devices: int, faults: Faults, bandwidth_Bps: float = 100.0) -> tuple[RunResult, float]:
    """(a run of 10 steps on two replicas, seconds of a step that nothing disturbs)."""
    n = n_devices
    links = Topology(FOUR[:n], np.full((n, n), 0.5), np.full((n, n), bandwidth_Bps))
    network, work = StillNetwork(links), replace(WIDE_WORK, profiles=WIDE_WORK.profiles[:n])

    def nothing_new(topology: Topology, names: Sequence[str], version: int) -> Plan:  # noqa: ARG001
        raise PlanError("nobody plans anew here")

    o = RunOptions(10, 8, save_every=4, restart_s=30.0, settle_s=2.0)
    return simulate_run(work, network, TWICE, o, nothing_new, faults), replay_at(
        TWICE, work, network
    ).duration_s


def test_a_replica_s_loss_costs_the_step_under_way_and_no_other() -> None:
    """Nobody takes its place: one replica does the batch of both, and no layer moves."""
    r, step_s = on_replicas(4, Faults().leave("d3", 1e9).fail_at(rank=3, step=6))
    assert (r.recoveries, r.restarts, r.steps_lost) == (1, 0, 0)
    assert [s.plan_version for s in r.steps] == [1] * 6 + [2] * 4
    assert (r.plans[1].placement, r.plans[1].micro_batches) == ((("d0", "d1"),), (2,))
    assert r.total_s == pytest.approx(6.5 * step_s + 2 + 4 * STEP_S)
    assert "1 replica of 2 take the whole batch" in r.events[1].text


def test_a_spare_fetches_its_layers_from_those_who_hold_them_over_the_simulated_links() -> None:
    r, step_s = on_replicas(5, Faults().leave("d3", 6.5 * 9.0))
    assert r.plans[1].placement == (("d0", "d1"), ("d2", "d4"))
    before = sum(s.plan_version == 1 for s in r.steps)
    fetched_s = 0.5 + LAYER_BYTES / 100
    assert r.total_s == pytest.approx(6.5 * 9.0 + 2 + fetched_s + (10 - before) * step_s)
    assert f"{LAYER_BYTES} B come from d1" in r.events[1].text


def test_a_process_that_died_is_there_again_after_a_restart_with_nothing() -> None:
    """Both holders of a layer are gone at once: whoever comes back first makes the run whole again."""
    r, step_s = on_replicas(4, Faults().leave("d1", 5.5 * 9.0).fail_at(rank=3, step=2))
    assert r.events[0].at_s == pytest.approx(2.5 * step_s)
    assert (r.recoveries, r.restarts) == (2, 1)
    assert r.plans[2].placement[0][0] == "d0"
    assert "nobody holds layer 1: back to" in r.events[3].text


def test_neighbours_copies_bring_a_lost_stage_back_where_no_checkpoint_does() -> None:
    """Copies begun after steps 3 and 6 are there within a step; the stage is lost in the eighth."""
    faults = Faults().fail_at(rank=1, step=7)
    o = RunOptions(10, 8, save_every=0, restart_s=30.0, settle_s=2.0)
    without = simulate_run(WORK, NETWORK, PLAN, o, planner, faults)
    assert (without.restarts, without.steps_lost) == (1, 7)
    copied = simulate_run(WORK, NETWORK, PLAN, replace(o, copy_every=3), planner, faults)
    assert (copied.recoveries, copied.restarts, copied.steps_lost) == (1, 0, 1)
    assert [s.plan_version for s in copied.steps] == [1] * 6 + [2] * 4
    # d2 gets layer 1 from d0, who kept it.
    moving_s = 0.5 + LAYER_BYTES / 100 + 2
    assert copied.total_s == pytest.approx(7.5 * STEP_S + moving_s + 4 * STEP_S)
    # Twelve steps were begun; copies of steps 3, 6 and 9, and the layer that moved, left d0's region.
    assert copied.egress_bytes["r0"] == 12 * 208 + 4 * LAYER_BYTES


def test_a_copy_that_is_still_on_its_way_does_not_count() -> None:
    large = replace(
        WORK, model=replace(WORK.model, layers=tuple(replace(x, state_bytes=2000) for x in LAYERS))
    )
    o = RunOptions(4, 8, save_every=0, restart_s=30.0, copy_every=1)
    r = simulate_run(large, NETWORK, PLAN, o, planner, Faults().fail_at(rank=1, step=1))
    assert (r.restarts, r.steps_lost) == (1, 1)


def grown(faults: Faults, steps: int = 40, work: Work = WIDE_WORK, **options: Any) -> RunResult:
    """A run of one pipeline, d0 and d1, whose planner makes two as soon as four devices are there; a spare in
    the place of d1 would be no faster."""
    links = Topology(FOUR, np.full((5, 5), 0.5), np.full((5, 5), 1000.0))
    one = replace(PLAN, micro_batches=(8,))

    def as_many_as_there_are(topology: Topology, names: Sequence[str], version: int) -> Plan:  # noqa: ARG001
        if len(names) < 2:
            raise PlanError(f"found {len(names)} devices, required 2")
        rows = ((names[0], names[1]), (names[2], names[3])) if len(names) >= 4 else ((names[0], names[1]),)
        return replace(one, version=version, placement=rows, micro_batches=(8 // len(rows),) * len(rows))

    o = RunOptions(steps, 8, **options)
    return simulate_run(work, StillNetwork(links), one, o, as_many_as_there_are, faults)


def three_absent() -> Faults:
    return Faults().join("d2", 1e6).join("d3", 1e6).join("d4", 1e6)


def test_who_comes_is_measured_and_taken_in_between_two_steps_when_that_pays() -> None:
    alone = grown(three_absent())
    assert len(alone.plans) == 1
    step_s = alone.steps[0].duration_s
    faults = Faults().join("d2", 1.0).join("d3", 2.5 * step_s).join("d4", 1e6)
    r = grown(faults, measure_s=3 * step_s)
    assert (r.moves, r.recoveries, r.restarts, r.steps_lost) == (1, 0, 0, 0)
    assert r.plans[1].placement == (("d0", "d1"), ("d2", "d3"))
    assert [s.step for s in r.steps] == list(range(40))
    # d3 has come and is measured at 5.5 steps: it is looked at 6, 7 and 8, and the ninth has both replicas.
    assert [s.plan_version for s in r.steps] == [1] * 8 + [2] * 32
    moving_s = 0.5 + LAYER_BYTES / 1000 + Patience().restart_s
    assert r.steps[8].start_s == pytest.approx(8 * step_s + moving_s)
    assert r.total_s == pytest.approx(8 * step_s + moving_s + 32 * r.steps[8].duration_s)
    assert r.total_s < alone.total_s
    assert r.events[0].text == "d2 came: No other plan is known to be faster than 32.4 s a step"
    assert "d3 came: The other plan would take" in r.events[1].text
    assert "seen 3 times in a row; 2 layers (82 B) move" in r.events[2].text
    # What moved between regions is paid for, beside what steps send.
    a_step = {"r0": 8 * 100 + 8, "r1": 8 * 100 + 8}
    assert all(r.egress_bytes[k] >= LAYER_BYTES + 40 * a_step[k] / 2 for k in a_step)
    assert r.device_s["d2"] == pytest.approx(moving_s + 32 * r.steps[8].duration_s)


def test_who_comes_too_late_to_pay_or_is_no_gain_is_left_to_stand_by() -> None:
    step_s = grown(three_absent()).steps[0].duration_s
    came = Faults().join("d2", 1.0).join("d3", 20.5 * step_s).join("d4", 1e6)
    for restart_s, plans in ((100.0, 2), (1000.0, 1)):
        patience = Patience(persistence=1, restart_s=restart_s, steps_redone=0.0)
        assert len(grown(came, measure_s=0.0, patience=patience).plans) == plans
    useless = Faults().join("d2", 1.0).join("d3", 1e6).join("d4", 1e6)
    assert len(grown(useless, measure_s=0.0).plans) == 1
    back_in_time = useless.leave("d1", 20.5 * step_s)
    r = grown(back_in_time, measure_s=0.0)
    assert set(r.plans[1].devices) == {"d0", "d2"}, "it was there to take a place"


def test_who_leaves_before_it_is_measured_never_came() -> None:
    faults = three_absent().join("d2", 1.0).leave("d2", 5.0)
    r = grown(faults, steps=3, measure_s=10.0)
    assert (len(r.plans), r.events) == (1, [])


def test_nobody_is_moved_to_while_a_rank_is_out_of_reach() -> None:
    """A short partition takes d1 away for less than the coordinator's patience: no plan does without it."""
    step_s = grown(three_absent()).steps[0].duration_s
    faults = Faults().join("d4", 1e6).partition(["r1"], 5.9 * step_s, 5.9 * step_s + SILENCE_S - 1)
    r = grown(faults.join("d3", 4.0 * step_s), measure_s=0.0)
    assert r.recoveries == 0
    assert all(p.device(1) == "d1" for p in r.plans)


def test_a_short_partition_is_waited_out_and_a_long_one_loses_who_is_behind_it() -> None:
    short = run(Faults().partition(["r1"], 1.0, 1.0 + SILENCE_S - 1))
    assert short.restarts == 0
    assert 10 * STEP_S < short.total_s < 10 * STEP_S + SILENCE_S
    long = run(Faults().partition(["r1"], 1.0, 1000.0))
    assert long.restarts == 1
    assert long.plans[1].placement == (("d0", "d2"),)
    assert long.total_s == pytest.approx(1 + SILENCE_S + 30 + 10 * STEP_S)


def test_whoever_hangs_is_done_without_as_the_coordinator_does() -> None:
    faults = Faults().slow("d1", 1e-4, 5 * STEP_S, 5 * STEP_S + 2000)
    r = run(faults)
    limit_s = STEP.deadline_s([STEP_S] * 5)
    assert limit_s == STEP.floor_s
    assert r.events[0].text == "step 5 is not done after 2 min 00 s; waiting for d0, d1"
    assert r.events[0].at_s == pytest.approx(5 * STEP_S + limit_s)
    assert r.plans[1].devices == ("d0", "d2"), "d0 waits for d1, and d1 for nobody"
    assert (r.code, r.restarts, r.steps_lost) == (ExitCode.OK, 1, 1)


def test_a_step_that_nobody_keeps_from_ending_is_done_again_then_without_who_lacks_bytes() -> None:
    """A link that all but stands still: d0 has sent and waits for d1, d1 for d0."""
    fast, slow = np.full((3, 3), 100.0), np.full((3, 3), 100.0)
    slow[0, 1] = slow[1, 0] = 1e-3
    nodes = {f"r{i}": Node(f"r{i}") for i in range(3)}
    links = {
        (a, b): series([(0, 1.0, fast[i, j], None, None), (3 * STEP_S, 1.0, slow[i, j], None, None)])
        for i, a in enumerate(nodes)
        for j, b in enumerate(nodes)
        if a != b
    }
    network = TraceNetwork(Trace("m", nodes, links, About(0.5)), DEVICES)
    r = simulate_run(WORK, network, PLAN, RunOptions(10, 8, save_every=2, restart_s=10.0), planner)
    assert [e.text.split(";")[0][:23] for e in r.events[::2]] == ["step 3 is not done after"[:23]] * 2
    assert "nobody is lost" in r.events[1].text
    assert "d1 is gone" in r.events[3].text
    assert r.plans[-1].devices == ("d0", "d2")
    assert r.code is ExitCode.OK


HEAVY = replace(
    WIDE_WORK,
    model=ModelProfile(tuple(replace(x, parameter_bytes=2000, state_bytes=4000) for x in LAYERS), 1, 1),
)


def test_layers_travel_while_the_steps_go_on_where_links_carry_a_steps_gradients() -> None:
    alone = grown(three_absent(), work=HEAVY)
    step_s = alone.steps[0].duration_s
    faults = Faults().join("d2", 1.0).join("d3", 2.5 * step_s).join("d4", 1e6)
    r = grown(faults, work=HEAVY, measure_s=3 * step_s)
    assert (r.moves, r.recoveries, r.restarts, r.steps_lost) == (1, 0, 0, 0)
    begun = next(e for e in r.events if "travel while about 2 steps go on" in e.text)
    assert begun.at_s == pytest.approx(8 * step_s)
    assert [s.plan_version for s in r.steps] == [1] * 10 + [2] * 30, "two steps later than with no layers"
    gradients_s = 0.5 + 2000 / 1000
    pause_s = gradients_s + Patience().restart_s
    assert r.steps[10].start_s == pytest.approx(10 * step_s + pause_s), "a third of what layers would take"
    sent = 2 * (2000 + 4000) + 2 * 2 * 2000
    before = 10 * (alone.egress_bytes["r0"] + alone.egress_bytes["r1"]) / 40
    rest = sum(r.egress_bytes.values()) - before - sent
    one_step = rest / 30
    assert one_step == pytest.approx(round(one_step)), "what was sent beside the steps is paid for, once"


def test_who_is_lost_while_it_follows_is_done_without() -> None:
    alone = grown(three_absent(), work=HEAVY)
    step_s = alone.steps[0].duration_s
    faults = Faults().join("d2", 1.0).join("d3", 2.5 * step_s).join("d4", 1e6).leave("d3", 9.5 * step_s)
    r = grown(faults, work=HEAVY, measure_s=3 * step_s)
    assert (r.moves, r.recoveries) == (0, 0)
    assert any("not all are there that it needs" in e.text for e in r.events)
    assert r.total_s == pytest.approx(alone.total_s)


def moving() -> TraceNetwork:
    """Two links that slow down to a quarter at 50 s, and one that stays."""
    nodes = {f"r{i}": Node(f"r{i}") for i in range(3)}
    slows = series([(0, 1.0, 100.0, None, None), (50, 1.0, 25.0, None, None)])
    stays = series([(0, 1.0, 90.0, None, None)])
    links = {(a, b): slows if {a, b} == {"r0", "r1"} else stays for a in nodes for b in nodes if a != b}
    return TraceNetwork(Trace("m", nodes, links, About(0.5)), DEVICES)


def by_links(topology: Topology, names: Sequence[str], version: int) -> Plan:
    """d0 and whoever it reaches fastest."""
    others = sorted(names[1:], key=lambda n: -topology.bandwidth_Bps[0, topology.index(n)])
    return replace(PLAN, version=version, placement=((names[0], others[0]),))


def test_steps_follow_the_trace_and_a_new_plan_is_taken_when_it_pays() -> None:
    stay = simulate_run(WORK, moving(), PLAN, RunOptions(20, 8), planner)
    durations = [s.duration_s for s in stay.steps]
    assert durations[0] < durations[-1]
    for s in stay.steps:
        assert s.duration_s == replay_at(PLAN, WORK, moving(), s.start_s).duration_s
    go = simulate_run(WORK, moving(), PLAN, RunOptions(20, 8, replan_every=1), by_links)
    assert len(go.plans) == 2
    assert go.plans[1].placement == (("d0", "d2"),)
    assert "seen 3 times in a row; 1 layer" in go.events[0].text
    assert go.total_s < stay.total_s
    moved = next(i for i, s in enumerate(go.steps) if s.plan_version == 2)
    assert go.steps[moved - 3].start_s >= 50 - STEP_S, "it is seen three times after it slowed down"
    impatient = RunOptions(
        20, 8, replan_every=1, patience=Patience(persistence=1, restart_s=0.0, steps_redone=0.0)
    )
    sooner = simulate_run(WORK, moving(), PLAN, impatient, by_links)
    assert sooner.total_s < go.total_s
    demanding = RunOptions(20, 8, replan_every=1, patience=Patience(margin=0.9))
    assert simulate_run(WORK, moving(), PLAN, demanding, by_links).total_s == stay.total_s


def test_the_same_run_twice_is_the_same_to_the_byte() -> None:
    rng = [np.random.default_rng(3) for _ in range(2)]
    names = [d.name for d in DEVICES]
    texts = []
    for r in rng:
        faults = Rate(300.0, 60.0).drawn(names, 1000.0, r)
        assert faults.moves
        result = simulate_run(
            WORK, moving(), PLAN, RunOptions(30, 8, save_every=3, restart_s=5.0), planner, faults
        )
        assert result.restarts
        texts.append(json.dumps(asdict(result)))
    assert texts[0] == texts[1]


def test_money_and_energy_are_what_the_tables_say() -> None:
    prices = Prices({"default": 3.6, "r1": 7.2}, {"r0": 1e9}, {"d0": 100.0})
    b = bill(prices, DEVICES, {"d0": 1000.0, "d1": 1000.0}, {"r0": 4.0, "r1": 2.0})
    assert b.devices == pytest.approx(1.0 + 2.0)
    assert b.egress == pytest.approx(4.0)
    assert b.money == pytest.approx(7.0)
    assert b.energy_J == pytest.approx(100_000)
    assert b.unpriced == ("r1", "d1")
    assert bill(Prices(), DEVICES, {"d0": 1.0}, {}).money is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "found list; required a mapping"),
        ("devices: {}", "found devices; required a mapping with keys among currency, device_hour"),
        ("egress_gb: {default: -1}", r"egress_gb.default: found -1, required a number of 0 or more"),
        ("device_hour: 3", "device_hour: found 3, required a mapping"),
    ],
)
def test_prices_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(PriceError, match=message):
        read_prices(path)


SCRIPT = """
faults:
  - {fail: 1, step: 3}
  - {leave: d1, at_s: 300}
  - {join: d1, at_s: 900}
  - {partition: [r1, r2], from_s: 100, until_s: 160}
  - {slow: d2, factor: 0.5, from_s: 10, until_s: 100}
"""


def read(tmp_path: Path, text: str, horizon_s: float = 1e5) -> Faults:
    path = tmp_path / "faults.yaml"
    path.write_text(text)
    script = read_script(path, [d.name for d in DEVICES], [d.region for d in DEVICES])
    return script.faults(horizon_s, np.random.default_rng(0))


def test_a_script_says_what_the_fluent_form_says(tmp_path: Path) -> None:
    assert read(tmp_path, SCRIPT) == (
        Faults().fail_at(1, 3).leave("d1", 300).join("d1", 900).partition(["r1", "r2"], 100, 160)
        .slow("d2", 0.5, 10, 100)
    )  # fmt: skip
    many = read(tmp_path, "rate: {mean_hours_between: 1, mean_hours_away: 0.1}", 1e6)
    leaves = [at_s for at_s, _, comes in many.moves if not comes]
    assert len(leaves) == pytest.approx(3 * 1e6 / (1.1 * 3600), rel=0.15)


def test_a_rate_draws_who_comes_for_the_first_time_and_a_longer_horizon_only_adds(tmp_path: Path) -> None:
    text = "rate: {mean_hours_between: 1, mean_hours_away: 0.5, away_at_first: [d1]}"
    short, longer = read(tmp_path, text, 0.0), read(tmp_path, text, 1e5)
    assert [(name, comes) for _, name, comes in short.moves] == [("d1", True)]
    assert set(short.moves) < set(longer.moves)
    for name in ("d0", "d1", "d2"):
        own = [comes for _, n, comes in longer.moves if n == name]
        assert own == [(name == "d1") ^ (k % 2 == 1) for k in range(len(own))], "comes and goes by turns"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{fail: x, step: 3}", r"faults\[0\]: fail: found 'x', required a rank"),
        ("{fail: 1}", "required one of: fail with step; leave with at_s"),
        ("{leave: d9, at_s: 1}", "found the device 'd9', required one of: d0, d1, d2"),
        ("{leave: d1, at_s: .nan}", "at_s: found nan, required a number of 0 or more"),
        ("{partition: [mars], from_s: 1, until_s: 2}", r"found \['mars'\], required regions: r0, r1, r2"),
        ("{slow: d1, factor: 0.5, from_s: 3, until_s: 2}", "found from_s 3, required less than until_s"),
    ],
)
def test_scripts_that_cannot_be(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(FaultError, match=message):
        read(tmp_path, f"faults:\n  - {entry}")


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        ("{mean_hours_between: 1}", "required mean_hours_between and mean_hours_away"),
        ("{mean_hours_between: 0, mean_hours_away: 1}", "mean_hours_between: found 0"),
        (
            "{mean_hours_between: 1, mean_hours_away: 1, away_at_first: [d9]}",
            r"away_at_first: found \['d9'\], required devices among: d0, d1, d2",
        ),
    ],
)
def test_rates_that_cannot_be(tmp_path: Path, rate: str, message: str) -> None:
    with pytest.raises(FaultError, match=message):
        read(tmp_path, f"rate: {rate}")


def test_slowdowns_that_overlap_multiply() -> None:
    speeds = Faults().slow("a", 0.5, 1, 5).slow("a", 0.5, 3, 9).speeds()["a"]
    assert (speeds.times_s, speeds.factors) == ((0, 1, 3, 5, 9), (1, 0.5, 0.25, 0.5, 1))
