"""A board of a run that is in its state directory, from what the store kept of it."""

from __future__ import annotations

from pathlib import Path

from ..history import read_history
from .board import Board, Event


def board_of(state_dir: Path) -> Board:
    """The run as it was told, to its end or to where it is. Raises StoreError if there is none."""
    history = read_history(state_dir)
    told: list[tuple[float, int, Event]] = [
        (event.at_s, 0, {"event": event.kind, **event.body}) for event in history.events
    ]
    evals = {e.step: e for e in history.evals}
    for s in history.steps:
        told.append(
            (
                s.at_s, 1,
                {
                    "event": "step", "step": s.step + 1, "loss": s.loss, "tokens": s.tokens,
                    "tokens_per_s": s.tokens_per_s, "step_s": s.duration_s, "predicted_step_s": s.predicted_s,
                    "grad_norm": s.grad_norm, "sent_bytes": s.sent_bytes, "raw_bytes": s.raw_bytes,
                },
            )
        )  # fmt: skip
        if (found := evals.get(s.step + 1)) is not None:
            told.append((s.at_s, 2, {"event": "eval", "step": found.step, "eval_loss": found.loss}))
    board = Board(job=history.job.name)
    for at_s, _, event in sorted(told, key=lambda x: x[:2]):
        board.take(event, at_s)
    return board
