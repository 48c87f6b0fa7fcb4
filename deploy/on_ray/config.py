"""Ray cluster launch configs, one cluster a region, whose machines all join one coordinator.

Ray's autoscaler works within one region; Isthmus joins the regions. So Ray rents, installs and keeps the
machines of a region, and each of them starts `worker join` under supervision. Pure: from sites to the
values of a YAML file (https://docs.ray.io/en/latest/cluster/vms/references/ray-cluster-configuration.html).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from deploy.on_ray.clouds import HEADS, Cloud, CloudError
from deploy.on_ray.sites import Site

RAY = "ray[default]==2.60.0"
"""On every machine: head and workers of a cluster must run the same version."""
HOME = "~/isthmus"
DATA_PORT = 29530
"""Of a machine's first worker; the next ones follow."""
MAX_WORKERS_A_MACHINE = 16
DISK_GB = 200
SCRIPT = Path(__file__).parent / "start-workers.sh"

_HEAD_PACKAGES = {
    "aws": "boto3",
    "gcp": "google-api-python-client google-auth",
    "azure": "azure-identity azure-mgmt-compute azure-mgmt-network azure-mgmt-resource azure-common msrest",
}
"""What Ray's autoscaler needs at the head to rent machines of this cloud."""
_GCP_IMAGE = (
    "projects/ubuntu-os-accelerator-images/global/images/family/ubuntu-accelerator-2204-amd64-with-nvidia-570"
)


@dataclass(frozen=True, slots=True)
class Joining:
    """How the machines join. Paths are of this machine; `ca` None: the workers say --insecure."""

    coordinator: str
    token_file: Path
    install: str
    """What pip installs: `isthmus[worker]==0.1.0`, or a wheel's path with its extras."""
    ca: Path | None = None
    data_dir: Path | None = None
    streams: int = 4
    spot: bool = False


def cluster_name(job: str, cloud: str, region: str) -> str:
    """The name Ray's commands know the cluster by; letters, digits and dashes, as all clouds take them."""
    name = "".join(c if c.isalnum() else "-" for c in f"isthmus-{job}-{cloud}-{region}".lower())
    return name[:60].strip("-")


def cloud_cluster(job: str, sites: Sequence[Site], joining: Joining, project: str = "") -> dict[str, Any]:
    """The cluster of one region. `project`: Google's project id. CloudError where something is missing."""
    cloud, region = sites[0].cloud, sites[0].region
    if cloud == "gcp" and not project:
        raise CloudError("found no --gcp-project, required Google's project id for gcp regions")
    name = cluster_name(job, cloud, region)
    machines = sum(site.machines for site in sites)
    head = f"head-{HEADS[cloud]}"
    types = {head: {"resources": {"CPU": 0}, "min_workers": 0, "max_workers": 0, "node_config": _head(cloud)}}
    for site in sites:
        types[f"{site.gpu}-{site.machine.kind}"] = {
            # As many as the job has there: Ray replaces a machine that is lost, and takes none down as idle.
            "min_workers": site.machines,
            "max_workers": site.machines,
            "resources": _resources(site),
            "node_config": _node(site, joining.spot),
        }
    return {
        "cluster_name": name,
        "max_workers": machines,
        "idle_timeout_minutes": 60,
        "provider": _provider(cloud, region, name, project),
        "auth": {"ssh_user": "ubuntu"},
        "available_node_types": types,
        "head_node_type": head,
        "file_mounts": _mounts(joining),
        **_commands(cloud, region, joining),
    }


def local_cluster(job: str, region: str, hosts: Sequence[str], user: str, joining: Joining) -> dict[str, Any]:
    """The cluster of machines that are there: `hosts[0]` is Ray's head and trains nothing."""
    if len(hosts) < 2:
        raise CloudError(f"found the hosts {', '.join(hosts) or 'none'}, required a head and one or more")
    n = len(hosts) - 1
    return {
        "cluster_name": cluster_name(job, "site", region),
        "min_workers": n,
        "max_workers": n,
        "provider": {"type": "local", "head_ip": hosts[0], "worker_ips": list(hosts[1:])},
        "auth": {"ssh_user": user},
        "file_mounts": _mounts(joining),
        **_commands("local", region, joining),
    }


def _resources(site: Site) -> dict[str, float]:
    machine = site.machine
    here: dict[str, float] = {"CPU": machine.cores, f"region:{site.region}": max(1, machine.accelerators)}
    return here | {"GPU": machine.accelerators} if machine.accelerators else here


def _provider(cloud: Cloud, region: str, name: str, project: str) -> dict[str, Any]:
    match cloud:
        case "aws":
            ports = {"FromPort": DATA_PORT, "ToPort": DATA_PORT + MAX_WORKERS_A_MACHINE - 1}
            rule = {**ports, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
            group = {"GroupName": f"{name}-tensors", "IpPermissions": [rule]}
            return {"type": "aws", "region": region, "cache_stopped_nodes": False, "security_group": group}
        case "gcp":
            return {
                "type": "gcp",
                "region": region,
                "availability_zone": f"{region}-b",
                "project_id": project,
            }
        case _:
            return {"type": "azure", "location": region, "resource_group": name, "cache_stopped_nodes": False}


def _head(cloud: Cloud) -> dict[str, Any]:
    match cloud:
        case "aws":
            return {"InstanceType": HEADS["aws"], "BlockDeviceMappings": _aws_disk(50)}
        case "gcp":
            return {"machineType": HEADS["gcp"], "disks": _gcp_disk(50)}
        case _:
            return {"azure_arm_parameters": {"vmSize": HEADS["azure"], **_azure_image()}}


def _node(site: Site, spot: bool) -> dict[str, Any]:
    machine = site.machine
    match site.cloud:
        case "aws":
            node: dict[str, Any] = {"InstanceType": machine.kind, "BlockDeviceMappings": _aws_disk(DISK_GB)}
            return node | ({"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {})
        case "gcp":
            node = {"machineType": machine.kind, "disks": _gcp_disk(DISK_GB)}
            if machine.attach:
                accelerator = {"acceleratorType": machine.attach, "acceleratorCount": machine.accelerators}
                node["guestAccelerators"] = [accelerator]
            # Machines with accelerators cannot be moved while they run.
            schedule: list[dict[str, Any]] = []
            if machine.accelerators:
                schedule.append({"onHostMaintenance": "TERMINATE"})
            if spot:
                schedule.append({"preemptible": True})
            return node | ({"scheduling": schedule} if schedule else {})
        case _:
            arm: dict[str, Any] = {"vmSize": machine.kind, **_azure_image()}
            if spot:
                arm |= {"priority": "Spot", "billingProfile": {"maxPrice": -1}}
            return {"azure_arm_parameters": arm}


def _aws_disk(gb: int) -> list[dict[str, Any]]:
    return [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": gb, "VolumeType": "gp3"}}]


def _gcp_disk(gb: int) -> list[dict[str, Any]]:
    made_with = {"diskSizeGb": gb, "sourceImage": _GCP_IMAGE}
    return [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": made_with}]


def _azure_image() -> dict[str, str]:
    return {
        "imagePublisher": "microsoft-dsvm",
        "imageOffer": "ubuntu-2204",
        "imageSku": "2204-gen2",
        "imageVersion": "latest",
    }


def _mounts(joining: Joining) -> dict[str, str]:
    mounts = {f"{HOME}/start-workers.sh": SCRIPT, f"{HOME}/token": joining.token_file}
    if joining.ca is not None:
        mounts[f"{HOME}/ca.pem"] = joining.ca
    if joining.data_dir is not None:
        mounts[f"{HOME}/data"] = joining.data_dir
    if (wheel := _wheel(joining.install)) is not None:
        mounts[f"{HOME}/{wheel.name}"] = wheel
    return {there: str(here.resolve()) for there, here in mounts.items()}


def _wheel(install: str) -> Path | None:
    path = Path(install.partition("[")[0])
    return path if path.suffix == ".whl" else None


def _commands(cloud: str, region: str, joining: Joining) -> dict[str, list[str]]:
    wheel = _wheel(joining.install)
    package = quote(joining.install)
    if wheel is not None:
        package = f"{HOME}/{wheel.name}" + quote(joining.install.removeprefix(str(wheel)))
    pip = f"~/.local/bin/uv pip install --python {HOME}/venv"
    ray = f"{HOME}/venv/bin/ray"
    secure = f"--ca {HOME}/ca.pem" if joining.ca is not None else "--insecure"
    join = [
        f"bash {HOME}/start-workers.sh",
        cloud,
        quote(region),
        quote(joining.coordinator),
        str(DATA_PORT),
        secure,
        f"--streams {joining.streams}",
    ]
    head = [f"{pip} {_HEAD_PACKAGES[cloud]}"] if cloud in _HEAD_PACKAGES else []
    return {
        "initialization_commands": [],
        "setup_commands": [
            "test -x ~/.local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh",
            f"~/.local/bin/uv venv --allow-existing --python 3.11 {HOME}/venv",
            f"{pip} {quote(RAY)} {package}",
        ],
        "head_setup_commands": head,
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            f"{ray} stop",
            f"ulimit -n 65536; {ray} start --head --port=6379 --object-manager-port=8076 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": [
            f"{ray} stop",
            f"ulimit -n 65536; {ray} start --address=$RAY_HEAD_IP:6379 --object-manager-port=8076",
            " ".join(join),
        ],
    }
