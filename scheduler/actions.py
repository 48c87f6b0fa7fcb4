"""What one stage of a pipeline can do, as data. Knows no order, no durations, no devices, no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["activation", "gradient"]


class ScheduleError(ValueError):
    """A schedule that cannot be made or cannot run: says what was found and what is required."""


@dataclass(frozen=True, slots=True)
class Recv:
    """Take the tensor of micro-batch `mb` that rank `src` sends. The stage waits here until it is there."""

    kind: Kind
    mb: int
    src: int


@dataclass(frozen=True, slots=True)
class Forward:
    mb: int


@dataclass(frozen=True, slots=True)
class Backward:
    mb: int


@dataclass(frozen=True, slots=True)
class Send:
    """Hand the tensor of micro-batch `mb` to the link to rank `dst`; the stage goes on at once."""

    kind: Kind
    mb: int
    dst: int


@dataclass(frozen=True, slots=True)
class ReduceGradients:
    """Sum the stage's gradients over its replicas (sharded: each owns a part), then over tied layers.

    The exchange of a layer starts when that layer's last backward is done; this action waits for all.
    Without `over_replicas` each replica keeps its own, as in local steps.
    """

    over_replicas: bool = True


@dataclass(frozen=True, slots=True)
class StartOuterStep:
    """Send the replicas this step's piece of how far the weights have come; the stage goes on at once."""


@dataclass(frozen=True, slots=True)
class FinishOuterStep:
    """Wait for the sum of that piece; the optimizer's step then applies it."""


@dataclass(frozen=True, slots=True)
class OptimizerStep:
    """Clip by the global norm, step the optimizer, forget the gradients."""


Action = Recv | Forward | Backward | Send | ReduceGradients | StartOuterStep | FinishOuterStep | OptimizerStep
Actions = tuple[Action, ...]


def label(action: Action) -> str:
    """Short enough for a cell of a grid, clear enough for an error."""
    match action:
        case Recv(kind, mb, src):
            return f"recv {kind} {mb} from {src}"
        case Send(kind, mb, dst):
            return f"send {kind} {mb} to {dst}"
        case Forward(mb):
            return f"F{mb}"
        case Backward(mb):
            return f"B{mb}"
        case ReduceGradients(over_replicas):
            return "R" if over_replicas else "r"
        case StartOuterStep():
            return "U"
        case FinishOuterStep():
            return "W"
        case OptimizerStep():
            return "O"
