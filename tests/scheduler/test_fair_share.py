"""Max-min fairness against its definition, and the affected part against the whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.fair_share import Limit, Share, affected, max_min

CAPACITIES = st.floats(0.1, 10)


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[Limit], list[Share]]:
    limits = [Limit(c) for c in draw(st.lists(CAPACITIES, min_size=1, max_size=6))]
    n = draw(st.integers(1, 12))
    shares = []
    for _ in range(n):
        passed = draw(st.lists(st.sampled_from(range(len(limits))), max_size=3, unique=True))
        shares.append(Share(draw(CAPACITIES), [limits[i] for i in passed]))
        shares[-1].enter()
    return limits, shares


def rates_of(shares: list[Share]) -> dict[Share, float]:
    """All of them worked out together."""
    binding = {limit: None for s in shares for limit in s.limits if limit.can_bind()}
    return dict(zip(shares, max_min(shares, list(binding)), strict=True))


def require_max_min(shares: list[Share], rates: dict[Share, float]) -> None:
    """Feasible, and whoever has less than its cap passes a full limit where nobody has more."""
    full = set()
    for limit in {limit for s in shares for limit in s.limits}:
        used = sum(rates[s] for s in limit.shares)
        assert used <= limit.capacity_Bps * (1 + 1e-9)
        if used >= limit.capacity_Bps * (1 - 1e-9):
            full.add(limit)
    for s in shares:
        if rates[s] < s.cap_Bps * (1 - 1e-9):
            most = [max(rates[x] for x in limit.shares) for limit in s.limits if limit in full]
            assert any(rates[s] >= m * (1 - 1e-9) for m in most)
        else:
            assert rates[s] <= s.cap_Bps


@given(networks())
def test_nobody_has_more_while_somebody_with_less_could(network: tuple[list[Limit], list[Share]]) -> None:
    _, shares = network
    require_max_min(shares, rates_of(shares))


@given(networks(), st.data())
def test_what_a_change_cannot_touch_keeps_its_rate(
    network: tuple[list[Limit], list[Share]], data: st.DataObject
) -> None:
    _, shares = network
    before = rates_of(shares)
    gone = data.draw(st.sampled_from(shares))
    gone.leave()
    rest = [s for s in shares if s is not gone]
    touched, binding = affected(gone.limits)
    after = {s: before[s] for s in rest} | dict(zip(touched, max_min(touched, binding), strict=True))
    require_max_min(rest, after)
    whole = rates_of(rest)
    assert [after[s] for s in rest] == pytest.approx([whole[s] for s in rest])


def test_equal_shares_of_one_limit_get_equal_parts() -> None:
    limit = Limit(12.0)
    shares = [Share(10.0, [limit]) for _ in range(3)] + [Share(1.5, [limit])]
    for s in shares:
        s.enter()
    assert list(rates_of(shares).values()) == [3.5, 3.5, 3.5, 1.5]


def test_a_limit_that_cannot_bind_ties_nobody() -> None:
    wide, narrow = Limit(100.0), Limit(5.0)
    a, b, c = Share(4.0, [narrow, wide]), Share(4.0, [narrow]), Share(4.0, [wide])
    for s in (a, b, c):
        s.enter()
    assert affected([narrow]) == ([a, b], [narrow])
    assert list(rates_of([a, b, c]).values()) == [2.5, 2.5, 4.0]
