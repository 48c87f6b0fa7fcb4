"""The job's `compression` section: a codec, with its options, for each kind of traffic.

    compression:
      activations: {kbit: {bits: 4}}      # forward, over a stage boundary
      gradients: {kbit: {bits: 8, rounding: stochastic}}   # backward, over it
      reduce: identity                    # of weights, between replicas and between tied layers

A codec without options may stand as its name alone. Knows what may be asked for, not what it costs:
that is `compression.spec`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from compression.grid import CodecError, numel
from compression.spec import (
    AcsgdSpec,
    CodecSpec,
    FeedbackSpec,
    HalfSpec,
    IdentitySpec,
    KBitSpec,
    TileSpec,
    TopKSpec,
)
from scheduler.strict import Strict

Bits = Annotated[int, Field(ge=1, le=8)]
Group = Annotated[int, Field(ge=1)]


class NoOptions(Strict):
    """`identity` and `fp16` have none."""


class KBitOptions(Strict):
    """Uniform quantization."""

    bits: Bits = 8
    scale: Literal["tensor", "channel", "group"] = "group"
    group: Group = 64
    """Neighbours that share a scale; must divide the model's hidden size."""
    rounding: Literal["nearest", "stochastic"] = "nearest"

    def spec(self) -> CodecSpec:
        return KBitSpec(self.bits, self.scale, self.group, self.rounding)


class TileOptions(Strict):
    """Groups in two widths, outliers rotated; remembers nothing."""

    bits: Annotated[int, Field(ge=2, le=8)] = 4
    """Of the groups that err most; the others get one less."""
    group: Annotated[int, Field(ge=2)] = 32
    """A power of two that divides the model's hidden size."""
    high_percent: Annotated[int, Field(ge=0, le=100)] = 50
    rounding: Literal["nearest", "stochastic"] = "nearest"

    @field_validator("group")
    @classmethod
    def _power_of_two(cls, group: int) -> int:
        if group & (group - 1):
            raise PydanticCustomError("group", "a power of two, such as 32")
        return group

    def spec(self) -> CodecSpec:
        return TileSpec(self.bits, self.group, self.high_percent, self.rounding)


class FeedbackOptions(Strict):
    """k bits with error feedback, at the worker and at the owner of a shard."""

    bits: Bits = 4
    group: Group = 64
    rounding: Literal["nearest", "stochastic"] = "nearest"

    def spec(self) -> CodecSpec:
        return FeedbackSpec(self.bits, self.group, self.rounding)


class TopKOptions(Strict):
    """The largest values with error feedback."""

    per_mille: Annotated[int, Field(ge=1, le=1000)] = 10
    bits: Literal[1, 2, 3, 4, 5, 6, 7, 8, 32] = 32
    group: Group = 64

    def spec(self) -> CodecSpec:
        return TopKSpec(self.per_mille, self.bits, self.group)


class AutoOptions(Strict):
    """The least compression that takes each link off the critical path."""

    max_error: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Relative error of a codec, beyond which it is not considered."""


class AcsgdOptions(Strict):
    """Changes since a sample's last visit; for runs of several epochs."""

    forward_bits: Bits = 4
    backward_bits: Bits = 8
    """Of the gradients that come back, where `gradients` does not say."""
    scale: Literal["tensor", "channel", "group"] = "group"
    group: Group = 64
    rounding: Literal["nearest", "stochastic"] = "nearest"
    first_bits: Literal[32, 8] = 32
    """Of a first visit; 32: the values as they are."""
    buffer_bits: Literal[16, 8, 4] = 16
    """Of what both ends remember."""
    buffers: Literal["ram", "disk"] = "ram"
    budget_mb: Annotated[int, Field(ge=1)] = 4096
    """Of one end's buffers. Beyond it, samples used longest ago become first visits."""
    check_every: Annotated[int, Field(ge=1)] = 16
    """Visits of a sample between checksums of its buffer."""

    def spec(self) -> AcsgdSpec:
        return AcsgdSpec(
            self.forward_bits,
            self.scale,
            self.group,
            self.rounding,
            self.first_bits,
            self.buffer_bits,
            self.buffers,
            self.budget_mb,
            self.check_every,
        )


class Choice(Strict):
    """One codec: the key that is given."""

    identity: NoOptions | None = None
    fp16: NoOptions | None = None
    kbit: KBitOptions | None = None
    auto: AutoOptions | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set) != 1:
            given = ", ".join(sorted(self.model_fields_set)) or "none"
            raise PydanticCustomError(
                "codecs", f"exactly one codec of: {', '.join(type(self).model_fields)} (given: {given})"
            )
        return self

    @property
    def family(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def is_named(self) -> bool:
        """Whether there is a codec that does something, and it is not the planner's to choose."""
        return self.auto is None and self.identity is None

    def spec(self) -> CodecSpec:
        """What is asked for; identity under `auto`."""
        options = getattr(self, self.family)
        if isinstance(options, NoOptions | AutoOptions):
            return HalfSpec() if self.fp16 is not None else IdentitySpec()
        spec: CodecSpec = options.spec()
        return spec


class BoundaryChoice(Choice):
    """What may compress what crosses a boundary."""

    tile: TileOptions | None = None


class ActivationChoice(BoundaryChoice):
    """What may compress activations, which belong to samples."""

    acsgd: AcsgdOptions | None = None


class ReduceChoice(Choice):
    """What may compress gradients of weights, which are summed step after step."""

    feedback: FeedbackOptions | None = None
    topk: TopKOptions | None = None


def _named(value: Any) -> Any:
    return {value: {}} if isinstance(value, str) else value


class CompressionSpec(Strict):
    """Off unless asked for."""

    activations: Annotated[ActivationChoice, BeforeValidator(_named)] = ActivationChoice(identity=NoOptions())
    gradients: Annotated[BoundaryChoice, BeforeValidator(_named)] = BoundaryChoice(identity=NoOptions())
    reduce: Annotated[ReduceChoice, BeforeValidator(_named)] = ReduceChoice(identity=NoOptions())

    @property
    def backward(self) -> Choice:
        """Of gradients over boundaries: as said, or what goes with AC-SGD forward."""
        acsgd = self.activations.acsgd
        if acsgd is None or "gradients" in self.model_fields_set:
            return self.gradients
        return Choice(kbit=KBitOptions(bits=acsgd.backward_bits, group=acsgd.group, rounding="stochastic"))

    def choices(self) -> tuple[tuple[str, Choice], ...]:
        """(key, codec) of each kind of traffic."""
        return (("activations", self.activations), ("gradients", self.backward), ("reduce", self.reduce))


def misfits(spec: CompressionSpec, boundary: tuple[int, ...]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """(path, found, required) of every codec that cannot take tensors of the shape of a boundary."""
    for key, choice in spec.choices():
        if key == "reduce" or choice.auto is not None:
            continue
        try:
            choice.spec().wire_bytes(boundary, 4)
        except CodecError as e:
            found, _, required = str(e).partition("; required ")
            yield ("compression", key, choice.family), found.removeprefix("found "), required
    yield from _acsgd_misfits(spec, boundary)


def _acsgd_misfits(
    spec: CompressionSpec, boundary: tuple[int, ...]
) -> Iterator[tuple[tuple[str, ...], str, str]]:
    acsgd = spec.activations.acsgd
    if acsgd is None:
        return
    path = ("compression", "activations", "acsgd")
    if "backward_bits" in acsgd.model_fields_set and "gradients" in spec.model_fields_set:
        yield (*path, "backward_bits"), "it beside compression.gradients", "one of the two"
    each = numel(boundary[1:]) * acsgd.buffer_bits // 8  # bytes of a sample, its scales left out
    if acsgd.budget_mb * 1_000_000 < boundary[0] * each:
        yield (
            (*path, "budget_mb"),
            f"{acsgd.budget_mb}",
            f"at least {-(-boundary[0] * each // 1_000_000)}: a micro-batch of {boundary[0]} samples at once",
        )
