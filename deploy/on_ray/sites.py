"""How many workers where: as a person says it, or as a plan over a trace places them.

`aws/us-west-2:a10=4` is four workers with an A10 each in Oregon. Knows names and counts, no files of Ray.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deploy.on_ray.clouds import Cloud, CloudError, Machine, cloud_of, machine
from scheduler.plan import Plan
from scheduler.trace import Node

MAX_WORKERS = 100_000
_SITE = re.compile(r"(?P<cloud>[a-z]+)/(?P<region>[A-Za-z0-9-]+):(?P<gpu>[a-z0-9-]+)=(?P<workers>[0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class Site:
    """Workers of one kind in one region of one cloud."""

    cloud: Cloud
    region: str
    gpu: str
    workers: int

    @property
    def machine(self) -> Machine:
        return machine(self.cloud, self.gpu)

    @property
    def machines(self) -> int:
        """Machines that hold the workers: one for each accelerator, one where there is none."""
        return self.workers // max(1, self.machine.accelerators)


def checked(site: Site) -> Site:
    """The site if such workers can be had. CloudError if not, saying why and what can be."""
    each = max(1, site.machine.accelerators)
    if not 1 <= site.workers <= MAX_WORKERS or site.workers % each:
        raise CloudError(
            f"{site.cloud}/{site.region}: found {site.workers} workers with {site.gpu}, required a multiple "
            f"of {each}: {site.cloud}'s {site.machine.kind} has {each} in one machine"
        )
    return site


def parse_site(text: str) -> Site:
    """`CLOUD/REGION:GPU=WORKERS` as a Site. CloudError if it is not one."""
    match = _SITE.fullmatch(text)
    if match is None:
        raise CloudError(f"found {text!r}, required CLOUD/REGION:GPU=WORKERS, like aws/us-west-2:a10=4")
    return checked(Site(cloud_of(match["cloud"]), match["region"], match["gpu"], int(match["workers"])))


def sites_of_plan(plan: Plan, nodes: Mapping[str, Node], gpu: str) -> tuple[Site, ...]:
    """The sites that a plan over a trace's nodes uses, `gpu` at each. CloudError for one in no cloud."""
    at: Counter[tuple[str, str]] = Counter()
    for name in (device for replica in plan.placement for device in replica):
        node = nodes.get(name) or nodes.get(name.rpartition("-")[0])
        if node is None:
            raise CloudError(
                f"the plan's device {name!r} is at no node of the trace; found {', '.join(nodes)}; "
                "required the trace that the plan was made over"
            )
        if not node.provider or not node.region:
            raise CloudError(f"the trace's node {node.name} names no provider and region; say --at instead")
        at[node.provider, node.region] += 1
    return tuple(checked(Site(cloud_of(cloud), region, gpu, n)) for (cloud, region), n in sorted(at.items()))


def by_region(sites: Iterable[Site]) -> dict[tuple[Cloud, str], tuple[Site, ...]]:
    """Sites of one cluster together: (cloud, region) -> its sites. CloudError for one that is said twice."""
    found: dict[tuple[Cloud, str], tuple[Site, ...]] = {}
    for site in sites:
        there = found.get((site.cloud, site.region), ())
        if any(other.gpu == site.gpu for other in there):
            raise CloudError(f"found {site.cloud}/{site.region}:{site.gpu} twice, required once with the sum")
        found[site.cloud, site.region] = (*there, site)
    return found
