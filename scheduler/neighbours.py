"""Who keeps another stage's layers besides its own, so that a stage lost with all replicas is not lost.

One replica of each stage sends its layers, weights and optimizer's state, every so many steps to a worker of
another stage: on another machine where there is one, to whom the fewest are sent already, over the quickest
link. What it costs is bytes on that link and memory at both ends, beside the steps; the price is in words.

Pure: knows plans and links; copies nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from scheduler.bottleneck import headroom
from scheduler.flows import TopologyNetwork
from scheduler.layer_sources import layer_bytes
from scheduler.moving import transfers_s
from scheduler.plan import Plan
from scheduler.profile import ModelProfile
from scheduler.topology import Topology
from scheduler.units import count, duration, size

SETS = 2
"""Of copies: the last that all have, and the next, which is under way."""


@dataclass(frozen=True, slots=True)
class Keeper:
    """`keeper` keeps what `holder` sends it: the layers of `holder`'s stage."""

    holder: str
    keeper: str
    n_bytes: int
    """Of one copy."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Who keeps what, one keeper for each stage, in their order."""

    keepers: tuple[Keeper, ...] = ()
    lacks: str = ""
    """'' or on which device the copies do not fit, and what to do."""


def arrange(plan: Plan, model: ModelProfile, topology: Topology) -> Arrangement:
    """Keepers for `plan`; none for a plan of one stage, whose every holder has all layers. Who has room for
    it goes before who has not."""
    if plan.n_stages < 2:
        return Arrangement()
    room = _room(plan, model, topology)
    kept_bytes: Counter[str] = Counter()
    hosts = {d.name: d.host or d.name for d in topology.devices}
    kept: Counter[str] = Counter()
    found = []
    for stage in range(plan.n_stages):
        start, stop = plan.partition[stage]
        n_bytes = sum(layer_bytes(model, i) for i in range(start, stop))
        holders = [plan.device(r) for r in plan.group(stage)]
        others = [plan.device(r) for r in range(plan.n_ranks) if plan.stage_of(r) != stage]

        def cost(
            pair: tuple[str, str], n_bytes: int = n_bytes, stage: int = stage
        ) -> tuple[bool, bool, int, float, int, tuple[str, str]]:
            a, b = pair
            full = kept_bytes[b] + SETS * n_bytes > room.get(b, inf)
            seconds = topology.transfer_s(topology.index(a), topology.index(b), n_bytes)
            rank = plan.rank_of_device(b)
            assert rank is not None
            behind = (plan.stage_of(rank) - stage) % plan.n_stages
            return full, hosts[a] == hosts[b], kept[b], seconds, behind, pair

        holder, keeper = min(((a, b) for a in holders for b in others), key=cost)
        kept[keeper] += 1
        kept_bytes[keeper] += SETS * n_bytes
        found.append(Keeper(holder, keeper, n_bytes))
    return Arrangement(tuple(found), _what_lacks(room, kept_bytes, plan, model, topology))


def _room(plan: Plan, model: ModelProfile, topology: Topology) -> dict[str, int]:
    """By device, the bytes that are left for others' copies besides its stage and its copies of its own.

    Copies are in the host's memory, so this is of devices whose memory that is, and is known.
    """
    own = [sum(layer_bytes(model, i) for i in range(*span)) for span in plan.partition]
    of_host = {d.name for d in topology.devices if d.host_cores > 0}
    return {
        h.device: h.spare_bytes - SETS * own[h.stage]
        for h in headroom(plan, model, topology)
        if h.device in of_host and h.memory_bytes > 0
    }


def _what_lacks(
    room: Mapping[str, int], kept: Counter[str], plan: Plan, model: ModelProfile, topology: Topology
) -> str:
    """Of the device that lacks most; '' if none does. `kept`: bytes of others' copies, by device."""
    lacking = {name: kept[name] - left for name, left in room.items()}
    name = max(lacking, key=lambda n: (lacking[n], n), default="")
    if not name or lacking[name] <= 0:
        return ""
    has = topology.devices[topology.index(name)].memory_bytes
    rank = plan.rank_of_device(name)
    assert rank is not None
    own = SETS * sum(layer_bytes(model, i) for i in range(*plan.partition[plan.stage_of(rank)]))
    return (
        f"the copies for neighbours do not fit on {name}, which has {size(has)}: {size(own)} of its own stage"
        f" and {size(kept[name])} of others' besides what it trains with are {size(lacking[name])} too much:"
        " leave out checkpoint.neighbours_every, use more or larger workers, or smaller micro-batches"
    )


def copying_s(found: Sequence[Keeper], topology: Topology) -> float:
    """Seconds of a set of copies over the engine's network."""
    return transfers_s(TopologyNetwork(topology), [(k.holder, k.keeper, k.n_bytes) for k in found])


def price(found: Sequence[Keeper], topology: Topology, every: int, step_s: float) -> str:
    """What copies every `every` steps of `step_s` cost over the engine's network, in a sentence."""
    if not found:
        return "Nobody keeps copies for others: every holder of this plan has all layers."
    total = sum(k.n_bytes for k in found)
    seconds = copying_s(found, topology)
    share = seconds / (every * step_s) if step_s > 0 else 0.0
    busy = f"{share:.0%} of the time on the busiest link"
    late = "; they take longer than that, and come as often as they can" if share > 1 else ""
    largest = max(k.n_bytes for k in found)
    return (
        f"Each stage is kept by a neighbour too: {size(total)} every {count(every, 'step')}, in"
        f" {duration(seconds)}, {busy}{late}; at most {size(2 * largest)} more memory for each copy that is"
        " kept, twice while the next is under way."
    )
