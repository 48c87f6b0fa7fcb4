"""Who may drive a run: one at a time, for a while, under a number that only grows.

A lease is taken when it is free or has expired, with the next epoch; whoever drives writes only as long as
the store still has its epoch. So a coordinator that stood still and wakes up behind another's back can do
nothing: its lease may have run out, which harms nobody, but once another has taken it the epoch is another.

Pure: time is an argument. Clocks of the coordinators may differ by less than a lease.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LEASE_S = 10.0
"""How long a coordinator is waited for that does not renew."""
RENEWALS = 4
"""Times that a lease is renewed while it lasts."""


@dataclass(frozen=True, slots=True)
class Lease:
    """`until_s`: seconds since 1970."""

    holder: str
    epoch: int
    until_s: float


def take(found: Lease | None, holder: str, now_s: float, lasts_s: float = LEASE_S) -> Lease | None:
    """The lease that `holder` may write down in place of `found`; None: another has it still."""
    if found is not None and found.holder != holder and now_s < found.until_s:
        return None
    return Lease(holder, (found.epoch if found else 0) + 1, now_s + lasts_s)


def renewed(mine: Lease, found: Lease | None, now_s: float, lasts_s: float = LEASE_S) -> Lease | None:
    """The lease for another while, also if it has run out meanwhile; None: another has taken it."""
    if found is None or found.epoch != mine.epoch:
        return None
    return replace(mine, until_s=now_s + lasts_s)
