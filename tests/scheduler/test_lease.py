"""Two never hold the lease at once, whatever their clocks' order of events."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.lease import LEASE_S, Lease, renewed, take


def test_a_free_lease_is_taken_and_a_held_one_is_not() -> None:
    first = take(None, "a", 100.0)
    assert first == Lease("a", 1, 110.0)
    assert take(first, "b", 109.9) is None
    second = take(first, "b", 110.0)
    assert second == Lease("b", 2, 120.0)
    assert renewed(first, second, 111.0) is None, "whoever was asleep finds another's epoch"
    assert renewed(second, second, 115.0) == Lease("b", 2, 125.0)


def test_a_lease_that_ran_out_and_that_nobody_took_goes_on() -> None:
    mine = take(None, "a", 0.0)
    assert mine is not None
    assert renewed(mine, mine, 1000.0) == Lease("a", 1, 1000.0 + LEASE_S)


def test_the_same_holder_takes_it_anew_under_another_epoch() -> None:
    mine = take(None, "a", 0.0)
    assert take(mine, "a", 1.0) == Lease("a", 2, 11.0)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(("take", "renew", "write")), st.floats(0.0, 15.0)),
        max_size=60,
    )
)
def test_only_the_latest_epoch_ever_writes(history: list[tuple[str, str, float]]) -> None:
    """A store with one row; each coordinator does what it believes it may."""
    row: Lease | None = None
    believes: dict[str, Lease] = {}
    wrote: list[int] = []
    now_s = 0.0
    for who, what, after_s in history:
        now_s += after_s
        if what == "take" and (found := take(row, who, now_s)) is not None:
            assert row is None or found.epoch == row.epoch + 1
            row = believes[who] = found
        elif who in believes and what == "renew":
            again = renewed(believes[who], row, now_s)
            if again is None:
                del believes[who]
            else:
                row = believes[who] = again
        elif who in believes and row is not None and believes[who].epoch == row.epoch:
            wrote.append(row.epoch)
            assert row.holder == who
    assert wrote == sorted(wrote)
