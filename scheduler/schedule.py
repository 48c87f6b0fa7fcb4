"""Order as data: what each stage of a pipeline does, one action after the other.

Two interpreters read these tuples: the worker matches them against tensors, the engine
against a clock. Nothing here knows durations, devices or tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["activation", "gradient"]


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
    """


@dataclass(frozen=True, slots=True)
class OptimizerStep:
    """Clip by the global norm, step the optimizer, forget the gradients."""


Action = Recv | Forward | Backward | Send | ReduceGradients | OptimizerStep
Actions = tuple[Action, ...]
