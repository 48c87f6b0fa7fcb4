"""Where the layers of a new plan come from: kept, fetched from those who hold them, or from a checkpoint.

A device holds a layer when it has its weights and its optimizer's state as they are after so many steps.
Several donors each send a part of a layer where that is sooner than one sending it whole. Knows plans,
holdings and links; decides no plan and moves nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from scheduler.moving import transfers_s
from scheduler.network import Network
from scheduler.plan import Plan
from scheduler.profile import ModelProfile
from scheduler.topology import Topology

MOST_DONORS = 4
"""Of one layer to one device: more parts are more round trips for less each."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What a device has of the model: `layers`, as they are after `step` steps."""

    step: int
    layers: frozenset[int]


@dataclass(frozen=True, slots=True)
class Source:
    """Where one device gets one layer from. `donors`: itself alone, if it keeps it; each sends an equal part
    in this order, if there are several; nobody: the layer comes from the checkpoint."""

    layer: int
    donors: tuple[str, ...]


Sources = Mapping[str, tuple[Source, ...]]
"""Device -> its layers in order."""


def holdings_of(plan: Plan, step: int, here: Sequence[str]) -> dict[str, Holding]:
    """What the ranks of `plan` that are `here` hold after `step` steps of it."""
    return {
        plan.device(r): Holding(step, frozenset(range(*plan.partition[plan.stage_of(r)])))
        for r in range(plan.n_ranks)
        if plan.device(r) in here
    }


def with_followed(
    held: Mapping[str, Holding], followed: Mapping[str, Collection[int]], step: int
) -> dict[str, Holding]:
    """`held` after `step` steps, and beside it the layers that devices followed until there."""
    found = dict(held)
    for name, layers in followed.items():
        own = found[name].layers if name in found else frozenset()
        found[name] = Holding(step, own | set(layers))
    return found


def layer_sources(
    plan: Plan, step: int, holdings: Mapping[str, Holding], model: ModelProfile, topology: Topology
) -> Sources:
    """For every device of `plan`, each layer's donors among those that hold it after `step` steps.

    Devices are served in the order of their ranks, each by the donors whose links, with what they carry
    already, bring the layer soonest. A layer that no device of the topology holds has no donor.
    """
    index = {d.name: i for i, d in enumerate(topology.devices)}
    holders: dict[int, list[str]] = defaultdict(list)
    for name, holding in sorted(holdings.items()):
        if holding.step == step and name in index:
            for layer in holding.layers:
                holders[layer].append(name)
    busy_bytes: dict[tuple[int, int], float] = defaultdict(float)
    found: dict[str, tuple[Source, ...]] = {}
    for rank in range(plan.n_ranks):
        name = plan.device(rank)
        sources = []
        for layer in range(*plan.partition[plan.stage_of(rank)]):
            donors: tuple[str, ...] = (name,)
            if name not in holders[layer]:
                donors = _soonest(
                    holders[layer], name, layer_bytes(model, layer), index, busy_bytes, topology
                )
            sources.append(Source(layer, donors))
        found[name] = tuple(sources)
    return found


def _soonest(
    holders: Sequence[str],
    here: str,
    n_bytes: int,
    index: Mapping[str, int],
    busy_bytes: dict[tuple[int, int], float],
    topology: Topology,
) -> tuple[str, ...]:
    """The donors, fastest first, whose equal parts arrive soonest together."""
    if not holders:
        return ()

    def arrives_s(donor: str, part: float) -> float:
        link = index[donor], index[here]
        return topology.transfer_s(*link, busy_bytes[link] + part)

    by_speed = sorted(holders, key=lambda h: (arrives_s(h, n_bytes), h))
    choices = [by_speed[:n] for n in range(1, min(MOST_DONORS, len(by_speed)) + 1)]
    donors = min(choices, key=lambda c: max(arrives_s(d, n_bytes / len(c)) for d in c))
    for donor in donors:
        busy_bytes[index[donor], index[here]] += n_bytes / len(donors)
    return tuple(donors)


def layer_bytes(model: ModelProfile, layer: int) -> int:
    """Weights and optimizer state of a layer: what travels when it moves."""
    return model.layers[layer].parameter_bytes + model.layers[layer].state_bytes


def orphans(sources: Sources) -> tuple[int, ...]:
    """Layers that nobody holds."""
    return tuple(sorted({s.layer for layers in sources.values() for s in layers if not s.donors}))


def travelling(sources: Sources, model: ModelProfile) -> list[tuple[str, str, int]]:
    """(from, to, bytes) of every transfer between devices."""
    return [
        (donor, name, -(-layer_bytes(model, s.layer) // len(s.donors)))
        for name, layers in sources.items()
        for s in layers
        for donor in s.donors
        if donor != name
    ]


def loading_s(sources: Sources, model: ModelProfile, network: Network) -> float:
    """Seconds until the last device has its layers, all transfers begun together. From peers alone: what a
    checkpoint gives takes the coordinator's links, which are not known here."""
    return transfers_s(network, travelling(sources, model))
