"""What a job can say of one part of a block, and what every kind of part can tell of itself.

A block is a row of parts, each behind a norm and beside the residual stream: x + part(norm(x)). Parts that
look at other positions are sequence mixers, the others channel mixers. Knows no tensors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from scheduler.layer_cost import Cost, Sizes
from scheduler.strict import Strict

if TYPE_CHECKING:  # job.py imports this package
    from scheduler.job import ModelSpec


class MixerSpec(Strict):
    """The options of one kind of part. Widths that are left out are the model's."""

    name: ClassVar[str]
    is_sequence: ClassVar[bool]

    @property
    def is_causal(self) -> bool:
        """Whether no position sees a later one, as training on the next token wants it."""
        return True

    @property
    def undivided(self) -> str:
        """Why replicas cannot share sequences of a model with this part, each at its own positions: what
        stands in the way; '': nothing."""
        return "carries a state from each position to the next" if self.is_sequence else ""

    @property
    def keeps_documents_apart(self) -> bool:
        """Whether several documents in one sample can be as if each were alone."""
        return not self.is_sequence

    @abstractmethod
    def cost(self, model: ModelSpec, sizes: Sizes) -> Cost:
        """Closed forms for `model`, resolved. Flops are exact, bytes within what `tests` say."""

    def misfits(self, model: ModelSpec) -> Iterator[tuple[str, str]]:
        """What cannot be in `model`, as (found, required)."""
        del model
        yield from ()

    def misfits_of_rows(self, rows: int) -> Iterator[tuple[str, str]]:
        """What cannot be trained in micro-batches of so many positions, as (found, required)."""
        del rows
        yield from ()

    @property
    def text(self) -> str:
        """The part as a job names it; `parse_part` inverts it."""
        given = (f"{key}={_shown(getattr(self, key))}" for key in sorted(self.model_fields_set))
        return " ".join((self.name, *given))


class Limited(MixerSpec):
    """A part that is made for so many positions."""

    length: Annotated[int, Field(ge=1)] | None = None
    """Positions that it is made for; default: the model's max_positions."""

    def length_in(self, model: ModelSpec) -> int:
        length = self.length or model.max_positions
        assert length is not None
        return length

    def misfits(self, model: ModelSpec) -> Iterator[tuple[str, str]]:
        yield from super().misfits(model)
        if self.length is None and model.max_positions is None:
            yield f"{self.name} in a model without max_positions", f"max_positions, or {self.name} length=N"


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
