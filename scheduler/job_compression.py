"""The job's `compression` section: a codec, with its options, for each kind of traffic.

    compression:
      activations: {kbit: {bits: 4}}      # forward, over a stage boundary
      gradients: {kbit: {bits: 8, rounding: stochastic}}   # backward, over it
      reduce: identity                    # of weights, between replicas and between tied layers
      links:                              # instead of these, on some links: the first that fits decides
        - between: regions
          activations: {tile: {bits: 4}}
          reduce: {feedback: {bits: 4}}
        - {below_mbps: 1000, activations: fp16}

A codec without options may stand as its name alone. Knows what may be asked for, not what it costs:
that is `compression.spec`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, get_args

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
    MomentumSpec,
    TileSpec,
    TopKSpec,
)
from scheduler.marked_yaml import dotted
from scheduler.strict import Strict

Kind = Literal["activations", "gradients", "reduce"]
"""Of traffic, as jobs call it."""
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


class MomentumOptions(Strict):
    """Adam's momentum in k bits with error feedback, behind a warm-up in which gradients go as they are.

    After `warmup_steps` steps the variance is frozen. Each replica then adds its own gradient to the momentum
    that all have in common, and the sum of these is what is exchanged. `clip_norm` bounds the momentum from
    then on, as it bounded it before through the gradients.
    """

    bits: Bits = 4
    group: Group = 64
    rounding: Literal["nearest", "stochastic"] = "nearest"
    warmup_steps: Annotated[int, Field(ge=1)] = 100
    """Best a sixth of the run, and no fewer than the learning rate's warm-up."""

    def spec(self) -> CodecSpec:
        return MomentumSpec(self.bits, self.group, self.rounding, self.warmup_steps)


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


class ActivationAutoOptions(AutoOptions):
    """AC-SGD is considered too, where samples come again."""

    change: Annotated[float, Field(gt=0, le=2)] | None = None
    """By how much of itself a sample's activation changes from one visit to the next, root mean square over
    root mean square: AC-SGD's error is reckoned with it. Unless it is said, what the run's number of epochs
    lets expect (`scheduler.visits.CHANGES`)."""


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
    auto: ActivationAutoOptions | None = None


class ReduceChoice(Choice):
    """What may compress gradients of weights, which are summed step after step."""

    feedback: FeedbackOptions | None = None
    momentum: MomentumOptions | None = None
    topk: TopKOptions | None = None


def _named(value: Any) -> Any:
    return {value: {}} if isinstance(value, str) else value


class LinkSpec(Strict):
    """Codecs for some links, of the kinds of traffic that it names. Replicas of a stage, who share their
    sums, have those of the first that fits any link among them."""

    between: Literal["regions", "hosts", "devices"] | None = None
    """Ends in two regions; on two hosts of one region; on one host. A host of no region is one of its own."""
    below_mbps: Annotated[float, Field(gt=0)] | None = None
    """Links that carry less than so many Mbit/s."""
    activations: Annotated[ActivationChoice, BeforeValidator(_named)] | None = None
    gradients: Annotated[BoundaryChoice, BeforeValidator(_named)] | None = None
    reduce: Annotated[ReduceChoice, BeforeValidator(_named)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.between is None and self.below_mbps is None:
            raise PydanticCustomError("links", "which links: between, below_mbps, or both")
        if self.activations is None and self.gradients is None and self.reduce is None:
            raise PydanticCustomError("links", "a codec for activations, gradients or reduce")
        return self


class CompressionSpec(Strict):
    """Off unless asked for."""

    activations: Annotated[ActivationChoice, BeforeValidator(_named)] = ActivationChoice(identity=NoOptions())
    gradients: Annotated[BoundaryChoice, BeforeValidator(_named)] = BoundaryChoice(identity=NoOptions())
    reduce: Annotated[ReduceChoice, BeforeValidator(_named)] = ReduceChoice(identity=NoOptions())
    links: tuple[LinkSpec, ...] = ()
    """Exceptions, in order: of a link the first that fits and names the kind of traffic decides."""

    def rules(self, kind: Kind) -> tuple[tuple[LinkSpec | None, Choice], ...]:
        """(links, codec) of a kind of traffic, in the order in which they decide; the last is for all."""
        found: list[tuple[LinkSpec | None, Choice]] = []
        places: tuple[LinkSpec | CompressionSpec, ...] = (*self.links, self)
        for where in places:
            choice: Choice | None = _backward(where) if kind == "gradients" else getattr(where, kind)
            if choice is not None:
                found.append((where if isinstance(where, LinkSpec) else None, choice))
        return tuple(found)

    def choices(self) -> Iterator[tuple[tuple[str | int, ...], Kind, Choice]]:
        """(path, kind, codec) of all that is asked for."""
        for path, where in self._places():
            for kind in get_args(Kind):
                choice = _backward(where) if kind == "gradients" else getattr(where, kind)
                if choice is not None:
                    yield (*path, kind), kind, choice

    def acsgds(self) -> Iterator[tuple[tuple[str | int, ...], LinkSpec | CompressionSpec, AcsgdOptions]]:
        """(path, what it stands in, options) of every AC-SGD."""
        for path, where in self._places():
            if where.activations is not None and where.activations.acsgd is not None:
                yield (*path, "activations", "acsgd"), where, where.activations.acsgd

    def _places(self) -> Iterator[tuple[tuple[str | int, ...], LinkSpec | CompressionSpec]]:
        yield ("compression",), self
        for k, link in enumerate(self.links):
            yield ("compression", "links", k), link


def _backward(where: LinkSpec | CompressionSpec) -> Choice | None:
    """Of gradients over boundaries: as said, or what goes with AC-SGD forward."""
    acsgd = where.activations.acsgd if where.activations is not None else None
    if acsgd is None or "gradients" in where.model_fields_set:
        return where.gradients
    return Choice(kbit=KBitOptions(bits=acsgd.backward_bits, group=acsgd.group, rounding="stochastic"))


def misfits(
    spec: CompressionSpec, boundary: tuple[int, ...]
) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    """(path, found, required) of every codec that cannot take tensors of the shape of a boundary."""
    for path, kind, choice in spec.choices():
        if kind == "reduce" or choice.auto is not None:
            continue
        try:
            choice.spec().wire_bytes(boundary, 4)
        except CodecError as e:
            found, _, required = str(e).partition("; required ")
            yield (*path, choice.family), found.removeprefix("found "), required
    for path, where, acsgd in spec.acsgds():
        if "backward_bits" in acsgd.model_fields_set and "gradients" in where.model_fields_set:
            yield (*path, "backward_bits"), f"it beside {dotted((*path[:-2], 'gradients'))}", "one of the two"
        each = numel(boundary[1:]) * acsgd.buffer_bits // 8  # bytes of a sample, its scales left out
        if acsgd.budget_mb * 1_000_000 < boundary[0] * each:
            at_least = -(-boundary[0] * each // 1_000_000)
            yield (
                (*path, "budget_mb"),
                f"{acsgd.budget_mb}",
                f"at least {at_least}: a micro-batch of {boundary[0]} samples at once",
            )
