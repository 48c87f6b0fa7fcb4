"""Silence becomes news within three heartbeats, and never on a machine that is merely busy."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from scheduler.liveness import HEARTBEAT_S, SILENCE, remember

BUSY = """
2.01 2.00 2.01 2.06 2.06 2.16 2.03 2.06 2.03 2.02 2.00 2.04 2.02 2.02 2.00 2.01 2.00 2.02 2.04 2.01 2.04
2.02 2.00 2.00 2.02 2.01 2.01 2.02 2.02 2.03 2.06 2.03 2.05 2.04 2.03 2.02 2.04 2.02 2.03 2.08 2.01 2.04
2.04 2.05 2.06 2.01 2.00 2.05 2.03 2.01 2.01 2.01 2.02 2.00 2.01 2.01 2.02 2.01 2.00 2.02 2.05 2.02 2.01
2.00 2.01 2.01 2.05 2.02 2.01 2.01 2.03 2.01 2.01 2.01 2.07 2.02 2.03 2.01 2.02 2.02 2.00 2.06 2.01 2.03
2.06 2.05 2.13 2.10 2.05 2.05 2.03 2.03 2.05 2.01 2.02 2.03 2.03 2.01 2.03 2.05 2.08 2.06 2.03 2.05 2.05
2.00 2.00 2.02 2.01 2.03 2.02 2.02 2.09 2.02 2.04 2.06 2.04 2.04 2.03 2.01 2.02 2.06 2.00 2.00 2.01 2.05
2.05 2.04 2.01 2.03 2.05 2.03 2.01 2.00 2.09 2.02 2.04 2.02 2.03 2.02 2.04 2.05 2.05 2.02 2.01 2.01 2.03
2.01 2.01 2.01
"""
"""s between the heartbeats of a worker whose thread computes in Python and numpy: one of four beside each
other on two cores with a load of 12, at the lowest priority there is (SCHED_IDLE)."""
PAUSES_S = {20: 1.6, 47: 2.4, 75: 1.1, 101: 2.8, 130: 2.2}
"""What saving adds now and then, when it holds the interpreter for so long."""
RECORDED_S = {
    "busy": tuple(map(float, BUSY.split())),
    "saving": tuple(float(x) + PAUSES_S.get(i, 0.0) for i, x in enumerate(BUSY.split())),
}


def false_alarms(intervals_s: Sequence[float]) -> list[float]:
    """Intervals that were longer than the deadline which those before them gave."""
    seen: tuple[float, ...] = ()
    found = []
    for x in intervals_s:
        if x > SILENCE.deadline_s(seen):
            found.append(x)
        seen = remember(seen, x)
    return found


@pytest.mark.parametrize("name", sorted(RECORDED_S))
def test_nobody_is_suspected_for_being_busy(name: str) -> None:
    assert len(RECORDED_S[name]) > 100
    assert false_alarms(RECORDED_S[name]) == []


def test_three_heartbeats_are_never_waited_for_with_a_steady_worker() -> None:
    """With the coordinator's tick on top, which is half a second."""
    for steady in (RECORDED_S["busy"][-32:], (HEARTBEAT_S,) * 32):
        assert SILENCE.deadline_s(steady) + 0.5 < 3 * HEARTBEAT_S


def test_whoever_pauses_now_and_then_is_given_longer_for_as_long_as_that_is_remembered() -> None:
    steady = (HEARTBEAT_S,) * 31
    assert SILENCE.deadline_s((*steady, 4.9)) == pytest.approx(1.5 * 4.9)
    assert SILENCE.deadline_s((*steady, 60.0)) == SILENCE.ceiling_s, "one long pause does not blind"
    seen: tuple[float, ...] = (*steady, 4.9)
    for _ in range(32):
        seen = remember(seen, HEARTBEAT_S)
    assert SILENCE.deadline_s(seen) == SILENCE.floor_s


def test_an_erratic_link_earns_a_longer_deadline_and_a_new_worker_the_benefit_of_doubt() -> None:
    erratic = (1.0, 3.5, 1.2, 4.0, 0.8, 3.1, 2.0, 3.9)
    assert SILENCE.deadline_s(erratic) > 2 * SILENCE.floor_s
    assert SILENCE.deadline_s((2.0, 2.0)) == SILENCE.unknown_s
