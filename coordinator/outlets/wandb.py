"""The run's numbers at Weights & Biases. Key, address and offline mode are wandb's own settings (WANDB_…)."""

from __future__ import annotations

from typing import Any

from .scalars import scalars
from .seam import Event, OutletMissing

STEP = "step"
"""What curves are drawn over. W&B's own count of calls cannot go back, as a run does that takes up an earlier
checkpoint: what is logged for a step before the last is dropped."""


class WeightsAndBiases:
    """One W&B run of the same id and name, gone on with if the run is."""

    name = "Weights & Biases"

    def __init__(self, project: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise OutletMissing(f"--wandb: {error}; pip install 'isthmus[wandb]'") from error
        self._wandb: Any = wandb
        self._project = project
        self._run: Any = None

    def take(self, event: Event) -> None:
        if event["event"] == "listening":
            name = event["run"]
            self._run = self._wandb.init(project=self._project, id=name, name=name, resume="allow")
            self._run.define_metric("*", step_metric=STEP)
        if self._run is None:
            return
        step, numbers = scalars(event)
        if numbers:
            self._run.log({**numbers, STEP: step})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
