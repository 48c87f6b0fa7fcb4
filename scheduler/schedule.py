"""Order as data: what each stage of a pipeline does, one action after the other.

Two interpreters read these tuples: the worker matches them against tensors, the engine
against a clock. Nothing here knows durations, devices or tensors.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from scheduler.actions import (
    Action,
    Actions,
    Backward,
    FinishOuterStep,
    Forward,
    Kind,
    OptimizerStep,
    Recv,
    ReduceGradients,
    ScheduleError,
    Send,
    StartOuterStep,
)
from scheduler.schedule_check import check, grid

__all__ = [
    "NAMES",
    "Action",
    "Actions",
    "Backward",
    "FinishOuterStep",
    "Forward",
    "Kind",
    "OptimizerStep",
    "Recv",
    "ReduceGradients",
    "ScheduleError",
    "Send",
    "StartOuterStep",
    "check",
    "compute_order",
    "grid",
    "in_flight",
    "stage_actions",
]

NAMES = ("gpipe", "1f1b")
"""Schedules that `stage_actions` knows."""


def stage_actions(
    name: str,
    *,
    stage: int,
    n_stages: int,
    n_micro_batches: int,
    first_rank: int,
    warmup_extra: int = 0,
    local: bool = False,
    behind: int = 0,
) -> Actions:
    """One step of one stage; its pipeline is ranks first_rank .. first_rank + n_stages - 1.

    Both schedules are a warm-up of forwards, then one forward and one backward in turn, then
    the backwards that are left; gpipe's warm-up is all of the step. Backwards go in
    micro-batch order, so gradients accumulate in the same order under every schedule.
    1F1B: Narayanan et al., "Memory-Efficient Pipeline-Parallel DNN Training" (PipeDream-Flush);
    GPipe: Huang et al., 2019. `local`: gradients stay with the replica, and a piece of the outer step goes
    beside the forwards and backwards, in every step another. `behind`: shards behind
    this one, where replicas share sequences.
    Raises ScheduleError for an unknown name and for sizes out of range.
    """
    order = compute_order(
        name,
        stage=stage,
        n_stages=n_stages,
        n_micro_batches=n_micro_batches,
        warmup_extra=warmup_extra,
        behind=behind,
    )
    rank = first_rank + stage
    is_first, is_last = stage == 0, stage == n_stages - 1

    def forward(mb: int) -> Iterator[Action]:
        if not is_first:
            yield Recv("activation", mb, rank - 1)
        yield Forward(mb)
        if not is_last:
            yield Send("activation", mb, rank + 1)

    def backward(mb: int) -> Iterator[Action]:
        if not is_last:
            yield Recv("gradient", mb, rank + 1)
        yield Backward(mb)
        if not is_first:
            yield Send("gradient", mb, rank - 1)

    actions: list[Action] = []
    for is_backward, mb in order.tolist():
        actions += backward(mb) if is_backward else forward(mb)
    if local:
        end = (ReduceGradients(over_replicas=False), FinishOuterStep(), OptimizerStep())
        return (StartOuterStep(), *actions, *end)
    return (*actions, ReduceGradients(), OptimizerStep())


def compute_order(
    name: str,
    *,
    stage: int,
    n_stages: int,
    n_micro_batches: int,
    warmup_extra: int = 0,
    behind: int = 0,
) -> NDArray[np.int64]:
    """What one stage computes, in order: [2 x micro-batches, 2] of (0 forward or 1 backward, micro-batch).

    This is where a schedule is decided; who receives and sends what around it follows. `warmup_extra`
    forwards go ahead for every stage that follows: a stage must be as many ahead of the next as a
    tensor's way there and back takes, or each waits for the other once a micro-batch. In a row of shards
    keys go from each to the next and their gradients come back, as activations do between stages, so as many
    go ahead for each of the shards `behind`. Raises as `stage_actions` does.
    """
    _require_sizes(stage, n_stages, n_micro_batches, warmup_extra)
    ahead = (n_stages - stage - 1) * (1 + warmup_extra) + behind * warmup_extra
    warmup = _warmup(name, ahead, n_micro_batches)
    steady = n_micro_batches - warmup
    order = np.empty((2 * n_micro_batches, 2), dtype=np.int64)
    order[:, 0] = 1
    order[:warmup, 0] = 0  # warm-up: fill the pipeline
    order[:warmup, 1] = np.arange(warmup)
    order[warmup : warmup + 2 * steady : 2, 0] = 0  # steady: one forward, one backward
    order[warmup : warmup + 2 * steady : 2, 1] = np.arange(warmup, n_micro_batches)
    order[warmup + 1 : warmup + 2 * steady : 2, 1] = np.arange(steady)
    order[warmup + 2 * steady :, 1] = np.arange(steady, n_micro_batches)  # cool-down: drain it
    return order


def _warmup(name: str, depth: int, n_micro_batches: int) -> int:
    if name == "gpipe":
        return n_micro_batches
    if name == "1f1b":
        return min(depth, n_micro_batches)
    raise ScheduleError(f"found schedule {name!r}; known: {', '.join(NAMES)}")


def _require_sizes(stage: int, n_stages: int, n_micro_batches: int, warmup_extra: int) -> None:
    if not 0 <= stage < n_stages:
        raise ScheduleError(f"found stage {stage}, required 0 to {n_stages - 1} ({n_stages} stages)")
    if n_micro_batches < 1:
        raise ScheduleError(f"found {n_micro_batches} micro-batches, required at least 1")
    if warmup_extra < 0:
        raise ScheduleError(f"found warmup_extra {warmup_extra}, required 0 or more")


def in_flight(actions: Actions) -> int:
    """The most micro-batches whose activations are saved at one time: forwards done, backwards not."""
    most = saved = 0
    for action in actions:
        if isinstance(action, Forward):
            saved += 1
            most = max(most, saved)
        elif isinstance(action, Backward):
            saved -= 1
    return most
