"""A pipeline's actions as integers, in one order that respects every dependency.

The fast twin of the engine (`step_time.py`) reads these rows one after the other; they are made from
`stage_actions`, so there is no second schedule. Knows no durations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scheduler.actions import Action, Actions, Backward, Forward, Recv, ScheduleError, Send
from scheduler.schedule import in_flight, stage_actions

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
def pipeline_table(schedule: str, n_stages: int, n_micro_batches: int, warmup_extra: int) -> PipelineTable:
    """The actions of all stages, every Recv after its Send and every stage in its own order.

    Raises ScheduleError as `stage_actions` does, and for actions that wait for ever.
    """
    stages = [
        stage_actions(
            schedule,
            stage=s,
            n_stages=n_stages,
            n_micro_batches=n_micro_batches,
            first_rank=0,
            warmup_extra=warmup_extra,
        )
        for s in range(n_stages)
    ]
    return PipelineTable(_rows(stages), tuple(in_flight(a) for a in stages))


def _rows(stages: list[Actions]) -> Rows:
    """Each stage goes as far as what has been sent lets it, again and again, until nothing is left."""
    rows: list[tuple[int, int, int]] = []
    sent: set[tuple[int, int, int]] = set()
    at = [0] * len(stages)
    left = True
    while left:
        left, moved = False, False
        for s, actions in enumerate(stages):
            while at[s] < len(actions):
                row = _row(actions[at[s]], s)
                if row is not None:
                    what, _, mb = row
                    if what in (RECV_ACTIVATION, RECV_GRADIENT) and row not in sent:
                        left = True
                        break
                    if what == SEND_ACTIVATION:
                        sent.add((RECV_ACTIVATION, s + 1, mb))
                    elif what == SEND_GRADIENT:
                        sent.add((RECV_GRADIENT, s - 1, mb))
                    rows.append(row)
                at[s] += 1
                moved = True
        if left and not moved:
            raise ScheduleError("found stages that wait for ever; scheduler.schedule.check marks the cell")
    return np.array(rows, dtype=np.int32).reshape(-1, 3)


def _row(action: Action, stage: int) -> tuple[int, int, int] | None:
    """None for what comes after the pipeline: reductions and the optimizer."""
    match action:
        case Forward(mb):
            return FORWARD, stage, mb
        case Backward(mb):
            return BACKWARD, stage, mb
        case Recv(kind, mb):
            return (RECV_ACTIVATION if kind == "activation" else RECV_GRADIENT), stage, mb
        case Send(kind, mb):
            return (SEND_ACTIVATION if kind == "activation" else SEND_GRADIENT), stage, mb
        case _:
            return None
