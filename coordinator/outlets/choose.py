"""Which outlets `coordinator start` was asked for."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ..progress import Show
from .seam import Outlet, WithOutlets
from .tensorboard import TensorBoard
from .traces import Traces, provider
from .wandb import WeightsAndBiases


@dataclass(frozen=True, slots=True)
class Wanted:
    """`tensorboard`: a directory; `wandb`: a project; `otel`: by OTLP. None, '' and False: not."""

    tensorboard: Path | None = None
    wandb: str = ""
    otel: bool = False


def with_outlets(show: Show, wanted: Wanted, state_dir: Path) -> Show:
    """`show`, and what else is wanted. Raises OutletMissing."""
    outlets: list[Outlet] = []
    if wanted.tensorboard is not None:
        outlets.append(TensorBoard(wanted.tensorboard))
    if wanted.wandb:
        outlets.append(WeightsAndBiases(wanted.wandb))
    if wanted.otel:
        outlets.append(Traces(state_dir, provider(), time.time))
    return WithOutlets(show, outlets) if outlets else show
