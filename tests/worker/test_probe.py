"""The rate that a probe makes of when its chunks were heard: exact for steady links, even in bursts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.probe import steady_Bps

CHUNK = 1000


@given(st.integers(2, 40), st.integers(1, 8), st.floats(1e-3, 10.0), st.floats(0.0, 100.0))
def test_bursts_of_several_streams_count_once(
    rounds: int, streams: int, every_s: float, begin_s: float
) -> None:
    """`streams` chunks come together every `every_s`: the last of one burst is where the next begins."""
    heard = [begin_s + (i + 1) * every_s for i in range(rounds) for _ in range(streams)]
    assert steady_Bps(heard, CHUNK, begin_s) == pytest.approx(streams * CHUNK / every_s, rel=1e-6)


def test_what_came_while_the_link_settled_is_left_out() -> None:
    slow = [1.0, 2.0]
    fast = [2.0 + 0.1 * i for i in range(1, 61)]
    assert steady_Bps(slow + fast, CHUNK, 0.0) == pytest.approx(CHUNK / 0.1)


def test_all_at_once_is_as_fast_as_they_came() -> None:
    assert steady_Bps([5.0] * 4, CHUNK, 3.0) == pytest.approx(4 * CHUNK / 2.0)


def test_what_is_heard_sooner_than_the_round_trip_allows_is_no_error() -> None:
    assert steady_Bps([1.0, 1.0], CHUNK, 1.5) == pytest.approx(2 * CHUNK / 1e-9)
