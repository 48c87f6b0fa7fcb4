"""Plan x network at a moment -> timeline: one step, through the one cost model and the one engine.

Knows neither where the plan is from nor what the step is part of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.cost import predict
from scheduler.engine import NOMINAL
from scheduler.flows import FlowNetwork
from scheduler.plan import Plan, PlanError
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.speed import Speed
from scheduler.timeline import Timeline
from sim.faults import CutLinks, Partition
from sim.network import NetworkOverTime


@dataclass(frozen=True, slots=True)
class Work:
    """What a step has to do: the model's layers, and what they cost on each device."""

    model: ModelProfile
    profiles: tuple[DeviceProfile, ...]


def require_devices(plan: Plan, network: NetworkOverTime) -> None:
    """Raise PlanError unless every device of `plan` is one of the network's."""
    known = [d.name for d in network.devices]
    strange = sorted({plan.device(r) for r in range(plan.n_ranks)} - set(known))
    if strange:
        raise PlanError(
            f"found a plan for other devices ({', '.join(strange[:4])}{', …' if len(strange) > 4 else ''}); "
            f"required devices among: {', '.join(known[:8])}{', …' if len(known) > 8 else ''}"
        )


def replay_at(
    plan: Plan,
    work: Work,
    network: NetworkOverTime,
    t_s: float = 0.0,
    speeds: Mapping[str, Speed] = NOMINAL,
    partitions: tuple[Partition, ...] = (),
) -> Timeline:
    """The step that `plan` would have done, begun at `t_s`: links and speeds as they are from then on.

    `speeds` and `partitions` are on the network's clock. Raises PlanError for a plan of other devices.
    """
    require_devices(plan, network)
    then = {name: speed.shifted(t_s) for name, speed in speeds.items()}
    links = links_at(network, t_s, plan.streams, partitions)
    topology = network.topology(t_s)
    return predict(plan, work.model, work.profiles, topology, network=links, speeds=then)


def links_at(
    network: NetworkOverTime, t_s: float, streams: int, partitions: tuple[Partition, ...] = ()
) -> FlowNetwork:
    """The links from `t_s` on, with `partitions` (on the network's clock) on them."""
    links = network.network(t_s, streams)
    if not partitions:
        return links
    region = {d.name: d.region for d in network.devices}
    return links.over(lambda source: CutLinks(source, region, partitions, t_s))
