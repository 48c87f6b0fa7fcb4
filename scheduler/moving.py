"""What it costs to go from one plan to another: the layers that have to travel, and how long that takes.

Knows plans, layers and links; decides nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.clock import Clock
from scheduler.flows import TopologyNetwork
from scheduler.network import Network
from scheduler.plan import Plan
from scheduler.profile import ModelProfile
from scheduler.topology import Topology
from scheduler.units import count, duration, size


@dataclass(frozen=True, slots=True)
class MovingCost:
    """`n_bytes` of parameters and optimizer state that devices fetch from those that hold them, over links
    that work side by side; `seconds` until the last has its layers, and the restart."""

    n_bytes: int
    seconds: float
    n_layers: int
    """Layers that travel, counted once for each device that lacks them."""
    orphans: tuple[int, ...]
    """Layers that no device in reach holds: they come from a checkpoint, and are in neither figure above."""

    def sentence(self) -> str:
        if not self.n_layers and not self.orphans:
            return f"no layer moves, the restart takes {duration(self.seconds)}"
        verb = "moves" if self.n_layers == 1 else "move"
        amount = f"{count(self.n_layers, 'layer')} ({size(self.n_bytes)})"
        lost = f"; {count(len(self.orphans), 'layer')} must come from a checkpoint" if self.orphans else ""
        return f"{amount} {verb} in {duration(self.seconds)}{lost}"


def moving_cost(
    running: Plan, plan: Plan, model: ModelProfile, topology: Topology, restart_s: float = 0.0
) -> MovingCost:
    """From `running` to `plan`: every device fetches each layer that it lacks, with the optimizer's state,
    from the holder in reach whose link carries it soonest; all at once, over the engine's network.
    `restart_s`: what stopping and starting costs besides.
    """
    holders = _holders(running)
    index = {d.name: i for i, d in enumerate(topology.devices)}
    over_link: dict[tuple[int, int], int] = defaultdict(int)
    n_layers, orphans = 0, set()
    for name, layers in sorted(_held(plan).items()):
        here = index[name]
        for layer in sorted(layers):
            holding = holders[layer]
            if name in holding:
                continue
            donors = [index[h] for h in sorted(holding) if h in index]
            if not donors:
                orphans.add(layer)
                continue
            n_bytes = model.layers[layer].parameter_bytes + model.layers[layer].state_bytes
            donor = min(
                donors,
                key=lambda d: topology.transfer_s(d, here, over_link[d, here] + n_bytes),
            )
            n_layers += 1
            over_link[donor, here] += n_bytes
    names = [d.name for d in topology.devices]
    sends = [(names[a], names[b], n) for (a, b), n in over_link.items()]
    arrived_s = transfers_s(TopologyNetwork(topology), sends)
    return MovingCost(sum(over_link.values()), arrived_s + restart_s, n_layers, tuple(sorted(orphans)))


def transfers_s(network: Network, sends: Sequence[tuple[str, str, int]]) -> float:
    """Seconds until all of `sends` (from, to, bytes), begun together, have arrived."""
    clock = Clock()
    links = network.open(clock.at)
    arrivals_s: list[float] = []
    for src, dst, n_bytes in sends:
        links.send(src, dst, n_bytes, 0.0, lambda: arrivals_s.append(clock.now_s))
    clock.run()
    return max(arrivals_s, default=0.0)


LEAST_DEADLINE_S = 60.0
"""Of what is fetched in no time: a donor finishes what it is at, connections open."""
TIMES_AS_LONG = 5.0
"""As expected, before it counts as stuck: steps and other transfers share the links, which may be slower."""


def transfer_deadline_s(expected_s: float) -> float:
    """How long to wait for layers that are expected to take so long. A backstop: who loses its donor is told
    so by the coordinator, long before.

    max(LEAST_DEADLINE_S, TIMES_AS_LONG x expected)
    """
    return max(LEAST_DEADLINE_S, TIMES_AS_LONG * expected_s)


def _held(plan: Plan) -> dict[str, set[int]]:
    """Device -> its layers."""
    return {plan.device(r): set(range(*plan.partition[plan.stage_of(r)])) for r in range(plan.n_ranks)}


def _holders(plan: Plan) -> dict[int, set[str]]:
    """Layer -> the devices that hold it."""
    holders: dict[int, set[str]] = defaultdict(set)
    for name, layers in _held(plan).items():
        for layer in layers:
            holders[layer].add(name)
    return holders
