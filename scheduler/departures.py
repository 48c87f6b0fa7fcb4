"""Why a worker is no member any more: one number a reason, in status, log, store and on the wire.

Numbers are never reused. Knows nothing of who decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Departure(IntEnum):
    """The reason in a word; `Gone.reason` has it in words."""

    UNKNOWN = 0
    SILENT = 1
    """No heartbeat for too long: stopped, cut off, or its machine is gone."""
    CONNECTION = 2
    """Its connection ended without a word: killed, or reset on the way."""
    LEFT = 3
    """Told to leave by whoever runs it; its step was done and its layers handed over."""
    NOTICE = 4
    """The same, because its machine is taken back."""
    FAILED = 5
    """It said so itself."""
    REFUSED = 6
    """Not taken in: the reason is what it was told."""
    BAD_NUMBERS = 7
    """Its gradients were not numbers, or far off; it may come back."""
    QUARANTINED = 8
    """The same too often: it may not."""
    OVERDUE = 9
    """A step waited for it far longer than for any before."""
    RELEASED = 10
    """The run is over."""
    UNFIT = 11
    """Its data or its model are others than the run's."""

    DISAGREED = 12
    """A spot check found its work to be other than what its replicas make of it; it may come back."""

    @property
    def words(self) -> str:
        """`bad numbers`."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class Gone:
    """That a worker left, and why."""

    code: Departure
    reason: str


def departure_from_wire(code: int) -> Departure:
    """What another process sent; a number of a later version reads as UNKNOWN."""
    try:
        return Departure(code)
    except ValueError:
        return Departure.UNKNOWN
