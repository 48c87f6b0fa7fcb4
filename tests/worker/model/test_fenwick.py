"""Fenwick's tree over positions, and what it makes of SSD."""

from __future__ import annotations

import pytest
import torch

from tests.worker.model.shapes import layers_of
from tests.worker.model.test_mixers import block_of, close, input_of, mixer_of, model_of
from worker.model.fenwick import TreeState, levels_between
from worker.model.layer import TooManyPositions
from worker.model.log_delta import LogDelta
from worker.model.log_ssd import LogSsd


def test_the_past_of_a_position_falls_into_a_stretch_for_each_1_in_its_digits() -> None:
    """Position 6 (110): 4 and 5 are the stretch of 2, 0 to 3 that of 4."""
    levels = levels_between(8)
    assert levels[6, :7].tolist() == [3, 3, 3, 3, 2, 2, 0]
    for t in range(8):
        counted = levels[t, :t].bincount(minlength=4).tolist()
        assert counted == [0, t & 1, t & 2, t & 4]


@pytest.mark.parametrize("n", [1, 2, 7, 8, 13])
def test_the_state_holds_what_was_written_in_each_stretch(n: int) -> None:
    written = torch.arange(1.0, n + 1)
    tree = TreeState.empty(written, n_levels=5, shape=(1,))
    for value in written:
        tree = tree.behind(value.view(1, 1))
    levels = levels_between(n + 1)[n, :n]
    expected = [written[levels == level].sum().item() for level in range(1, 5)]
    assert tree.stretches.flatten().tolist() == expected
    assert tree.seen == n


@pytest.mark.parametrize("part", ["ssd state=4 chunk=4", "delta chunk=4"])
def test_the_tree_begins_as_the_one_state_and_each_level_can_leave_that(part: str) -> None:
    model = model_of()
    tree, plain = (layers_of(model_of(name), 1, 2)[0] for name in (f"log_{part}", part))
    x = input_of().requires_grad_()
    begun = tree(x)[0]
    close(begun, plain(x)[0])
    (begun**2).sum().backward()
    moved = dict(tree.named_parameters())["mixer.levels.weight"].grad
    assert moved is not None
    reached = 1 + (x.shape[1] - 1).bit_length()
    moved_HM = moved.abs().amax(1).view(model.heads, -1)
    assert (moved_HM[:, :reached] > 0).all()


@pytest.mark.parametrize("part", ["ssd state=4 chunk=4", "delta chunk=4"])
def test_with_equal_weights_the_tree_is_the_one_state(part: str) -> None:
    tree, plain = mixer_of(f"log_{part}"), mixer_of(part)
    assert isinstance(tree, LogSsd | LogDelta)
    plain.load_state_dict({k: v for k, v in tree.state_dict().items() if not k.startswith("levels")})
    with torch.no_grad():
        tree.levels.weight.zero_()
    close(tree(input_of())[0], plain(input_of())[0])


@pytest.mark.parametrize("part", ["log_ssd state=4 length=8", "log_delta length=8"])
def test_a_text_that_is_longer_than_there_are_levels_for_is_refused(part: str) -> None:
    block = block_of(part)
    _, state = block(input_of(length=8), block.begin())
    with pytest.raises(TooManyPositions, match="found a sequence of 9 positions; required at most 8"):
        block.step(input_of(length=1)[:, 0], state)
    with pytest.raises(TooManyPositions, match="found a sequence of 9 positions"):
        block(input_of(length=9))
