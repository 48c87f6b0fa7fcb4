"""The compiled crowd of transfers against the reference that it is the twin of, and its bytes by hand."""

from __future__ import annotations

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.crowd import Crowd
from scheduler.fair_share import Limit, Share, affected, max_min

CAPACITIES = st.floats(0.1, 10)


@settings(deadline=None)  # the first time, the crowd is compiled
@given(st.lists(CAPACITIES, min_size=1, max_size=6), st.data())
def test_rates_are_the_reference_s_to_the_last_bit(capacities: list[float], data: st.DataObject) -> None:
    """Transfers come, go and change; after each, what the change can touch is shared anew in both."""
    crowd, limits = Crowd(slots=1, limits=1), [Limit(c) for c in capacities]
    assert [crowd.limit(c) for c in capacities] == list(range(len(limits)))
    rates: dict[Share, float] = {}
    slot_of: dict[Share, int] = {}
    for moment_s in range(data.draw(st.integers(1, 20))):
        what = data.draw(st.sampled_from(["come", "come", "go", "change"])) if slot_of else "come"
        if what == "come":
            passed = data.draw(st.lists(st.sampled_from(range(len(limits))), max_size=3, unique=True))
            share = Share(data.draw(CAPACITIES), [limits[i] for i in passed])
            share.enter()
            slot_of[share] = crowd.enter(tuple(passed), share.cap_Bps, 1e9, inf, moment_s)
            rates[share] = 0.0 if passed else share.cap_Bps
        else:
            share = data.draw(st.sampled_from(list(slot_of)))
            if what == "go":
                share.leave()
                crowd.leave(slot_of.pop(share))
                del rates[share]
            else:
                share.cap_Bps = data.draw(CAPACITIES)
                crowd.set_cap(slot_of[share], share.cap_Bps, moment_s)
                if not share.limits:
                    rates[share] = share.cap_Bps
        if share.limits:
            touched, binding = affected(share.limits)
            rates.update(zip(touched, max_min(touched, binding), strict=True))
            crowd.share([limits.index(x) for x in share.limits], moment_s)
        assert {s: crowd.rate(slot) for s, slot in slot_of.items()} == rates


def test_what_ends_first_is_due_first_and_of_equals_who_came_first() -> None:
    crowd = Crowd(slots=1)
    assert crowd.first_due() == (-1, inf)
    card = crowd.limit(10.0)
    a = crowd.enter((card,), 10.0, 20.0, inf, 0.0)
    b = crowd.enter((card,), 10.0, 20.0, inf, 0.0)
    assert crowd.first_due() == (-1, inf), "nobody moves before rates are shared"
    crowd.share([card], 0.0)
    assert crowd.first_due() == (a, 4.0)
    assert crowd.progress(a, 1.0) == (15.0, inf)
    crowd.leave(a)
    crowd.share([card], 1.0)
    assert crowd.first_due() == (b, 2.5)


def test_a_loss_is_due_before_the_end() -> None:
    crowd = Crowd()
    slot = crowd.enter((), 10.0, 100.0, 30.0, 2.0)
    assert crowd.first_due() == (slot, 5.0)
    assert crowd.progress(slot, 5.0) == (70.0, 0.0)
    crowd.set_to_loss(slot, inf)
    assert crowd.first_due() == (slot, 12.0)
