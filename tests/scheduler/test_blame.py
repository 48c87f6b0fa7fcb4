"""Who keeps a step from ending: chains of waiting followed to their end."""

from __future__ import annotations

import pytest

from scheduler.blame import cut_off, hanging

LATE = frozenset({0, 1, 2, 3})


@pytest.mark.parametrize(
    ("waits_for", "late", "hangs", "cut"),
    [
        ({0: 1, 1: 2, 2: None, 3: 2}, LATE, (2,), ()),
        ({0: 1, 1: None, 2: 3, 3: None}, LATE, (1, 3), ()),
        ({0: 1, 1: 0, 2: 0, 3: 2}, LATE, (), (1,)),
        ({1: 0, 2: 1}, frozenset({1, 2}), (), (1,)),
        ({0: 1, 1: 0, 2: None}, frozenset({0, 1, 2}), (2,), (1,)),
        ({}, frozenset({0}), (0,), ()),
        ({0: 0}, frozenset({0}), (), (0,)),
        ({}, frozenset(), (), ()),
    ],
    ids=["a chain", "two chains", "a circle", "lost bytes", "both", "alone", "itself", "nobody"],
)
def test_chains(
    waits_for: dict[int, int | None], late: frozenset[int], hangs: tuple[int, ...], cut: tuple[int, ...]
) -> None:
    assert hanging(waits_for, late) == hangs
    assert cut_off(waits_for, late) == cut
