"""Launch configs: what a person asked for is in them, and Ray's own check takes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.on_ray.clouds import CLOUDS, MACHINES, CloudError, machine
from deploy.on_ray.generate import Wanted, write
from deploy.on_ray.sites import Site, by_region, parse_site, sites_of_plan
from scheduler.gpus import ACCELERATORS
from scheduler.plan import Plan
from scheduler.plan_text import plan_document
from sim.trace import load

Ask = Callable[..., Wanted]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    token = tmp_path / "token"
    token.write_text("secret")

    def wanted(**given: Any) -> Wanted:
        return Wanted("demo", "coordinator.example.org:29520", token, "isthmus[worker]==0.1.0", **given)

    return wanted


def plan_at(*devices: str) -> Plan:
    """One replica, a stage on each device."""
    partition = tuple((i, i + 1) for i in range(len(devices)))
    return Plan(1, (devices,), partition, (4,), "1f1b", 0)


def test_every_machine_has_an_accelerator_that_plans_know() -> None:
    assert {gpu for cloud in CLOUDS for gpu in MACHINES[cloud]} <= set(ACCELERATORS)


def test_a_site_is_read_as_it_is_written() -> None:
    assert parse_site("aws/us-west-2:a10=4") == Site("aws", "us-west-2", "a10", 4)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("us-west-2=4", "required CLOUD/REGION:GPU=WORKERS"),
        ("aws/us-west-2:a10=0", "required a multiple of 1"),
        ("aws/us-west-2:a100-40=4", "required a multiple of 8"),
        ("aws/us-west-2:rtx4090=1", "found no machine with 'rtx4090'"),
        ("oracle/us-1:a10=1", "found the cloud 'oracle'"),
    ],
)
def test_a_site_that_cannot_be_had_says_why(text: str, found: str) -> None:
    with pytest.raises(CloudError, match=found):
        parse_site(text)


def test_a_region_is_one_cluster_and_a_kind_stands_there_once() -> None:
    sites = [parse_site(x) for x in ("aws/r:a10=1", "gcp/r:t4=2", "aws/r:t4=3")]
    assert [len(found) for found in by_region(sites).values()] == [2, 1]
    with pytest.raises(CloudError, match="twice"):
        by_region([*sites, sites[0]])


def test_a_plan_says_how_many_machines_where() -> None:
    nodes = load("four_cities").nodes
    found = sites_of_plan(plan_at("Tokyo", "Oregon-0", "Oregon-1"), nodes, "a10")
    assert found == (Site("aws", "ap-northeast-1", "a10", 1), Site("aws", "us-west-2", "a10", 2))
    with pytest.raises(CloudError, match="at no node of the trace"):
        sites_of_plan(plan_at("Atlantis"), nodes, "a10")


def test_files_are_written_from_a_plan(tmp_path: Path, ask: Ask) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_document(plan_at("London", "Tokyo"))))
    written = write(ask(plan=plan, trace="four_cities", gpu="t4"), tmp_path / "out")
    assert [(path.name, n) for path, n in written] == [
        ("aws-ap-northeast-1.yaml", 1),
        ("aws-eu-west-2.yaml", 1),
    ]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "found no place"),
        ({"at": ("gcp/europe-west4:t4=1",)}, "--gcp-project"),
        ({"hosts": ("lab",)}, "required SITE:HEAD"),
        ({"hosts": ("lab:10.0.0.1",)}, "required a head and one"),
        ({"plan": Path("p.json")}, "required --trace"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, ask: Ask, given: dict[str, Any], found: str) -> None:
    with pytest.raises(CloudError, match=found):
        write(ask(**given), tmp_path)


EVERYWHERE = (
    *(
        f"{cloud}/region-1:{gpu}={8 * max(1, m.accelerators)}"
        for cloud in CLOUDS
        for gpu, m in MACHINES[cloud].items()
    ),
)


@pytest.mark.parametrize("spot", [False, True])
def test_ray_takes_every_file(tmp_path: Path, ask: Ask, spot: bool) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    wanted = ask(at=EVERYWHERE, hosts=("lab:10.0.0.1,10.0.0.2,10.0.0.3",), gcp_project="mine", spot=spot)
    written = write(wanted, tmp_path / "out")
    assert [path.name for path, _ in written] == [
        "aws-region-1.yaml", "gcp-region-1.yaml", "azure-region-1.yaml", "site-lab.yaml",
    ]  # fmt: skip
    for path, _ in written:
        util.validate_config(util.prepare_config(yaml.safe_load(path.read_text())))


def test_as_many_machines_as_the_job_has_workers_and_none_is_taken_down(tmp_path: Path, ask: Ask) -> None:
    [(path, n)] = write(ask(at=("aws/us-east-1:a100-40=16",), spot=True), tmp_path)
    cluster = yaml.safe_load(path.read_text())
    node = cluster["available_node_types"]["a100-40-p4d.24xlarge"]
    assert n == 16
    assert (node["min_workers"], node["max_workers"], node["resources"]["GPU"]) == (2, 2, 8)
    assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert machine("aws", "a100-40").cores == node["resources"]["CPU"]


def test_workers_are_started_encrypted_or_say_that_they_are_not(tmp_path: Path, ask: Ask) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("")
    for given, word in (({"ca": ca}, "--ca ~/isthmus/ca.pem"), ({}, "--insecure")):
        [(path, _)] = write(ask(at=("azure/uksouth:t4=1",), **given), tmp_path / "out")
        cluster = yaml.safe_load(path.read_text())
        assert word in cluster["worker_start_ray_commands"][-1]
        assert ("~/isthmus/ca.pem" in cluster["file_mounts"]) == ("ca" in given)


def test_a_wheel_travels_with_its_extras(tmp_path: Path, ask: Ask) -> None:
    wanted = ask(at=("aws/us-east-1:t4=1",))
    [(path, _)] = write(
        Wanted(
            wanted.job, wanted.coordinator, wanted.token_file, "dist/isthmus-1-py3.whl[worker]", wanted.at
        ),
        tmp_path,
    )
    cluster = yaml.safe_load(path.read_text())
    assert cluster["file_mounts"]["~/isthmus/isthmus-1-py3.whl"].endswith("/dist/isthmus-1-py3.whl")
    assert "~/isthmus/isthmus-1-py3.whl'[worker]'" in cluster["setup_commands"][-1]
