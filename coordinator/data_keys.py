"""Whose data connections workers take: the members' keys, and for a minute those of visitors that probe.

Says when there is something new to tell. Time is an argument; knows no stream and no worker's state.
"""

from __future__ import annotations

from collections.abc import Mapping

from .records import Member

VISIT_S = 60.0
MAX_VISITORS = 64


class DataKeys:
    """What was told last, and who visits."""

    def __init__(self) -> None:
        self._visitors: dict[bytes, float] = {}
        self._told: tuple[bytes, ...] = ()

    def visit(self, key: bytes, now_s: float) -> None:
        """Let this key probe workers for VISIT_S; the visitor longest there makes way."""
        self._visitors.pop(key, None)
        while len(self._visitors) >= MAX_VISITORS:
            del self._visitors[next(iter(self._visitors))]
        self._visitors[key] = now_s + VISIT_S

    @property
    def told(self) -> tuple[bytes, ...]:
        """All keys, as they were told last."""
        return self._told

    def news(self, members: Mapping[str, Member], now_s: float) -> bool:
        """Whether `told` has changed."""
        self._visitors = {k: until_s for k, until_s in self._visitors.items() if until_s > now_s}
        keys = {m.peer.curve_public_key for m in members.values()} | set(self._visitors)
        now = tuple(sorted(keys - {b""}))
        changed, self._told = now != self._told, now
        return changed
