"""A link's arithmetic with a clock in hand: delay, rate, queue, loss, change."""

from __future__ import annotations

from random import Random

import pytest

from sim.shaped_link import Conditions, ShapedLink

TICK_S = 2.0**-10
RATE_BPS = 1000 / TICK_S
"""A packet of 1,000 bytes takes a tick, so that times are exact in binary."""


def link(*changes: tuple[float, Conditions], seed: int = 0) -> ShapedLink:
    return ShapedLink(changes, Random(seed))


def test_a_packet_takes_its_bytes_and_the_delay() -> None:
    runs = link((0.0, Conditions(delay_s=0.125, rate_Bps=RATE_BPS))).take(3.0, 1, 2000, 2000)
    assert runs == [(3.0 + 2 * TICK_S + 0.125, 0, 1)]


def test_packets_wait_for_one_another_and_joined_ones_for_all_of_them() -> None:
    shared = link((0.0, Conditions(delay_s=0.1, rate_Bps=1e6)))
    assert shared.take(0.0, 10, 1500, 500)[0][0] == pytest.approx(0.014 + 0.1)
    assert shared.take(0.0, 1, 1000, 1000)[0][0] == pytest.approx(0.015 + 0.1)
    assert shared.take(1.0, 1, 1000, 1000)[0][0] == pytest.approx(1.001 + 0.1), "it was idle in between"


def test_a_free_link_does_nothing() -> None:
    assert link((0.0, Conditions())).take(5.0, 40, 1500, 3) == [(5.0, 0, 40)]


def test_a_full_queue_drops_the_tail_and_counts_it() -> None:
    full = link((0.0, Conditions(rate_Bps=RATE_BPS, queue_bytes=10_000)))
    assert full.take(0.0, 20, 1000, 1000) == [(10 * TICK_S, 0, 10)]
    assert full.take(0.0, 1, 1000, 1000) == []
    assert full.take(5 * TICK_S, 6, 1000, 1000) == [(15 * TICK_S, 0, 5)], "five have left"
    assert (full.count.taken, full.count.overflowed) == (27, 12)


def test_an_idle_link_takes_a_packet_larger_than_its_queue() -> None:
    small = link((0.0, Conditions(rate_Bps=RATE_BPS, queue_bytes=100)))
    assert small.take(0.0, 3, 1000, 1000) == [(TICK_S, 0, 1)]
    assert small.take(TICK_S / 2, 1, 1000, 1000) == []


def test_loss_is_the_share_it_says_and_the_same_for_the_same_seed() -> None:
    def survivors(seed: int) -> list[tuple[int, int]]:
        lossy = link((0.0, Conditions(loss=0.02)), seed=seed)
        found = []
        for i in range(2000):
            found += [(i * 25 + a, i * 25 + b) for _, a, b in lossy.take(float(i), 25, 1500, 1500)]
        arrived = sum(b - a for a, b in found)
        assert arrived + lossy.count.lost == lossy.count.taken == 50_000
        return found

    first = survivors(1)
    assert sum(b - a for a, b in first) == pytest.approx(49_000, abs=150)  # five standard deviations
    assert survivors(1) == first
    assert survivors(2) != first


def test_how_packets_are_joined_does_not_change_which_are_lost() -> None:
    def lost(together: int) -> set[int]:
        lossy = link((0.0, Conditions(loss=0.1)), seed=3)
        kept: set[int] = set()
        for at in range(0, 600, together):
            for _, a, b in lossy.take(0.0, together, 1500, 1500):
                kept |= set(range(at + a, at + b))
        return set(range(600)) - kept

    assert lost(1) == lost(20) == lost(600)
    assert lost(1)


def test_jitter_never_lets_packets_overtake() -> None:
    shaky = link((0.0, Conditions(delay_s=0.05, jitter_s=0.02, rate_Bps=1e9)))
    due = [shaky.take(i * 1e-3, 1, 100, 100)[0][0] for i in range(500)]
    assert due == sorted(due)
    assert len(set(due)) > 10
    assert min(d - i * 1e-3 for i, d in enumerate(due)) >= 0


def test_conditions_hold_until_the_next_change() -> None:
    slow, fast = Conditions(delay_s=0.2, rate_Bps=1e3), Conditions(delay_s=0.01, loss=1.0)
    changing = link((10.0, slow), (20.0, fast), (30.0, Conditions(delay_s=0.01)))
    assert changing.take(0.0, 1, 100, 100)[0][0] == pytest.approx(0.3), "before the first change: as in it"
    assert changing.take(19.999, 1, 1, 1)[0][0] == pytest.approx(20.2)
    assert changing.take(20.0, 1, 100, 100) == []
    assert changing.take(30.0, 1, 100, 100)[0][0] == pytest.approx(30.01)
    assert changing.count.lost == 1


def test_a_shorter_delay_does_not_let_later_packets_overtake() -> None:
    changing = link((0.0, Conditions(delay_s=1.0)), (0.5, Conditions(delay_s=0.0)))
    assert changing.take(0.4, 1, 100, 100)[0][0] == pytest.approx(1.4)
    assert changing.take(0.6, 1, 100, 100)[0][0] == pytest.approx(1.4)
