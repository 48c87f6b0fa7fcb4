"""Spot checks: drawn by a key, told to those who have a part, judged by a majority or by a second partner."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise, product
from math import inf, nan

import numpy as np
import pytest

from scheduler.plan import Plan
from scheduler.plan_codecs import PlanCodecs, same_everywhere
from scheduler.profile import DeviceProfile, LayerProfile, ModelProfile
from scheduler.spot_checks import SpotCheck, checkable, draw, judge_check, price, why_none
from scheduler.topology import Device, Topology

KEY = b"k" * 32


def a_plan(stages: int, replicas: int) -> Plan:
    cuts = [2 * s for s in range(stages + 1)]
    placement = tuple(tuple(f"w{r}.{s}" for s in range(stages)) for r in range(replicas))
    return Plan(1, placement, tuple(pairwise(cuts)), (2,) * replicas, "1f1b", micro_batch=2)


def test_what_is_drawn_is_the_keys_and_not_to_be_foreseen() -> None:
    plan = a_plan(3, 3)
    drawn = [draw(plan, step, 1, KEY) for step in range(400)]
    assert drawn == [draw(plan, step, 1, KEY) for step in range(400)]
    assert drawn != [draw(plan, step, 1, b"another") for step in range(400)]
    cells = Counter((c.replica, c.stage, c.micro_batch) for c in drawn if c)
    assert set(cells) == set(product(range(3), range(3), range(2))), "everybody's turn comes"
    assert max(cells.values()) < 3 * min(cells.values())


@pytest.mark.parametrize("every", [0, 1, 5])
def test_only_every_so_many_steps(every: int) -> None:
    plan = a_plan(2, 2)
    steps = [s for s in range(20) if draw(plan, s, every, KEY)]
    assert steps == (list(range(0, 20, every)) if every else [])


@pytest.mark.parametrize("replicas", [2, 3, 5])
def test_checkers_hold_the_stage_and_are_not_the_checked_rank(replicas: int) -> None:
    plan = a_plan(3, replicas)
    for step in range(50):
        check = draw(plan, step, 1, KEY)
        assert check is not None
        assert len(check.checkers) == min(2, replicas - 1)
        assert {plan.stage_of(r) for r in check.checkers} == {check.stage}
        checked = check.checked(plan)
        assert checked not in check.checkers
        beside = {r for r in range(plan.n_ranks) if plan.replica_of(r) == check.replica}
        beside = {r for r in beside if abs(plan.stage_of(r) - check.stage) == 1}
        assert set(check.told(plan)) == beside | set(check.checkers)
        assert checked not in check.told(plan), "who is checked is not told"


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (a_plan(1, 3), "one stage"),
        (a_plan(3, 1), "second replica"),
        (replace(a_plan(2, 2), local_steps=4), "weights of their own"),
        (replace(a_plan(2, 2), split="sequence"), "share every sequence"),
        (replace(a_plan(2, 2), codecs=same_everywhere(2, 2, activation="kbit:bits=4")), "compressed"),
        (a_plan(2, 2), ""),
    ],
)
def test_where_nothing_can_be_checked_it_is_said(plan: Plan, says: str) -> None:
    assert says in why_none(plan) if says else why_none(plan) == ""
    assert (draw(plan, 0, 1, KEY) is None) == bool(says)


def test_only_stages_between_plain_boundaries_are_checked() -> None:
    rows = (("identity", "kbit"), ("identity", "identity"))
    plan = replace(a_plan(3, 2), codecs=PlanCodecs(activation=rows))
    assert checkable(plan) == ((0, 0), (1, 0), (1, 1), (1, 2))


# ---- the verdict

PLAN3, PLAN2 = a_plan(2, 3), a_plan(2, 2)
WORKERS3, WORKERS2 = PLAN3.devices, PLAN2.devices
OF_THREE = SpotCheck(7, 0, 0, 1, (2, 4))
OF_TWO = SpotCheck(7, 0, 0, 1, (2,))


@pytest.mark.parametrize(
    ("errors", "kind", "ranks"),
    [
        ({2: 0.0, 4: 1e-6}, "agree", ()),
        ({2: 0.5, 4: 0.4}, "at fault", (0,)),
        ({2: nan, 4: inf}, "at fault", (0,)),
        ({2: 0.5, 4: 0.0}, "at fault", (2,)),
        ({2: 0.0, 4: -1.0}, "at fault", (4,)),
        ({2: 0.5}, "suspected", (0,)),
        ({}, "agree", ()),
        ({1: 9.0, 3: 9.0}, "agree", ()),
    ],
)
def test_of_three_the_one_that_is_alone_is_at_fault(
    errors: dict[int, float], kind: str, ranks: tuple[int, ...]
) -> None:
    verdict = judge_check(OF_THREE, PLAN3, errors, 1e-2, WORKERS3, {})
    assert (verdict.kind, verdict.ranks) == (kind, ranks)
    assert bool(verdict.reason) == (kind != "agree")


def test_of_two_a_second_partner_tells() -> None:
    first = judge_check(OF_TWO, PLAN2, {2: 1.0}, 1e-2, WORKERS2, {})
    assert (first.kind, first.ranks) == ("suspected", (0,))
    assert "nobody can say which of the two is wrong" in first.reason
    newcomer = ("spare", *WORKERS2[1:])
    checker = judge_check(OF_TWO, PLAN2, {2: 1.0}, 1e-2, newcomer, first.partners)
    assert (checker.kind, checker.ranks) == ("at fault", (2,)), "it disagreed with whoever held rank 0"
    assert "has disagreed with 2 others" in checker.reason
    again = judge_check(OF_TWO, PLAN2, {2: 1.0}, 1e-2, WORKERS2, first.partners)
    assert again.kind == "suspected", "the same two once more say nothing new"
    other = (WORKERS2[0], WORKERS2[1], "spare", WORKERS2[3])
    checked = judge_check(OF_TWO, PLAN2, {2: 1.0}, 1e-2, other, first.partners)
    assert (checked.kind, checked.ranks) == ("at fault", (0,))


# ---- the price


def test_the_price_is_in_bytes_and_seconds() -> None:
    layers = tuple(LayerProfile(f"l{i}", 1.0, 2.0, 10, 4096, 10, 20) for i in range(4))
    model = ModelProfile(layers, micro_batch=1, sequence_length=8)
    plan = replace(PLAN2, predicted_step_s=10.0)
    names = plan.devices
    profiles = tuple(DeviceProfile(n, (0.1,) * 4, (0.2,) * 4, (0.0,) * 4) for n in names)
    latency = np.full((4, 4), 0.05)
    topology = Topology(tuple(Device(n) for n in names), latency, np.full((4, 4), 8192.0))
    # One neighbour's two tensors of two samples: 2 x 2 x 4096 bytes in 2 s and 0.05 s; then 2 x 2 x 0.3 s.
    said = price(plan, model, profiles, topology, 10)
    assert "Every 10 steps" in said
    assert "16 KiB more" in said or "16.0 KiB more" in said
    assert "3.25 s more in that step, 3.25% of the time" in said
    assert "No spot checks: no stage has a second replica." in price(
        a_plan(4, 1), model, profiles, topology, 10
    )
