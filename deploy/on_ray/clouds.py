"""Which machine of which cloud has which accelerator. Data; knows nothing of Ray or of jobs.

Names of machines and images are the clouds' own, from their documentation as of November 2026 (AWS "EC2
accelerated computing instances", Google "GPU machine types", Azure "GPU-accelerated virtual machine
sizes"); what is offered differs by region and account, so a cloud may still refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Cloud = Literal["aws", "gcp", "azure"]
CLOUDS: tuple[Cloud, ...] = get_args(Cloud)


class CloudError(ValueError):
    """A place or machine that is not known: says what was found, what is there, and what to do."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine type: `accelerators` of them in it (0: it computes on its cores), `cores` it has.

    `attach`: the accelerator that Google attaches to a general machine; '' where it is part of the type.
    """

    kind: str
    cores: int
    accelerators: int
    attach: str = ""


MACHINES: Mapping[Cloud, Mapping[str, Machine]] = {
    "aws": {
        "cpu": Machine("c7i.2xlarge", 8, 0),
        "t4": Machine("g4dn.xlarge", 4, 1),
        "v100": Machine("p3.2xlarge", 8, 1),
        "a10": Machine("g5.xlarge", 4, 1),
        "a100-40": Machine("p4d.24xlarge", 96, 8),
        "a100-80": Machine("p4de.24xlarge", 96, 8),
        "h100": Machine("p5.4xlarge", 16, 1),
        "h200": Machine("p5en.48xlarge", 192, 8),
    },
    "gcp": {
        "cpu": Machine("c3-standard-8", 8, 0),
        "t4": Machine("n1-standard-4", 4, 1, "nvidia-tesla-t4"),
        "v100": Machine("n1-standard-8", 8, 1, "nvidia-tesla-v100"),
        "a100-40": Machine("a2-highgpu-1g", 12, 1),
        "a100-80": Machine("a2-ultragpu-1g", 12, 1),
        "h100": Machine("a3-highgpu-1g", 26, 1),
        "h200": Machine("a3-ultragpu-8g", 224, 8),
    },
    "azure": {
        "cpu": Machine("Standard_F8s_v2", 8, 0),
        "t4": Machine("Standard_NC4as_T4_v3", 4, 1),
        "a10": Machine("Standard_NV36ads_A10_v5", 36, 1),
        "a100-80": Machine("Standard_NC24ads_A100_v4", 24, 1),
        "h100": Machine("Standard_NC40ads_H100_v5", 40, 1),
        "h200": Machine("Standard_ND96isr_H200_v5", 96, 8),
    },
}
"""Cloud -> accelerator (as in `scheduler.gpus`) -> the smallest machine that has it."""

HEADS: Mapping[Cloud, str] = {"aws": "m7i.large", "gcp": "e2-standard-2", "azure": "Standard_D2s_v5"}
"""A small machine for Ray's head, which trains nothing."""


def cloud_of(name: str) -> Cloud:
    """The cloud of this name. CloudError, with those there are, if there is none."""
    found = next((cloud for cloud in CLOUDS if cloud == name), None)
    if found is None:
        raise CloudError(f"found the cloud {name!r}, required one of: {', '.join(CLOUDS)}")
    return found


def machine(cloud: Cloud, gpu: str) -> Machine:
    """The machine of `cloud` with `gpu`. CloudError, with what there is, if there is none."""
    there = MACHINES[cloud]
    if gpu not in there:
        raise CloudError(
            f"{cloud}: found no machine with {gpu!r}, required one of: {', '.join(there)}; for another "
            "machine change the written file"
        )
    return there[gpu]
