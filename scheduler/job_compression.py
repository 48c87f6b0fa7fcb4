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
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from compression.grid import CodecError
from compression.spec import CodecSpec, HalfSpec, IdentitySpec, KBitSpec
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


class AutoOptions(Strict):
    """The least compression that takes each link off the critical path."""

    max_error: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Relative error of a codec, beyond which it is not considered."""


class Choice(Strict):
    """One codec: the key that is given."""

    identity: NoOptions | None = None
    fp16: NoOptions | None = None
    kbit: KBitOptions | None = None
    auto: AutoOptions | None = None

    @model_validator(mode="after")
    def _one(self) -> Choice:
        if len(self.model_fields_set) != 1:
            given = ", ".join(sorted(self.model_fields_set)) or "none"
            raise PydanticCustomError(
                "codecs", f"exactly one codec of: {', '.join(type(self).model_fields)} (given: {given})"
            )
        return self

    @property
    def family(self) -> str:
        return next(iter(self.model_fields_set))

    def spec(self) -> CodecSpec:
        """What is asked for. `auto` has none: it is the planner's to choose."""
        if self.kbit is not None:
            return self.kbit.spec()
        return HalfSpec() if self.fp16 is not None else IdentitySpec()


def _named(value: Any) -> Any:
    return {value: {}} if isinstance(value, str) else value


Codec = Annotated[Choice, BeforeValidator(_named)]
_IDENTITY = Choice(identity=NoOptions())


class CompressionSpec(Strict):
    """Off unless asked for."""

    activations: Codec = _IDENTITY
    gradients: Codec = _IDENTITY
    reduce: Codec = _IDENTITY

    def choices(self) -> Iterator[tuple[str, Choice]]:
        """(key, codec) of each kind of traffic."""
        yield from (("activations", self.activations), ("gradients", self.gradients), ("reduce", self.reduce))


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
