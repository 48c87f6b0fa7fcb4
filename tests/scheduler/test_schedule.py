"""Schedules as data: their order, that they can run, and what the check says when they cannot."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.schedule import (
    Actions,
    Backward,
    FinishOuterStep,
    Forward,
    OptimizerStep,
    Recv,
    ReduceGradients,
    ScheduleError,
    Send,
    StartOuterStep,
    check,
    grid,
    in_flight,
    stage_actions,
)


def pipeline(
    name: str, n_stages: int, n_micro_batches: int, extra: int = 0, first: int = 0
) -> dict[int, Actions]:
    return {
        first + stage: stage_actions(
            name,
            stage=stage,
            n_stages=n_stages,
            n_micro_batches=n_micro_batches,
            first_rank=first,
            warmup_extra=extra,
        )
        for stage in range(n_stages)
    }


def compute(actions: Actions) -> list[Forward | Backward]:
    return [a for a in actions if isinstance(a, Forward | Backward)]


def test_1f1b_is_warm_up_steady_cool_down() -> None:
    assert stage_actions("1f1b", stage=1, n_stages=3, n_micro_batches=3, first_rank=6) == (
        Recv("activation", 0, 6),
        Forward(0),
        Send("activation", 0, 8),
        Recv("activation", 1, 6),
        Forward(1),
        Send("activation", 1, 8),
        Recv("gradient", 0, 8),
        Backward(0),
        Send("gradient", 0, 6),
        Recv("activation", 2, 6),
        Forward(2),
        Send("activation", 2, 8),
        Recv("gradient", 1, 8),
        Backward(1),
        Send("gradient", 1, 6),
        Recv("gradient", 2, 8),
        Backward(2),
        Send("gradient", 2, 6),
        ReduceGradients(),
        OptimizerStep(),
    )


def test_gpipe_does_all_forwards_then_all_backwards_in_order() -> None:
    for actions in pipeline("gpipe", 3, 4).values():
        assert compute(actions) == [*(Forward(i) for i in range(4)), *(Backward(i) for i in range(4))]


def test_one_stage_sends_and_receives_nothing() -> None:
    actions = stage_actions("1f1b", stage=0, n_stages=1, n_micro_batches=2, first_rank=5)
    assert actions == (Forward(0), Backward(0), Forward(1), Backward(1), ReduceGradients(), OptimizerStep())


def test_local_steps_send_a_piece_first_and_keep_their_gradients() -> None:
    for stage in range(3):
        whole = stage_actions("1f1b", stage=stage, n_stages=3, n_micro_batches=4, first_rank=0)
        local = stage_actions("1f1b", stage=stage, n_stages=3, n_micro_batches=4, first_rank=0, local=True)
        end = (ReduceGradients(over_replicas=False), FinishOuterStep(), OptimizerStep())
        assert local == (StartOuterStep(), *whole[:-2], *end)
    ranks = {
        s: stage_actions("1f1b", stage=s, n_stages=2, n_micro_batches=1, first_rank=0, local=True)
        for s in range(2)
    }
    check(ranks)
    assert grid(ranks).splitlines()[0] == "rank 0 | U F0 .  .  B0 r W O"


@given(
    name=st.sampled_from(["gpipe", "1f1b"]),
    n_stages=st.integers(1, 9),
    n_micro_batches=st.integers(1, 12),
    extra=st.integers(0, 4),
    first=st.integers(0, 20),
)
def test_every_size_runs_and_keeps_backwards_in_order(
    name: str, n_stages: int, n_micro_batches: int, extra: int, first: int
) -> None:
    ranks = pipeline(name, n_stages, n_micro_batches, extra, first)
    check(ranks)
    every = list(range(n_micro_batches))
    for stage, actions in enumerate(ranks.values()):
        assert [a.mb for a in actions if isinstance(a, Forward)] == every
        assert [a.mb for a in actions if isinstance(a, Backward)] == every
        assert actions[-2:] == (ReduceGradients(), OptimizerStep())
        ahead = (n_stages - stage - 1) * (1 + extra) + 1
        most = n_micro_batches if name == "gpipe" else min(n_micro_batches, ahead)
        assert in_flight(actions) == most


def test_grid_shows_a_slot_a_column() -> None:
    assert grid(pipeline("1f1b", 2, 2)).splitlines() == [
        "rank 0 | F0 F1 .  B0 .  B1 R O",
        "rank 1 | .  F0 B0 F1 B1 R  O",
    ]


def test_a_deadlock_is_found_and_marked() -> None:
    ranks = pipeline("gpipe", 2, 1)
    wants_gradient_first = (Recv("gradient", 0, 1), Forward(0), Send("activation", 0, 1), Backward(0))
    ranks[0] = (*wants_gradient_first, ReduceGradients(), OptimizerStep())
    with pytest.raises(ScheduleError, match=r"deadlock.*rank 0 for recv gradient 0 from 1") as caught:
        check(ranks)
    assert "rank 0 | [recv gradient 0 from 1]" in str(caught.value)


def without(actions: Actions, index: int) -> Actions:
    return actions[:index] + actions[index + 1 :]


def test_any_lost_or_doubled_transfer_is_an_error_with_a_marked_cell() -> None:
    ranks = pipeline("1f1b", 3, 3)
    tried = 0
    for rank, i in product(ranks, range(30)):
        if i < len(ranks[rank]) and isinstance(ranks[rank][i], Send | Recv):
            for broken in (without(ranks[rank], i), ranks[rank][: i + 1] + ranks[rank][i:]):
                with pytest.raises(ScheduleError, match=r"required one of each") as caught:
                    check({**ranks, rank: broken})
                assert "[" in str(caught.value)
                tried += 1
    assert tried == 2 * 2 * 2 * 2 * 3  # lost or doubled, 2 ends of 2 boundaries, 2 kinds, 3 micro-batches


@pytest.mark.parametrize(
    ("actions", "says"),
    [
        ((Backward(0), Forward(0)), "before the forward"),
        ((Forward(0), Forward(0), Backward(0)), "happens twice"),
        ((Forward(0),), "has no backward"),
        ((Forward(0), ReduceGradients(), Backward(0)), "before the last backward"),
        ((Forward(0), Backward(0), OptimizerStep(), ReduceGradients()), "before the gradients are reduced"),
        ((StartOuterStep(), OptimizerStep(), FinishOuterStep()), "before the piece that it applies"),
        ((FinishOuterStep(), OptimizerStep()), "waits for a piece that was not sent"),
    ],
)
def test_an_order_that_uses_what_is_not_there_is_an_error(actions: Actions, says: str) -> None:
    with pytest.raises(ScheduleError, match=says):
        check({0: actions})


def test_sends_before_their_making_are_errors() -> None:
    ranks = pipeline("gpipe", 2, 1)
    early = (Send("activation", 0, 1), Forward(0), Recv("gradient", 0, 1), Backward(0))
    with pytest.raises(ScheduleError, match="before the forward that makes it"):
        check({**ranks, 0: early})
    late = (Forward(0), Recv("activation", 0, 0), Backward(0), Send("gradient", 0, 0))
    with pytest.raises(ScheduleError, match="its activation is received only later"):
        check({**ranks, 1: late})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "zigzag"}, "'zigzag'; known: gpipe, 1f1b"),
        ({"stage": 3}, "stage 3, required 0 to 2"),
        ({"n_micro_batches": 0}, "0 micro-batches"),
        ({"warmup_extra": -1}, "warmup_extra -1"),
    ],
)
def test_sizes_out_of_range_say_what_is_required(change: dict[str, object], says: str) -> None:
    arguments = {
        "name": "1f1b",
        "stage": 0,
        "n_stages": 3,
        "n_micro_batches": 2,
        "first_rank": 0,
        "warmup_extra": 0,
    }
    arguments.update(change)
    name = str(arguments.pop("name"))
    numbers = {k: int(str(v)) for k, v in arguments.items()}
    with pytest.raises(ScheduleError, match=says):
        stage_actions(name, **numbers)  # type: ignore[arg-type]
