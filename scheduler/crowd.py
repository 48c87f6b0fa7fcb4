"""Transfers in flight that share limits, compiled: who has which rate, and who is done first.

The fast twin of `fair_share.py`, which says what is worked out here and in which order; a test holds their
rates to the last bit. A transfer has a slot. A limit's transfers are a list in the order of their coming,
linked through (slot, which of its limits), so that one comes or goes without anything being moved.
Knows rates and bytes, no links and no names.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_LIMITS = 3
"""That one transfer can pass: a card out, a card in, a way out of a region."""
CAP, RATE, LEFT, TO_LOSS, AS_OF = range(5)
"""What is known of a slot: the most it may have and what it has (bytes/s), bytes left and bytes to the next
lost packet as they were at AS_OF (s)."""


class Slots(NamedTuple):
    """S slots, L limits."""

    amounts: Floats
    """[S, 5]"""
    next_s: Floats
    """[S]: when no byte is left, or none to the next lost packet; inf: never, or a free slot."""
    asked: Ints
    """[S]: when `next_s` was worked out, as a running number; of two that end together the first asked
    is first."""
    passes: Ints
    """[S, 3]: limits, -1: none."""
    later: Ints
    """[S * 3]: the next of the same limit, as slot * 3 + place, -1: the last; so is `sooner`."""
    sooner: Ints


class Limited(NamedTuple):
    capacity_Bps: Floats
    """[L]"""
    crossing: Ints
    """[L]: transfers that pass; `first` and `last` of them, as in `Slots.later`."""
    first: Ints
    last: Ints


class Crowd:
    """The arrays, grown as needed."""

    def __init__(self, slots: int = 64, limits: int = 64) -> None:
        self._slots, self._limits = _no_slots(slots), _no_limits(limits)
        self._n_limits = self._used = 0
        self._free: list[int] = []
        self._asked = 0

    def limit(self, capacity_Bps: float) -> int:
        """A new limit."""
        if self._n_limits == len(self._limits.crossing):
            self._limits = Limited._make(map(_doubled, self._limits))
        index = self._n_limits
        self._limits.capacity_Bps[index] = capacity_Bps
        self._limits.first[index] = self._limits.last[index] = -1
        self._n_limits += 1
        return index

    def enter(
        self, limits: tuple[int, ...], cap_Bps: float, n_bytes: float, to_loss_bytes: float, now_s: float
    ) -> int:
        """A transfer begins; its slot. If it passes limits it stands still until `share`."""
        if self._free:
            slot = self._free.pop()
        else:
            if self._used == len(self._slots.asked):
                self._slots = Slots._make(map(_doubled, self._slots))
            slot = self._used
            self._used += 1
        self._asked += 1
        passed = (*limits, *(-1,) * (MOST_LIMITS - len(limits)))
        begun = (cap_Bps, n_bytes, to_loss_bytes, now_s)
        _enter(self._slots, self._limits, slot, passed, begun, self._asked)
        return slot

    def leave(self, slot: int) -> float:
        """The transfer is over; bytes to the next loss."""
        self._free.append(slot)
        return _leave(self._slots, self._limits, slot)

    def progress(self, slot: int, now_s: float) -> tuple[float, float]:
        """Move what its rate moved until `now_s`; bytes left, and bytes to the next loss."""
        return _progress(self._slots.amounts, slot, now_s)

    def set_cap(self, slot: int, cap_Bps: float, now_s: float) -> None:
        """What it may have from now on: it has it, if it passes no limit, else from the next `share` on."""
        self._asked += 1
        _set_cap(self._slots, slot, cap_Bps, now_s, self._asked)

    def set_to_loss(self, slot: int, n_bytes: float) -> None:
        """How far the next loss is, as of the last `progress`."""
        self._slots.amounts[slot, TO_LOSS] = n_bytes
        self._asked += 1
        _look_ahead(self._slots, slot, self._asked)

    def share(self, changed: list[int], now_s: float) -> None:
        """Work out the rates of all that the shares of `changed` can touch."""
        self._asked = _share(self._slots, self._limits, np.array(changed), now_s, self._asked, self._used)

    def rate(self, slot: int) -> float:
        """What it has now."""
        return float(self._slots.amounts[slot, RATE])

    def first_due(self) -> tuple[int, float]:
        """(slot, moment in s) of what ends or loses a packet first; (-1, inf): nothing does."""
        return _first_due(self._slots.next_s, self._slots.asked, self._used)


def _no_slots(n: int) -> Slots:
    links = np.zeros((2, n * MOST_LIMITS), np.int64)
    return Slots(
        np.zeros((n, 5)), np.zeros(n), np.zeros(n, np.int64), np.zeros((n, MOST_LIMITS), np.int64), *links
    )


def _no_limits(n: int) -> Limited:
    return Limited(np.zeros(n), *np.zeros((3, n), np.int64))


def _doubled(values: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.concatenate([values, np.zeros_like(values)])


# ---- one transfer


@compiled
def _enter(
    s: Slots,
    limits: Limited,
    slot: int,
    passed: tuple[int, ...],
    begun: tuple[float, float, float, float],
    asked: int,
) -> None:
    own = s.amounts[slot]
    cap_Bps, own[LEFT], own[TO_LOSS], own[AS_OF] = begun
    own[RATE], s.next_s[slot] = 0.0, np.inf
    for k in range(MOST_LIMITS):
        limit, node = passed[k], slot * MOST_LIMITS + k
        s.passes[slot, k] = limit
        if limit < 0:
            continue
        before = limits.last[limit]
        s.sooner[node], s.later[node] = before, -1
        if before < 0:
            limits.first[limit] = node
        else:
            s.later[before] = node
        limits.last[limit] = node
        limits.crossing[limit] += 1
    _set_cap(s, slot, cap_Bps, own[AS_OF], asked)


@compiled
def _set_cap(s: Slots, slot: int, cap_Bps: float, now_s: float, asked: int) -> None:
    s.amounts[slot, CAP] = cap_Bps
    if s.passes[slot, 0] < 0:
        _set_rate(s, slot, cap_Bps, now_s, asked)


@compiled
def _leave(s: Slots, limits: Limited, slot: int) -> float:
    s.next_s[slot] = np.inf
    for k in range(MOST_LIMITS):
        limit, node = s.passes[slot, k], slot * MOST_LIMITS + k
        if limit < 0:
            break
        before, after = s.sooner[node], s.later[node]
        if before < 0:
            limits.first[limit] = after
        else:
            s.later[before] = after
        if after < 0:
            limits.last[limit] = before
        else:
            s.sooner[after] = before
        limits.crossing[limit] -= 1
    to_loss_bytes: float = s.amounts[slot, TO_LOSS]
    return to_loss_bytes


@compiled
def _progress(amounts: Floats, slot: int, now_s: float) -> tuple[float, float]:
    moved_bytes = amounts[slot, RATE] * (now_s - amounts[slot, AS_OF])
    amounts[slot, LEFT] = max(0.0, amounts[slot, LEFT] - moved_bytes)
    amounts[slot, TO_LOSS] -= moved_bytes
    amounts[slot, AS_OF] = now_s
    return amounts[slot, LEFT], amounts[slot, TO_LOSS]


@compiled
def _look_ahead(s: Slots, slot: int, asked: int) -> None:
    n_bytes = min(s.amounts[slot, LEFT], s.amounts[slot, TO_LOSS])
    rate_Bps = s.amounts[slot, RATE]
    s.next_s[slot] = s.amounts[slot, AS_OF] + n_bytes / rate_Bps if rate_Bps > 0 else np.inf
    s.asked[slot] = asked


@compiled
def _set_rate(s: Slots, slot: int, rate_Bps: float, now_s: float, asked: int) -> None:
    if rate_Bps != s.amounts[slot, RATE]:
        _progress(s.amounts, slot, now_s)
        s.amounts[slot, RATE] = rate_Bps
        _look_ahead(s, slot, asked)


@compiled
def _first_due(next_s: Floats, asked: Ints, used: int) -> tuple[int, float]:
    best, best_s = -1, np.inf
    for slot in range(used):
        if next_s[slot] > best_s:
            continue
        if next_s[slot] < best_s or (best >= 0 and asked[slot] < asked[best]):
            best, best_s = slot, next_s[slot]
    return best, best_s


# ---- all together


@compiled
def _can_bind(s: Slots, limits: Limited, limit: int) -> bool:
    wanted_Bps, node = 0.0, limits.first[limit]
    while node >= 0:
        wanted_Bps += s.amounts[node // MOST_LIMITS, CAP]
        node = s.later[node]
    binds: bool = wanted_Bps > limits.capacity_Bps[limit]
    return binds


@compiled
def _share(s: Slots, limits: Limited, changed: Ints, now_s: float, asked: int, used: int) -> int:
    n_limits = len(limits.crossing)
    known = np.zeros(n_limits, np.bool_)
    binding, to_look_at = np.empty(n_limits, np.int64), np.empty(n_limits, np.int64)
    is_found, found = np.zeros(used, np.bool_), np.empty(used, np.int64)
    n_binding = n_found = n_to_look_at = 0
    for limit in changed:
        known[limit] = True
        to_look_at[n_to_look_at] = limit
        n_to_look_at += 1
        if _can_bind(s, limits, limit):
            binding[n_binding] = limit
            n_binding += 1
    while n_to_look_at:
        n_to_look_at -= 1
        node = limits.first[to_look_at[n_to_look_at]]
        while node >= 0:
            slot = node // MOST_LIMITS
            node = s.later[node]
            if is_found[slot]:
                continue
            is_found[slot] = True
            found[n_found] = slot
            n_found += 1
            for limit in s.passes[slot]:
                if limit >= 0 and not known[limit]:
                    known[limit] = True
                    if _can_bind(s, limits, limit):
                        binding[n_binding] = limit
                        n_binding += 1
                        to_look_at[n_to_look_at] = limit
                        n_to_look_at += 1
    rates_Bps = _max_min(s, limits, found[:n_found], binding[:n_binding], used)
    for slot in found[:n_found]:
        asked += 1
        _set_rate(s, slot, rates_Bps[slot], now_s, asked)
    return asked


@compiled
def _max_min(s: Slots, limits: Limited, found: Ints, binding: Ints, used: int) -> Floats:
    """[slot]: its rate, -1 for those not `found`."""
    rates_Bps = np.full(used, -1.0)
    left_Bps, waiting = np.empty(len(limits.crossing)), np.zeros(len(limits.crossing), np.int64)
    for limit in binding:
        left_Bps[limit], waiting[limit] = limits.capacity_Bps[limit], limits.crossing[limit]
    full_at = [(left_Bps[binding[i]] / waiting[binding[i]], i) for i in range(len(binding))]
    heapq.heapify(full_at)
    caps_Bps = np.empty(len(found))
    for i, slot in enumerate(found):
        caps_Bps[i] = s.amounts[slot, CAP]
    for i in np.argsort(caps_Bps, kind="mergesort"):
        slot = found[i]
        while rates_Bps[slot] < 0:
            full = -1
            while len(full_at) and full < 0:
                level_Bps, order = full_at[0]
                limit = binding[order]
                if not waiting[limit]:
                    heapq.heappop(full_at)
                elif left_Bps[limit] / waiting[limit] == level_Bps:
                    full = limit
                else:
                    heapq.heapreplace(full_at, (left_Bps[limit] / waiting[limit], order))
            if full < 0 or caps_Bps[i] <= full_at[0][0]:
                _settle(s, slot, caps_Bps[i], rates_Bps, left_Bps, waiting)
                continue
            level_Bps, node = full_at[0][0], limits.first[full]
            while node >= 0:
                tied = node // MOST_LIMITS
                if rates_Bps[tied] < 0:
                    _settle(s, tied, level_Bps, rates_Bps, left_Bps, waiting)
                node = s.later[node]
    return rates_Bps


@compiled
def _settle(s: Slots, slot: int, rate_Bps: float, rates_Bps: Floats, left_Bps: Floats, waiting: Ints) -> None:
    rates_Bps[slot] = rate_Bps
    for limit in s.passes[slot]:
        if limit >= 0 and waiting[limit]:
            left_Bps[limit] = max(0.0, left_Bps[limit] - rate_Bps)
            waiting[limit] -= 1
