"""The order of samples: complete in every epoch, the same for everybody; and the ledger."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.samples import Ledger, SampleError, epoch_of, permutation, positions, step_samples

GOLDEN = (
    (0, 2, 9, 1, 8, 5, 4, 3, 6, 7),
    (5, 3, 7, 8, 2, 4, 1, 0, 6, 9),
    (8, 4, 1, 6, 3, 2, 7, 5, 9, 0),
)
small = st.integers(1, 40)
seeds = st.integers(0, 2**63 - 1)


@given(seed=seeds, n=small, batch=small, epochs=st.integers(1, 3))
def test_every_epoch_takes_every_sample_once(seed: int, n: int, batch: int, epochs: int) -> None:
    n_steps = -(-n * epochs // batch)
    walked = [i for step in range(n_steps) for i in step_samples(seed, n, batch, step)]
    for epoch in range(epochs):
        assert sorted(walked[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(seed=seeds, n=small, batch=small, step=st.integers(0, 10**12))
def test_a_step_is_the_same_whoever_asks_and_whenever(seed: int, n: int, batch: int, step: int) -> None:
    first = step_samples(seed, n, batch, step)
    permutation.cache_clear()
    assert step_samples(seed, n, batch, step) == first
    assert len(first) == batch
    assert all(type(i) is int for i in first)


@given(seed=seeds, n=small, batch=small, step=st.integers(0, 1000))
def test_a_batch_twice_as_large_is_two_steps_in_a_row(seed: int, n: int, batch: int, step: int) -> None:
    two = step_samples(seed, n, batch, 2 * step) + step_samples(seed, n, batch, 2 * step + 1)
    assert step_samples(seed, n, 2 * batch, step) == two


def test_the_order_is_the_recorded_one() -> None:
    """Golden: a change here would shuffle every running job differently after an upgrade."""
    assert step_samples(0, 10, 10, 0) == GOLDEN[0]
    assert step_samples(0, 10, 10, 1) == GOLDEN[1]
    assert step_samples(7, 10, 10, 0) == GOLDEN[2]


def test_epochs_and_seeds_differ_in_order() -> None:
    a, b, c = permutation(1000, 0, 0), permutation(1000, 0, 1), permutation(1000, 1, 0)
    assert not np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert not np.array_equal(b, c)
    assert epoch_of(999, 1000) == 0
    assert epoch_of(1000, 1000) == 1


def test_the_cached_order_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        permutation(5, 0, 0)[0] = 3


@pytest.mark.parametrize(("n", "batch", "step"), [(0, 1, 0), (5, 0, 0), (5, 1, -1)])
def test_impossible_questions_are_refused(n: int, batch: int, step: int) -> None:
    with pytest.raises(SampleError, match="required"):
        step_samples(0, n, batch, step)


def test_positions_of_steps() -> None:
    assert positions(3, 5, 16) == (48, 80)
    with pytest.raises(SampleError, match="start <= stop"):
        positions(5, 3, 16)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=12), st.integers(0, 80))
def test_the_ledger_is_a_set_of_positions(takes: list[tuple[int, int]], cut: int) -> None:
    ledger, model = Ledger(), set[int]()
    for start, length in takes:
        wanted = set(range(start, start + length))
        if model & wanted:
            with pytest.raises(SampleError, match="second time"):
                ledger.consume(start, start + length)
        else:
            ledger, model = ledger.consume(start, start + length), model | wanted
    assert _members(ledger.ranges) == model
    assert ledger.n_consumed == len(model)
    assert ledger.complete_to == next(i for i in range(200) if i not in model)
    assert _members(ledger.missing(cut)) == set(range(cut)) - model
    assert _members(ledger.rewind(cut).ranges) == {p for p in model if p < cut}


def test_a_step_repeated_without_rewinding_is_refused_and_with_it_is_not() -> None:
    ledger = Ledger().consume(0, 32)
    with pytest.raises(SampleError, match=r"\[16, 32\) consumed a second time"):
        ledger.consume(16, 48)
    assert ledger.rewind(16).consume(16, 48) == Ledger(((0, 48),))


@pytest.mark.parametrize("ranges", [((3, 3),), ((4, 8), (0, 2)), ((0, 4), (4, 5)), ((-1, 2),)])
def test_a_ledger_that_cannot_be_is_refused(ranges: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(SampleError, match="ascending"):
        Ledger(ranges)


def _members(ranges: tuple[tuple[int, int], ...]) -> set[int]:
    return {p for a, b in ranges for p in range(a, b)}
