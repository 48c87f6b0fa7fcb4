"""Manifests of kinds that Kubernetes does not know: their fields, the pods inside, and what they refer to."""

from __future__ import annotations

import copy
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

jsonschema = pytest.importorskip("jsonschema")

from coordinator.cli import app  # noqa: E402 (after the skip)
from coordinator.tokens import Tokens  # noqa: E402
from deploy.on_ray.config import RAY  # noqa: E402

from .custom_resources import SPECS, closed, pods  # noqa: E402

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
MONITOR = KUBERNETES / "monitoring" / "service-monitor.yaml"
CLUSTER, JOB = (KUBERNETES / "kuberay" / f"ray-{kind}.yaml" for kind in ("cluster", "job"))


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text())
    return found


@pytest.mark.parametrize("file", [MONITOR, CLUSTER, JOB], ids=lambda p: p.name)
def test_its_operator_knows_every_field_and_kubernetes_every_pod(file: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    found = read(file)
    assert set(found) == {"apiVersion", "kind", "metadata", "spec"}
    schema = SPECS[found["apiVersion"], found["kind"]]
    jsonschema.validate(found["spec"], schema)
    for pod in pods(found["spec"]):
        validate.validate(pod, "1.30", strict=True)
    spoilt = copy.deepcopy(found["spec"]) | {"replica": 1}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spoilt, schema)


def test_the_monitor_is_what_its_operators_own_schema_says() -> None:
    operators = pytest.importorskip("cloudcoil.models.prometheus_operator.v1")
    schema = closed(operators.ServiceMonitor.model_json_schema())
    jsonschema.validate(read(MONITOR), schema)
    spoilt = copy.deepcopy(read(MONITOR))
    spoilt["spec"]["endpoints"][0]["tlsConfig"]["serverNam"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="serverNam"):
        jsonschema.validate(spoilt, schema)


def test_kubernetes_takes_the_policy_beside_the_monitor() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    validate.validate(read(KUBERNETES / "monitoring" / "network-policy.yaml"), "1.30", strict=True)
    kustomization = read(KUBERNETES / "monitoring" / "kustomization.yaml")
    there = {file.name for file in (KUBERNETES / "monitoring").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == {"..", *there}


def test_the_monitor_reads_a_port_that_the_coordinator_has() -> None:
    service, coordinator, *_ = yaml.safe_load_all((KUBERNETES / "coordinator.yaml").read_text())
    [endpoint] = read(MONITOR)["spec"]["endpoints"]
    [port] = [x for x in service["spec"]["ports"] if x["name"] == endpoint["port"]]
    [container] = coordinator["spec"]["template"]["spec"]["containers"]
    [listens] = [x for x in container["ports"] if x["name"] == port["targetPort"]]
    [bind] = [x["value"] for x in container["env"] if x["name"] == "ISTHMUS_DASHBOARD"]
    assert bind == f"0.0.0.0:{listens['containerPort']}"
    labels = read(MONITOR)["spec"]["selector"]["matchLabels"]
    assert labels.items() <= service["metadata"]["labels"].items()


def test_the_readers_token_is_made_as_the_file_says(tmp_path: Path) -> None:
    text = (KUBERNETES / "monitoring" / "kustomization.yaml").read_text()
    [line] = re.findall(r'--from-literal=token="\$\(kubectl .* -- coordinator (.*)\)"', text)
    made = CliRunner().invoke(app, [*line.split(), "--state-dir", str(tmp_path)])
    assert made.exit_code == 0, made.output
    tokens = Tokens(tmp_path)
    assert tokens.refusal(made.stdout.strip(), time.time() + 300 * 86400.0, purpose="dashboard") == ""
    tokens.close()


def test_ray_is_told_of_regions_as_launch_asks_for_them() -> None:
    cluster, job = read(CLUSTER)["spec"], read(JOB)["spec"]
    assert job["rayClusterSpec"] == cluster
    assert RAY.endswith(cluster["rayVersion"])
    asked = re.findall(r"--workers (\d+)@(\S+)", job["entrypoint"])
    offered = {
        region: count * group["replicas"]
        for group in cluster["workerGroupSpecs"]
        for region, count in json.loads(json.loads(group["rayStartParams"]["resources"])).items()
    }
    assert asked
    assert all(int(n) <= offered[f"region:{region}"] for n, region in asked)
