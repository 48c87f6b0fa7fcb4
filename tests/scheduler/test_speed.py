"""Speeds over time: work and time invert each other; a slow device holds the step up by as much."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.engine import Durations, EngineError, FreeNetwork, replay
from scheduler.speed import Speed, SpeedError
from tests.scheduler.test_engine import a_plan, equal

HALF_FROM_4 = Speed((0.0, 4.0), (1.0, 0.5))


@given(
    gaps=st.lists(st.floats(0.1, 5), min_size=1, max_size=5),
    factors=st.lists(st.sampled_from([0.0, 0.25, 1.0, 2.0]), min_size=5, max_size=5),
    start_s=st.floats(-2, 20),
    work_s=st.floats(0, 30),
)
def test_the_end_is_when_the_work_is_done(
    gaps: list[float], factors: list[float], start_s: float, work_s: float
) -> None:
    times = tuple(sum(gaps[: i + 1]) for i in range(len(gaps)))
    speed = Speed(times, (*factors[: len(gaps) - 1], 0.5))
    end_s = speed.end_s(start_s, work_s)
    assert speed.work_s(start_s, end_s) == pytest.approx(work_s, abs=1e-9)


def test_a_slow_device_holds_up_what_it_computes_then() -> None:
    """Forwards and backwards of 1 s: at full speed until 4, then at half."""
    plan = a_plan(1, 1, 3)
    t = replay(plan, equal(plan, 1, 1), FreeNetwork(), {"d0": HALF_FROM_4})
    assert [(s.start_s, s.end_s) for s in t.spans] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 6), (6, 8), (8, 8)]
    assert replay(plan, equal(plan, 1, 1), FreeNetwork(), {"d0": HALF_FROM_4.shifted(2)}).duration_s == 10


def test_a_host_that_slows_down_slows_all_of_its_ranks() -> None:
    """Two ranks on one core, 3 s of work each: 4 of 6 are done at 4, the rest at half speed."""
    plan = a_plan(1, 2, 1)
    d = Durations((3, 3), (0, 0), (0, 0), (0, 0), (0, 0), (0,), shared_cores=(((0, 1), 1),))
    speeds = {"d0": HALF_FROM_4, "d1": HALF_FROM_4}
    assert replay(plan, d, FreeNetwork(), speeds).duration_s == pytest.approx(8)
    with pytest.raises(EngineError, match="d0, d1 share their host's cores: found unequal speeds"):
        replay(plan, d, FreeNetwork(), {"d0": HALF_FROM_4})


def test_the_profiled_speed_changes_nothing() -> None:
    plan = a_plan(3, 2, 4)
    d = replace(equal(plan, 0.3, 0.7), shared_cores=(((0, 1, 2), 2),))
    nominal = {plan.device(r): Speed((0.0,), (1.0,)) for r in range(6)}
    assert replay(plan, d, FreeNetwork(), nominal) == replay(plan, d, FreeNetwork())


@pytest.mark.parametrize(
    ("times", "factors", "message"),
    [
        ((), (), "found 0 times, 0 factors"),
        ((0.0, 0.0), (1.0, 1.0), "required finite ones that ascend"),
        ((0.0,), (float("nan"),), "required finite ones of 0 or more"),
        ((0.0, 1.0), (1.0, 0.0), "found the last factor 0"),
    ],
)
def test_speeds_that_cannot_be(times: tuple[float, ...], factors: tuple[float, ...], message: str) -> None:
    with pytest.raises(SpeedError, match=message):
        Speed(times, factors)
