"""A pipeline's actions as integers, in one order that respects every dependency.

The fast twin of the engine (`step_time.py`) reads these rows one after the other. They are made from
the order that `stage_actions` is made from, so there is no second schedule. Knows no durations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scheduler.actions import ScheduleError
from scheduler.compiled import compiled
from scheduler.schedule import compute_order

Rows = NDArray[np.int32]
"""[actions, 3]: what (below), stage, micro-batch."""

FORWARD, BACKWARD, RECV_ACTIVATION, RECV_GRADIENT, SEND_ACTIVATION, SEND_GRADIENT = range(6)


@dataclass(frozen=True, slots=True)
class PipelineTable:
    """One step of one pipeline up to its reductions."""

    rows: Rows
    in_flight: tuple[int, ...]
    """[stage]: the most micro-batches whose activations are saved at one time."""


@lru_cache(maxsize=512)
def pipeline_table(
    schedule: str, n_stages: int, n_micro_batches: int, warmup_extra: int, behind: int = 0
) -> PipelineTable:
    """The actions of all stages, every Recv after its Send and every stage in its own order.

    Raises ScheduleError as `stage_actions` does, and for actions that wait for ever.
    """
    own, most = [], []
    for stage in range(n_stages):
        order = compute_order(
            schedule,
            stage=stage,
            n_stages=n_stages,
            n_micro_batches=n_micro_batches,
            warmup_extra=warmup_extra,
            behind=behind,
        )
        own.append(_stage_rows(order, stage, n_stages))
        most.append(int(np.cumsum(1 - 2 * order[:, 0]).max()))
    begin = np.cumsum([0, *map(len, own)])
    rows, done = _in_order(np.concatenate(own), begin, n_micro_batches)
    if not done:
        raise ScheduleError("found stages that wait for ever; scheduler.schedule.check marks the cell")
    return PipelineTable(rows, tuple(most))


def _stage_rows(order: NDArray[np.int64], stage: int, n_stages: int) -> Rows:
    """Each computation with its Recv before it and its Send after it, where the stage has the neighbour."""
    is_backward = order[:, 0].astype(bool)
    rows = np.empty((len(order), 3, 3), dtype=np.int32)
    rows[:, :, 1], rows[:, :, 2] = stage, order[:, 1:]
    rows[:, 0, 0] = np.where(is_backward, RECV_GRADIENT, RECV_ACTIVATION)
    rows[:, 1, 0] = np.where(is_backward, BACKWARD, FORWARD)
    rows[:, 2, 0] = np.where(is_backward, SEND_GRADIENT, SEND_ACTIVATION)
    is_first, is_last = stage == 0, stage == n_stages - 1
    there = np.ones((len(order), 3), dtype=bool)
    there[:, 0] = np.where(is_backward, not is_last, not is_first)
    there[:, 2] = np.where(is_backward, not is_first, not is_last)
    return rows[there]


@compiled
def _in_order(own: Rows, begin: NDArray[np.int64], n_micro_batches: int) -> tuple[Rows, bool]:
    """Each stage goes as far as what has been sent lets it, again and again, until nothing is left.

    Rows of stage s are own[begin[s]:begin[s + 1]]. The second value: whether all could be ordered.
    """
    n_stages = len(begin) - 1
    rows = np.empty_like(own)
    sent = np.zeros((2, n_stages, n_micro_batches), dtype=np.bool_)
    at = begin[:-1].copy()
    count = 0
    moved = True
    while moved:
        moved = False
        for s in range(n_stages):
            while at[s] < begin[s + 1]:
                what, mb = own[at[s], 0], own[at[s], 2]
                if what == RECV_ACTIVATION and not sent[0, s, mb]:
                    break
                if what == RECV_GRADIENT and not sent[1, s, mb]:
                    break
                if what == SEND_ACTIVATION:
                    sent[0, s + 1, mb] = True
                elif what == SEND_GRADIENT:
                    sent[1, s - 1, mb] = True
                rows[count] = own[at[s]]
                count += 1
                at[s] += 1
                moved = True
    return rows, count == len(own)
