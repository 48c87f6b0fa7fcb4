"""What a rank needs to run the steps of one plan. Plain values; does nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from scheduler.job import JobSpec
from scheduler.plan import Plan
from scheduler.spot_checks import SpotCheck
from worker.agreement import Agreement
from worker.faults import Reached, no_faults
from worker.link_codecs import LinkCodecs
from worker.transport import Transport


@dataclass(slots=True)
class Waiting:
    """For whose tensor the rank's thread waits; read by others."""

    rank: int | None = None


def nothing_checked(_: int) -> SpotCheck | None:
    """For plans without spot checks."""
    return None


def nobody_follows(step: int, lr: float, frozen_after: int | None) -> None:
    """For plans whose layers nobody follows."""


@dataclass(frozen=True, slots=True)
class StepContext:
    """The same for every step of the plan."""

    plan: Plan
    rank: int
    job: JobSpec
    transport: Transport
    codecs: LinkCodecs
    agreement: Agreement
    receive_timeout_s: float
    """How long a tensor may keep this rank waiting before the step fails."""
    reached: Reached = no_faults
    """Told of the phases of a step as they begin."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    separator: int | None = None
    """The token that begins a document, where several in one sample are kept apart. Every stage then reads
    its micro-batches' tokens from the data: all workers have it, and nothing more has to travel."""
    waiting: Waiting = field(default_factory=Waiting)
    check_of: Callable[[int], SpotCheck | None] = nothing_checked
    """What is checked in a step, if this rank has a part in it."""
    stepping: Callable[[int, float, int | None], None] = nobody_follows
    """Told (step, learning rate, frozen_after) of a committed step, when the gradients are what the optimizer
    is about to take. `frozen_after` as `StageOptimizer.step_by_momentum` has it; None: it is a plain step."""

    @property
    def stage(self) -> int:
        return self.plan.stage_of(self.rank)

    @property
    def replica(self) -> int:
        return self.plan.replica_of(self.rank)
