"""What a step's actions cost, as the engine takes it. Knows not where the numbers come from (`cost.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from scheduler.plan import Plan
from scheduler.shard_rows import Rows


class EngineError(ValueError):
    """Durations that do not fit the plan, or actions that wait for ever."""


CODED = ("activation", "gradient", "reduce", "tied")
CodecSeconds = tuple[float, float]
"""(encoding, decoding)."""


@dataclass(frozen=True, slots=True)
class Durations:
    """What a step's actions cost. Seconds are alone on the host; bytes are as they go on the wire."""

    forward_s: tuple[float, ...]
    """Of one micro-batch, by rank; so is `backward_s`. `optimizer_s`: once a step, by rank."""
    backward_s: tuple[float, ...]
    optimizer_s: tuple[float, ...]
    activation_bytes: tuple[int, ...]
    """Of one micro-batch, by the rank that sends it to the next stage; 0 where there is none."""
    gradient_bytes: tuple[int, ...]
    """Likewise, to the stage before."""
    reduce_bytes: tuple[int, ...]
    """[stage]: what its replicas exchange: all gradients, or a piece of the weights' change."""
    activation_codec_s: tuple[CodecSeconds, ...] = ()
    """Of one micro-batch, by the rank that sends it to the next stage: encoding there, decoding at the other
    end; (): none has a codec. Likewise `gradient_codec_s`."""
    gradient_codec_s: tuple[CodecSeconds, ...] = ()
    reduce_codec_s: tuple[CodecSeconds, ...] = ()
    """By rank: encoding, and decoding, as many values as the stage exchanges; (): none has a codec. Likewise
    `tied_codec_s`, as many as the shared weight has."""
    tied_codec_s: tuple[CodecSeconds, ...] = ()
    tied_bytes: int = 0
    """The gradient that first and last stage swap because they share a weight; 0: they share none."""
    shared_cores: tuple[tuple[tuple[int, ...], int], ...] = ()
    """(ranks on one host, its cores), for hosts whose cores are shared."""
    rows: Rows | None = None
    """What replicas send each other where they share sequences; None: they share the batch."""

    def __post_init__(self) -> None:
        for name in (
            "forward_s",
            "backward_s",
            "optimizer_s",
            "activation_bytes",
            "gradient_bytes",
            "reduce_bytes",
        ):
            for i, value in enumerate(getattr(self, name)):
                if not (isfinite(value) and value >= 0):
                    raise EngineError(f"{name}[{i}]: found {value}, required a finite number of 0 or more")

    def codec_s(self, kind: str, rank: int) -> CodecSeconds:
        """Of `kind` (activation, gradient, reduce, tied) and the rank it is told by."""
        seconds: tuple[CodecSeconds, ...] = getattr(self, f"{kind}_codec_s")
        return seconds[rank] if seconds else (0.0, 0.0)


def require_sizes(plan: Plan, d: Durations) -> None:
    """Raise EngineError unless `d` has a value for every rank and stage of `plan`."""
    for name, required in (
        ("forward_s", plan.n_ranks),
        ("backward_s", plan.n_ranks),
        ("optimizer_s", plan.n_ranks),
        ("activation_bytes", plan.n_ranks),
        ("gradient_bytes", plan.n_ranks),
        ("reduce_bytes", plan.n_stages),
        *((f"{kind}_codec_s", plan.n_ranks) for kind in CODED if getattr(d, f"{kind}_codec_s")),
    ):
        found = len(getattr(d, name))
        if found != required:
            shape = f"{plan.n_stages} stages x {plan.n_replicas} replicas"
            raise EngineError(f"{name}: found {found} values, required {required} for {shape}")
