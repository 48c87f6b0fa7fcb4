"""Which codec each directed link would use while placements are open, and what a placement makes of it.

A table has a number for each link of each kind of traffic. The replicas of a stage read the same sums, so
their exchange has one codec: of the codecs of all links among them the one that stands first in the
table. Knows no job: `codec_choice.py` fills the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.plan import Plan
from scheduler.plan_codecs import IDENTITY, PlanCodecs, plan_codecs

Ints = NDArray[np.int64]
Codes = NDArray[np.int8]
"""[N, N]: of each directed link a position in a table's names."""
MOST_CODECS = 127


@dataclass(frozen=True, slots=True, eq=False)
class CodecTable:
    """One kind of traffic. `names`: the order in which they decide for a group; `of` None: all the first."""

    names: tuple[str, ...] = (IDENTITY,)
    of: Codes | None = None
    ladders: tuple[tuple[str, ...], ...] = ()
    """Of each of `names`, what it may be exchanged for, least compression first; none: the job's own."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= MOST_CODECS:
            raise ValueError(f"found {len(self.names)} codecs of one kind; required 1 to {MOST_CODECS}")

    def codes(self, n: int) -> Codes:
        """Of `n` devices."""
        return np.zeros((n, n), dtype=np.int8) if self.of is None else self.of


@dataclass(frozen=True, slots=True, eq=False)
class LinkCodecs:
    """The tables of the three kinds of traffic, all in the same devices' order."""

    activation: CodecTable = field(default_factory=CodecTable)
    gradient: CodecTable = field(default_factory=CodecTable)
    reduce: CodecTable = field(default_factory=CodecTable)


class Positions(NamedTuple):
    """Which of a table's names each place of a placement has."""

    activation: Codes
    """[R, S - 1]"""
    gradient: Codes
    """[R, S - 1]"""
    reduce: Codes
    """[S]"""


def positions(codecs: LinkCodecs, cells: Ints, n_devices: int) -> Positions:
    """What the placement `cells` [R, S] of `n_devices` makes of the tables."""
    group = codecs.reduce.codes(n_devices)
    return Positions(
        codecs.activation.codes(n_devices)[cells[:, :-1], cells[:, 1:]],
        codecs.gradient.codes(n_devices)[cells[:, 1:], cells[:, :-1]],
        np.array([_first(group, cells, s) for s in range(cells.shape[1])], dtype=np.int8),
    )


def codecs_of_cells(codecs: LinkCodecs, cells: Ints, n_devices: int) -> PlanCodecs:
    """The codecs of a plan with the placement `cells`."""
    at = positions(codecs, cells, n_devices)
    across, back = (
        tuple(tuple(table.names[k] for k in row) for row in rows.tolist())
        for table, rows in ((codecs.activation, at.activation), (codecs.gradient, at.gradient))
    )
    return plan_codecs(across, back, tuple(codecs.reduce.names[k] for k in at.reduce.tolist()))


def _members(cells: Ints, stage: int) -> Ints:
    """Who exchanges gradients of `stage`: of one replica its pipeline's ends, for a weight they share."""
    members: Ints = cells[:, stage] if len(cells) > 1 else cells[0, [0, -1]]
    return members


def _first(codes: Codes, cells: Ints, stage: int) -> int:
    """The code that decides for `stage` (`step_kernels.group_codec` is its twin)."""
    members = _members(cells, stage)
    among = codes[np.ix_(members, members)][members[:, None] != members[None, :]]
    return int(among.min(initial=MOST_CODECS)) if len(among) else 0


def cells_of(plan: Plan, names: Sequence[str]) -> Ints:
    """[R, S]: the placement as positions in `names`."""
    at = {name: i for i, name in enumerate(names)}
    return np.array([[at[name] for name in row] for row in plan.placement], dtype=np.int64)


def put_codecs(codecs: PlanCodecs, cells: Ints, tables: LinkCodecs) -> None:
    """Write into the tables what gives the placement `cells` just these codecs, all of which they name."""
    n_replicas, n_stages = cells.shape
    for kind, table in (("activation", tables.activation), ("gradient", tables.gradient)):
        assert table.of is not None
        at = {name: k for k, name in enumerate(table.names)}
        for r in range(n_replicas):
            for b in range(n_stages - 1):
                near, far = cells[r, b], cells[r, b + 1]
                ends = (near, far) if kind == "activation" else (far, near)
                table.of[ends] = at[codecs.of_boundary(kind, r, b)]
    assert tables.reduce.of is not None
    for s in range(n_stages if n_replicas > 1 else 1):
        members = _members(cells, s)
        tables.reduce.of[np.ix_(members, members)] = tables.reduce.names.index(codecs.of_stage(s))


def open_tables(n_devices: int, names: Sequence[Sequence[str]]) -> LinkCodecs:
    """Tables to be written to, with these names for the three kinds of traffic and identity."""
    return LinkCodecs(
        *(
            CodecTable(tuple(dict.fromkeys((IDENTITY, *of))), np.zeros((n_devices, n_devices), dtype=np.int8))
            for of in names
        )
    )


def codecs_of_plan(plan: Plan, names: Sequence[str]) -> LinkCodecs:
    """The tables that give `plan` its codecs; `names`: the devices, in order."""
    tables = open_tables(len(names), [used for _, used in plan.codecs.named])
    put_codecs(plan.codecs, cells_of(plan, names), tables)
    return tables
