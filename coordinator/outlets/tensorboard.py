"""The run's numbers as TensorBoard's event files: `tensorboard --logdir DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .scalars import scalars
from .seam import Event, OutletMissing


class TensorBoard:
    """Writes to `directory`/RUN; made when the run's name is known."""

    name = "TensorBoard"

    def __init__(self, directory: Path) -> None:
        try:
            from tensorboard.summary import Writer
        except ImportError as error:
            raise OutletMissing(f"--tensorboard: {error}; pip install 'isthmus[tensorboard]'") from error
        self._make = Writer
        self._directory = directory
        self._writer: Any = None

    def take(self, event: Event) -> None:
        if event["event"] == "listening":
            self._writer = self._make(str(self._directory / event["run"]))
        if self._writer is None:
            return
        step, numbers = scalars(event)
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
