"""Max-min fair sharing of limits: nobody gets more while somebody with less could have it.

A share has a cap of its own and passes some limits (a network card, a region's way out); a limit's
shares together get at most its capacity. Computed by filling all shares alike until one reaches
its cap or a limit is full, and again for the rest (Bertsekas and Gallager, Data Networks, 6.5.2).
The reference of `crowd.py`, which does the same compiled. Knows neither time nor bytes: rates only.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence


class Limit:
    """What all shares that pass here may have together, in bytes a second."""

    __slots__ = ("capacity_Bps", "shares")

    def __init__(self, capacity_Bps: float) -> None:
        self.capacity_Bps = capacity_Bps
        self.shares: dict[Share, None] = {}
        """In the order of their coming, so that nothing depends on addresses."""

    def can_bind(self) -> bool:
        """Whether the shares' own caps leave anything for this limit to hold back."""
        return sum(s.cap_Bps for s in self.shares) > self.capacity_Bps


class Share:
    """One user of the limits that it passes; it wants `cap_Bps`."""

    __slots__ = ("cap_Bps", "limits")

    def __init__(self, cap_Bps: float, limits: Sequence[Limit]) -> None:
        self.cap_Bps = cap_Bps
        self.limits = tuple(limits)

    def enter(self) -> None:
        for limit in self.limits:
            limit.shares[self] = None

    def leave(self) -> None:
        for limit in self.limits:
            del limit.shares[self]


def affected(changed: Iterable[Limit]) -> tuple[list[Share], list[Limit]]:
    """Every share whose rate may move when the shares of `changed` have (theirs, and all tied to them),
    and the limits that can bind these.

    Shares are tied by limits that can bind; one that cannot passes nothing on.
    """
    known = {limit: limit.can_bind() for limit in changed}
    to_look_at = list(known)
    found: dict[Share, None] = {}
    while to_look_at:
        for share in to_look_at.pop().shares:
            if share in found:
                continue
            found[share] = None
            for limit in share.limits:
                if limit not in known:
                    known[limit] = limit.can_bind()
                    if known[limit]:
                        to_look_at.append(limit)
    return list(found), [limit for limit, binds in known.items() if binds]


def max_min(shares: Sequence[Share], binding: Sequence[Limit]) -> list[float]:
    """[share]: its rate in bytes a second. `binding`: the limits that can bind any of `shares`, which are
    all that pass them. O(n log n) in both."""
    if not binding:
        return [s.cap_Bps for s in shares]
    if len(shares) == 1:
        return [min(shares[0].cap_Bps, *(limit.capacity_Bps for limit in binding))]
    order = {limit: i for i, limit in enumerate(binding)}
    left_Bps = {limit: limit.capacity_Bps for limit in binding}
    waiting = {limit: len(limit.shares) for limit in binding}
    full_at = [(left_Bps[limit] / waiting[limit], order[limit], limit) for limit in binding]
    heapq.heapify(full_at)
    rates: dict[Share, float] = {}

    def settle(share: Share, rate_Bps: float) -> None:
        rates[share] = rate_Bps
        for limit in share.limits:
            if limit in left_Bps:
                left_Bps[limit] = max(0.0, left_Bps[limit] - rate_Bps)
                waiting[limit] -= 1

    by_cap = sorted(shares, key=lambda s: s.cap_Bps)
    for share in by_cap:
        while share not in rates:
            full = _next_full(full_at, left_Bps, waiting)
            if full is None or share.cap_Bps <= full_at[0][0]:
                settle(share, share.cap_Bps)
            else:
                level_Bps = full_at[0][0]
                for tied in full.shares:
                    if tied not in rates:
                        settle(tied, level_Bps)
    return [rates[s] for s in shares]


def _next_full(
    full_at: list[tuple[float, int, Limit]], left_Bps: dict[Limit, float], waiting: dict[Limit, int]
) -> Limit | None:
    """The limit that is full first if all waiting shares grow alike; its level stands at full_at[0]."""
    while full_at:
        level_Bps, order, limit = full_at[0]
        if not waiting[limit]:
            heapq.heappop(full_at)
            continue
        true_Bps = left_Bps[limit] / waiting[limit]
        if true_Bps == level_Bps:
            return limit
        heapq.heapreplace(full_at, (true_Bps, order, limit))
    return None
