"""A run's steps as a script sees them. Reads the coordinator's events; decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, fields

from deploy.processes import Event


@dataclass(frozen=True, slots=True)
class Step:
    """One step that every worker has committed to."""

    step: int
    """Counts from 1; of `steps`."""
    steps: int
    loss: float
    """Training loss in nats a token, the mean over the global batch."""
    tokens: int
    tokens_per_s: float
    """Over the last eight steps."""
    step_s: float
    """From the commit before to this one."""
    predicted_step_s: float
    grad_norm: float
    """Before clipping."""
    sent_bytes: int
    """On the wire, over all links; `raw_bytes`: before the codecs."""
    raw_bytes: int


_NAMES = tuple(f.name for f in fields(Step))


def step_of(event: Event) -> Step | None:
    """The step that `event` tells of; None for an event of another kind."""
    return Step(**{name: event[name] for name in _NAMES}) if event["event"] == "step" else None
