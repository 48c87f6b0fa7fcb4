"""Who holds what, where, and what it sends: what maps and grids are drawn from. Draws nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.explain_placement import Hop
from scheduler.plan import Plan
from scheduler.timeline import Timeline
from scheduler.topology import Topology
from sim.topology_file import Positions

TINTS = (
    "#88CCEE", "#DDCC77", "#EE99AA", "#44BB99", "#CC99BB",
    "#BBCC33", "#99DDFF", "#EE8866", "#FFAABB", "#DDDDDD",
)  # fmt: skip
"""For regions: from Paul Tol's light set, to be read dark on."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Who holds what, where, and what it sends. Devices by name."""

    stages: tuple[tuple[str, ...], ...]
    """[stage][replica]"""
    regions: Mapping[str, str]
    """device -> region"""
    positions: Positions
    hop_bytes: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """(source, destination) -> bytes a step; empty: every hop counts the same."""
    waits: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """The hop that each boundary of stages waits for, in s."""
    slowest: str = ""
    """The device whose gradient exchange the step waits for."""

    def tints(self) -> dict[str, str]:
        """A tint for each region, in the order of devices."""
        regions = dict.fromkeys(self.regions[d] for stage in self.stages for d in stage)
        return {r: TINTS[k % len(TINTS)] for k, r in enumerate(regions)}


def placed_of(
    topology: Topology,
    stages: Sequence[Sequence[int]],
    hops: Sequence[Hop],
    slowest: int | None,
    positions: Positions,
) -> Placed:
    """Of a search's placement: devices by index in `topology`."""
    names = [d.name for d in topology.devices]
    return Placed(
        tuple(tuple(names[d] for d in stage) for stage in stages),
        {d.name: d.region or d.name for d in topology.devices},
        positions,
        waits={(names[h.src], names[h.dst]): h.seconds for h in hops},
        slowest="" if slowest is None else names[slowest],
    )


def placed_by(plan: Plan, timeline: Timeline, regions: Mapping[str, str], positions: Positions) -> Placed:
    """Of a plan, with the bytes that a step's timeline sent. `regions`: of each device; '' for unknown."""
    traffic: dict[tuple[str, str], float] = defaultdict(float)
    for s in timeline.spans:
        if s.kind == "send" and s.peer >= 0:
            traffic[plan.device(s.rank), plan.device(s.peer)] += s.n_bytes
    stages = tuple(tuple(plan.device(r) for r in plan.group(s)) for s in range(plan.n_stages))
    return Placed(stages, {d: regions.get(d) or d for stage in stages for d in stage}, positions, traffic)
