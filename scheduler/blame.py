"""Whose doing it is that a step does not end: from whom each rank waits for.

Everybody late waits for somebody, up to the one who waits for nobody and has not voted: it hangs, or computes
for far too long. Where the chain ends in a circle, or at a rank that has done its part, bytes were lost on
the way: nobody hangs, and new connections may be all it takes.

Pure: knows ranks, no workers and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping


def culprits(waits_for: Mapping[int, int | None], late: frozenset[int], again: bool) -> tuple[int, ...]:
    """Who goes so that the step can be done: whoever hangs; if nobody does and it did not end the time before
    either (`again`), whoever lacks bytes that were sent. Nobody: connections are made anew."""
    return hanging(waits_for, late) or (cut_off(waits_for, late) if again else ())


def hanging(waits_for: Mapping[int, int | None], late: frozenset[int]) -> tuple[int, ...]:
    """The late ranks at which chains of waiting end. `waits_for`: of each rank; None: nobody."""
    found = {end for rank in late if (end := _end(rank, waits_for, late)) is not None}
    return tuple(sorted(found))


def cut_off(waits_for: Mapping[int, int | None], late: frozenset[int]) -> tuple[int, ...]:
    """The late ranks that wait for one who has done its part, or for each other in a circle: the last of the
    circle, which is as good as any of it."""
    found = set()
    for rank in late:
        seen: list[int] = []
        at: int | None = rank
        while at is not None and at in late and at not in seen:
            seen.append(at)
            at = waits_for.get(at)
        if at is None:
            continue
        found.add(max(seen[seen.index(at) :]) if at in seen else seen[-1])
    return tuple(sorted(found))


def _end(rank: int, waits_for: Mapping[int, int | None], late: frozenset[int]) -> int | None:
    seen: set[int] = set()
    at = rank
    while at in late and at not in seen:
        seen.add(at)
        following = waits_for.get(at)
        if following is None:
            return at
        at = following
    return None
