"""Finds a good setting for a shape, knob by knob, at some tens of prices instead of the product's hundreds.

What a setting comes to is the caller's to say. Knows no plan and no network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from scheduler.settings import Choices, Setting

WORTH = 0.01
"""Share of the step that a knob must save to leave its first position, so that rounding turns none."""


class Price(NamedTuple):
    """What a setting comes to: bytes that lack on the device that lacks most (0: it fits), then seconds."""

    missing_bytes: float
    step_s: float

    def beats(self, other: Price) -> bool:
        """Whether this lacks less, or as little and saves `WORTH`."""
        if self.missing_bytes != other.missing_bytes:
            return self.missing_bytes < other.missing_bytes
        return self.step_s < (1 - WORTH) * other.step_s


def tune(choices: Choices, price: Callable[[Setting], Price]) -> tuple[Setting, Price]:
    """Turn every knob through all its positions while the others stay, until none is turned (at most
    three rounds). A knob is left where it is unless another position lacks less memory or saves `WORTH`."""
    known: dict[tuple[int, ...], Price] = {}

    def at(positions: tuple[int, ...]) -> Price:
        if positions not in known:
            known[positions] = price(choices.at(positions))
        return known[positions]

    here: tuple[int, ...] = (0,) * len(choices.sizes)
    for _ in range(3):
        before = here
        for knob, size in enumerate(choices.sizes):
            first = (*here[:knob], 0, *here[knob + 1 :])
            best = first
            for position in range(1, size):
                there = (*here[:knob], position, *here[knob + 1 :])
                if at(there).beats(at(best)):
                    best = there
            here = best
        if here == before:
            break
    return choices.at(here), at(here)
