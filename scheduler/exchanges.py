"""Exchanges among several ranks, as transfers one after the other. Knows ranks and bytes, no stages.

`send(src, dst, n_bytes, arrived)` hands bytes to the link between two ranks; `done` happens when
the last transfer of the exchange has arrived, or at once if there is nobody to talk to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scheduler.clock import Happening

Send = Callable[[int, int, float, Happening], None]


def all_to_all(ranks: Sequence[int], n_bytes: float, send: Send, done: Happening) -> None:
    """Everybody tells everybody else, all at once."""
    pairs = [(src, dst) for src in ranks for dst in ranks if src != dst]
    arrived = _last_of(len(pairs), done)
    for src, dst in pairs:
        send(src, dst, n_bytes, arrived)


def sharded(group: Sequence[int], shard_bytes: float, send: Send, again: Send, done: Happening) -> None:
    """Two rounds (reduce with `send`, then gather with `again`): in each, a member sends its shards to the
    others one after the other, and the round ends with the slowest member."""
    _round(group, shard_bytes, send, lambda: _round(group, shard_bytes, again, done))


def _round(group: Sequence[int], shard_bytes: float, send: Send, done: Happening) -> None:
    if len(group) < 2:
        done()
        return
    member_done = _last_of(len(group), done)
    for member in group:
        _chain(member, [other for other in group if other != member], shard_bytes, send, member_done)


def _chain(member: int, others: Sequence[int], n_bytes: float, send: Send, done: Happening) -> None:
    """Send to each of `others` when the one before has its bytes."""

    def go_on(i: int) -> None:
        if i == len(others):
            done()
        else:
            send(member, others[i], n_bytes, lambda: go_on(i + 1))

    go_on(0)


def _last_of(n: int, done: Happening) -> Happening:
    """Happens n times; the last time it is `done`. With n = 0, `done` happens now."""
    if n == 0:
        done()
    left = n

    def one() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done()

    return one
