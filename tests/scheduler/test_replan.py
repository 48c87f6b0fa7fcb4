"""Stay or move: never for noise, for a link that fell to a fifth, and only when it pays before the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.analytic import device_profile, model_profile
from scheduler.cost import step_time_s
from scheduler.job import ModelSpec
from scheduler.moving import moving_cost
from scheduler.plan import Plan
from scheduler.profile import DeviceProfile
from scheduler.replan import Measured, Move, Patience, Stay, reconsider
from scheduler.topology import Device, Topology

NAMES = ("a", "b", "c", "d")
MODEL = model_profile(ModelSpec(layers=4, hidden=64, heads=4, vocab=300, max_positions=64), 4, 64)
DEVICES = tuple(device_profile(MODEL, n, 5e9) for n in NAMES)
PLANS = [Plan(1, ((x, y, z),), ((0, 2), (2, 4), (4, 6)), (8,), "1f1b") for x, y, z in permutations(NAMES, 3)]
STEPS = 100_000


def a_network(bandwidth_Bps: Sequence[float] = ()) -> Topology:
    """Twelve directed links, 1 MB/s each unless `bandwidth_Bps` says otherwise, 10 ms away."""
    rates = np.full((4, 4), 1e6)
    if len(bandwidth_Bps):
        rates[~np.eye(4, dtype=bool)] = bandwidth_Bps
    return Topology(tuple(Device(n) for n in NAMES), np.full((4, 4), 0.01), rates)


def best(topology: Topology, devices: Sequence[DeviceProfile] = DEVICES) -> Plan:
    """The best of all pipelines of three of the four."""
    return min(PLANS, key=lambda p: step_time_s(p, MODEL, devices, topology))


def noisy(truth: Topology, rng: np.random.Generator, e: float = 0.1) -> Measured:
    """Every latency, bandwidth and device's speed off by at most `e` either way."""

    def off(values: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        a = np.asarray(values, dtype=np.float64)
        return a * rng.uniform(1 - e, 1 + e, a.shape)

    devices = []
    for d in DEVICES:
        f = float(rng.uniform(1 - e, 1 + e))
        forward_s, backward_s = (tuple(f * x for x in times) for times in (d.forward_s, d.backward_s))
        devices.append(replace(d, forward_s=forward_s, backward_s=backward_s))
    topology = Topology(truth.devices, off(truth.latency_s), off(truth.bandwidth_Bps))
    return Measured(MODEL, devices, topology)


def watch(running: Plan, measurements: Sequence[Measured], patience: Patience | None = None) -> Stay | Move:
    """What is decided at the last of the measurements, each with its best plan; a move ends it."""
    answer: Stay | Move = Stay(0, "")
    for step, now in enumerate(measurements):
        assert isinstance(answer, Stay)
        answer = reconsider(
            running, best(now.topology, now.devices), now, step, STEPS, answer.streak, patience
        )
        if isinstance(answer, Move):
            return answer
    return answer


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([2e5, 5e5, 1e6, 3e6]), min_size=12, max_size=12), st.integers(0, 2**32 - 1))
def test_noise_of_a_tenth_never_moves_anything(rates: list[float], seed: int) -> None:
    """Not even without asking for it several times: the margin alone is wider than such noise."""
    truth, rng = a_network(rates), np.random.default_rng(seed)
    running = best(truth)
    answer = watch(running, [noisy(truth, rng) for _ in range(6)], Patience(persistence=1))
    assert isinstance(answer, Stay)
    assert answer.streak == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_link_that_falls_to_a_fifth_moves_the_plan_at_the_third_measurement(
    boundary: int, backwards: bool, seed: int
) -> None:
    """Whichever link of the pipeline it is, and whichever way: a device stands by, other links are good."""
    rng = np.random.default_rng(seed)
    running = best(a_network())
    src, dst = running.placement[0][boundary : boundary + 2]
    if backwards:
        src, dst = dst, src
    fallen = a_network()
    fallen.bandwidth_Bps[NAMES.index(src), NAMES.index(dst)] /= 5
    measurements = [noisy(fallen, rng) for _ in range(3)]
    assert isinstance(watch(running, measurements[:2]), Stay)
    answer = watch(running, measurements)
    assert isinstance(answer, Move)
    line = answer.plan.placement[0]
    hops = {*pairwise(line), *pairwise(line[::-1])}
    assert (src, dst) not in hops
    assert step_time_s(answer.plan, MODEL, DEVICES, fallen) < step_time_s(running, MODEL, DEVICES, fallen)
    assert "seen 3 times in a row" in answer.reason
    assert f"paid for at step {answer.pays_at_step}" in answer.reason


def test_a_link_that_stutters_once_moves_nothing() -> None:
    running = best(a_network())
    src, dst = (NAMES.index(n) for n in running.placement[0][:2])
    fallen = a_network()
    fallen.bandwidth_Bps[src, dst] /= 5
    good, bad = (Measured(MODEL, DEVICES, t) for t in (a_network(), fallen))
    answer = watch(running, [bad, bad, good, bad, bad, good])
    assert isinstance(answer, Stay)
    streaks = [watch(running, [bad, bad, good, bad, bad][:n]) for n in range(1, 6)]
    assert [s.streak for s in streaks if isinstance(s, Stay)] == [1, 2, 0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([1e5, 2e5, 1e6, 3e6]), min_size=12, max_size=12),
    st.sampled_from(PLANS),
    st.integers(0, 50),
    st.integers(51, 5000),
)
def test_who_moves_is_ahead_from_the_step_that_was_named_on(
    rates: list[float], running: Plan, step: int, steps: int
) -> None:
    now = Measured(MODEL, DEVICES, a_network(rates))
    candidate = best(now.topology)
    answer = reconsider(running, candidate, now, step, steps, patience=Patience(persistence=1))
    running_s, candidate_s = (step_time_s(p, MODEL, DEVICES, now.topology) for p in (running, candidate))
    gain_s = running_s - candidate_s
    if isinstance(answer, Stay):
        cost_s = moving_cost(running, candidate, MODEL, now.topology, 5.0 + candidate_s).seconds
        assert gain_s < 0.2 * running_s or (steps - step) * gain_s < cost_s
        return
    assert answer.saves_s == pytest.approx(gain_s)
    assert step < answer.pays_at_step <= steps

    def ahead_s(at: int) -> float:
        """How much sooner the run is at step `at` for having moved."""
        return (at - step) * running_s - (answer.cost.seconds + (at - step) * candidate_s)

    assert ahead_s(answer.pays_at_step) >= -1e-9
    assert ahead_s(answer.pays_at_step - 1) < 1e-9


def test_what_is_not_paid_for_before_the_end_stays() -> None:
    running = best(a_network())
    src, dst = (NAMES.index(n) for n in running.placement[0][:2])
    fallen = a_network()
    fallen.bandwidth_Bps[src, dst] /= 5
    now = Measured(MODEL, DEVICES, fallen)
    candidate = best(fallen)
    move = reconsider(running, candidate, now, 10, STEPS, streak=2)
    assert isinstance(move, Move)
    late = reconsider(running, candidate, now, 10, move.pays_at_step - 1, streak=2)
    assert isinstance(late, Stay)
    assert late.streak == 0
    assert f"not paid for in the {move.pays_at_step - 11} steps left" in late.reason
    assert isinstance(reconsider(running, candidate, now, 10, move.pays_at_step, streak=2), Move)


def test_a_better_plan_that_is_not_better_by_the_margin_is_named_and_left() -> None:
    running = best(a_network())
    slower = a_network()
    for x, y in pairwise(running.placement[0]):
        slower.bandwidth_Bps[NAMES.index(x), NAMES.index(y)] /= 1.15
    now = Measured(MODEL, DEVICES, slower)
    answer = reconsider(running, best(slower), now, 0, STEPS, streak=2)
    assert isinstance(answer, Stay)
    assert "less than the 20% that is asked for" in answer.reason
    worse = reconsider(best(slower), running, now, 0, STEPS, streak=2)
    assert isinstance(worse, Stay)
    assert "faster" not in worse.reason
    same = reconsider(running, running, now, 0, STEPS, streak=2)
    assert isinstance(same, Stay)
    assert same.reason.startswith("No other plan is known to be faster")


def test_a_plan_whose_device_is_gone_moves_at_once() -> None:
    running = best(a_network())
    left = [n for n in NAMES if n != running.placement[0][1]]
    there = a_network().subset([NAMES.index(n) for n in left])
    devices = [d for d in DEVICES if d.device in left]
    candidate = next(p for p in PLANS if set(p.placement[0]) == set(left))
    answer = reconsider(running, candidate, Measured(MODEL, devices, there), 7, 8)
    assert isinstance(answer, Move)
    assert answer.pays_at_step == 7
    assert answer.cost.orphans == (2, 3)
    assert answer.reason.startswith(f"{running.placement[0][1]} is gone")


@pytest.mark.parametrize(("margin", "persistence"), [(1.0, 1), (-0.1, 1), (0.2, 0)])
def test_patience_that_cannot_be_is_refused(margin: float, persistence: int) -> None:
    with pytest.raises(ValueError, match="required"):
        Patience(margin, persistence)
