"""Writes the launch configs that a person asked for. Reads the plan and the trace, asks no cloud."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.on_ray.clouds import CloudError
from deploy.on_ray.config import Joining, cloud_cluster, local_cluster
from deploy.on_ray.sites import Site, by_region, parse_site, sites_of_plan
from scheduler.plan_text import plan_of_document

_HEADER = """\
# Written by `deploy ray generate`: {n} worker(s) of the job {job} in {where}.
#   ray up {path}        rents (or reaches) the machines; each joins {coordinator} by itself
#   ray down {path}      gives them back
# Names, prices and quotas are the cloud's; look through it before the first `ray up`.
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `deploy ray generate` was asked for."""

    job: str
    coordinator: str
    token_file: Path
    install: str
    at: tuple[str, ...] = ()
    plan: Path | None = None
    trace: str | None = None
    gpu: str = "a10"
    hosts: tuple[str, ...] = ()
    ssh_user: str = "ubuntu"
    ca: Path | None = None
    data_dir: Path | None = None
    streams: int = 4
    spot: bool = False
    gcp_project: str = ""

    @property
    def joining(self) -> Joining:
        return Joining(
            self.coordinator, self.token_file, self.install, self.ca, self.data_dir, self.streams, self.spot
        )


def write(wanted: Wanted, out: Path) -> list[tuple[Path, int]]:
    """Write one file a region into `out`: (path, workers). CloudError, PlanError, TraceError, OSError."""
    host, _, port = wanted.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise CloudError(f"--coordinator: found {wanted.coordinator!r}, required HOST:PORT")
    clusters = [*_clouds(wanted), *_there(wanted)]
    if not clusters:
        raise CloudError("found no place, required --at CLOUD/REGION:GPU=N, --plan with --trace, or --hosts")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for file, where, n, cluster in clusters:
        path = out / file
        head = _HEADER.format(n=n, job=wanted.job, where=where, path=path, coordinator=wanted.coordinator)
        body = yaml.safe_dump(cluster, sort_keys=False, width=4096)
        path.write_text(head + body, encoding="utf-8")
        written.append((path, n))
    return written


def _clouds(wanted: Wanted) -> list[tuple[str, str, int, dict[str, Any]]]:
    return [
        (
            f"{cloud}-{region}.yaml",
            f"{cloud} {region}",
            sum(site.workers for site in sites),
            cloud_cluster(wanted.job, sites, wanted.joining, wanted.gcp_project),
        )
        for (cloud, region), sites in by_region(_sites(wanted)).items()
    ]


def _sites(wanted: Wanted) -> tuple[Site, ...]:
    if wanted.plan is None:
        return tuple(parse_site(text) for text in wanted.at)
    if wanted.at or wanted.trace is None:
        raise CloudError("--plan: required --trace, the network it was made over, and no --at")
    from sim.trace import load  # the simulator is only needed for its traces' places

    plan = plan_of_document(json.loads(wanted.plan.read_text(encoding="utf-8")), str(wanted.plan))
    return sites_of_plan(plan, load(wanted.trace).nodes, wanted.gpu)


def _there(wanted: Wanted) -> list[tuple[str, str, int, dict[str, Any]]]:
    found = []
    for text in wanted.hosts:
        site, _, rest = text.partition(":")
        hosts = [host for host in rest.split(",") if host]
        if not site or not hosts:
            raise CloudError(
                f"--hosts: found {text!r}, required SITE:HEAD,HOST,... like lab:10.0.0.1,10.0.0.2"
            )
        cluster = local_cluster(wanted.job, site, hosts, wanted.ssh_user, wanted.joining)
        found.append((f"site-{site}.yaml", site, len(hosts) - 1, cluster))
    return found
