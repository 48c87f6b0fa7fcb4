"""Which codec each kind of traffic of a plan uses. Knows no codec: names are `compression.spec`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

IDENTITY = "identity"


@dataclass(frozen=True, slots=True)
class PlanCodecs:
    """Codecs by name; an empty tuple is identity everywhere."""

    activation: tuple[str, ...] = ()
    """[b]: forward, from stage b to b + 1, in every replica; `gradient[b]`: backward, from b + 1 to b."""
    gradient: tuple[str, ...] = ()
    reduce: tuple[str, ...] = ()
    """[stage]: of weights' gradients, between its replicas. A tied weight's, between first and last stage,
    is the first stage's."""

    def of_boundary(self, kind: str, boundary: int) -> str:
        """`kind` is activation or gradient."""
        names = self.activation if kind == "activation" else self.gradient
        return names[boundary] if names else IDENTITY

    def of_stage(self, stage: int) -> str:
        return self.reduce[stage] if self.reduce else IDENTITY

    @property
    def has_residuals(self) -> bool:
        """Whether every rank has something of its own to put into a checkpoint."""
        return any(name.partition(":")[0] in ("feedback", "topk") for name in self.reduce)

    @property
    def named(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(kind, names) of the three."""
        return (("activation", self.activation), ("gradient", self.gradient), ("reduce", self.reduce))


NO_CODECS = PlanCodecs()
"""Identity everywhere."""


def codecs_from_json(raw: Mapping[str, Sequence[str]]) -> PlanCodecs:
    """Inverse of `dataclasses.asdict`, from JSON's lists. Raises TypeError for other keys or values."""
    return PlanCodecs(**{kind: tuple(names) for kind, names in dict(raw).items()})
