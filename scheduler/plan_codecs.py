"""Which codec each kind of traffic of a plan uses, link by link. Names are `compression.spec`'s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

IDENTITY = "identity"

Rows = tuple[tuple[str, ...], ...]
"""[replica][boundary]: boundary b lies between stages b and b + 1."""


@dataclass(frozen=True, slots=True)
class PlanCodecs:
    """Codecs by name; an empty tuple is identity everywhere."""

    activation: Rows = ()
    """Forward over a boundary; `gradient`: back over it."""
    gradient: Rows = ()
    reduce: tuple[str, ...] = ()
    """[stage]: of weights' gradients, between its replicas, who all read the same sum. A tied weight's,
    between first and last stage, is the first stage's."""

    def of_boundary(self, kind: str, replica: int, boundary: int) -> str:
        """`kind` is activation or gradient."""
        rows = self.activation if kind == "activation" else self.gradient
        return rows[replica][boundary] if rows else IDENTITY

    def of_stage(self, stage: int) -> str:
        return self.reduce[stage] if self.reduce else IDENTITY

    def of_replicas(self, replicas: Sequence[int]) -> PlanCodecs:
        """Those of a plan whose replicas are these of this one."""
        across, back = (
            tuple(rows[r] for r in replicas) if rows else () for rows in (self.activation, self.gradient)
        )
        return PlanCodecs(across, back, self.reduce)

    @property
    def has_residuals(self) -> bool:
        """Whether every rank has something of its own to put into a checkpoint."""
        return any(name.partition(":")[0] in ("feedback", "momentum", "topk") for name in self.reduce)

    @property
    def named(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(kind, names) of the three, replica after replica."""
        return (
            ("activation", tuple(chain(*self.activation))),
            ("gradient", tuple(chain(*self.gradient))),
            ("reduce", self.reduce),
        )

    @property
    def told(self) -> str:
        """`activation kbit:bits=4 on 12, identity on 44; reduce kbit`, the commonest first; '' for none."""
        found = []
        for kind, names in self.named:
            of = Counter(names).most_common()
            if of:
                on = ", ".join(f"{name} on {n}" for name, n in of) if len(of) > 1 else of[0][0]
                found.append(f"{kind} {on}")
        return "; ".join(found)

    def misfits(self, n_stages: int, n_replicas: int) -> Iterator[tuple[str, str, str]]:
        """(kind, found, required) where these are not the codecs of so many stages and replicas."""
        for kind, rows in (("activation", self.activation), ("gradient", self.gradient)):
            sizes = [len(row) for row in rows]
            if rows and sizes != [n_stages - 1] * n_replicas:
                required = f"a codec for each of {n_stages - 1} boundaries in each of {n_replicas} replicas"
                yield kind, f"rows of {sizes}", f"{required}, or none"
        if self.reduce and len(self.reduce) != n_stages:
            yield "reduce", f"{len(self.reduce)}", f"{n_stages}, one a stage, or none"


NO_CODECS = PlanCodecs()
"""Identity everywhere."""


def plan_codecs(activation: Rows, gradient: Rows, reduce: tuple[str, ...]) -> PlanCodecs:
    """The same codecs, and nothing said of traffic that has none at all."""

    def kept(rows: Rows) -> Rows:
        return rows if any(name != IDENTITY for name in chain(*rows)) else ()

    used = reduce if any(name != IDENTITY for name in reduce) else ()
    return PlanCodecs(kept(activation), kept(gradient), used)


def same_everywhere(
    n_stages: int, n_replicas: int, activation: str = "", gradient: str = "", reduce: str = ""
) -> PlanCodecs:
    """One codec for all traffic of a kind; '' is identity."""
    across, back = (((name or IDENTITY,) * (n_stages - 1),) * n_replicas for name in (activation, gradient))
    return plan_codecs(across, back, (reduce or IDENTITY,) * n_stages)


def codecs_from_json(raw: Mapping[str, Sequence[Any]]) -> PlanCodecs:
    """Inverse of `dataclasses.asdict`, from JSON's lists. Raises TypeError for other keys or values."""
    known = {kind: tuple(_row(x) for x in names) for kind, names in dict(raw).items()}
    return PlanCodecs(**known)


def _row(x: Any) -> Any:
    return x if isinstance(x, str) else tuple(x)
