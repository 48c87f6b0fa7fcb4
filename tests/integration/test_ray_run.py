"""A run on a real Ray cluster of several nodes: placed by region, an actor killed, and it goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

from deploy.on_ray.actors import NAMESPACE, coordinator_name  # noqa: E402 (after the skip)
from deploy.on_ray.launch import Launch, LaunchFailed, end, parse_workers, run, status_of  # noqa: E402
from scheduler.exit_codes import ExitCode  # noqa: E402

# Ray's own files and sockets are closed with its processes, not before.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

TEXT = Path(__file__).parent.parent / "data" / "text.txt"
STEPS = 60
JOB = f"""
name: on-ray
model: {{family: gpt2, layers: 2, hidden: 32, heads: 4}}
data: {{files: ["{TEXT}"], held_out: 0.05, eval_samples: 8}}
sequence_length: 32
global_batch: 8
micro_batch: 2
steps: {STEPS}
checkpoint: {{every: 10, keep: 2}}
parallelism: {{stages: 2, replicas: 1}}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    root = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    made = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    for region in ("oregon", "tokyo"):
        made.add_node(num_cpus=1, resources={f"region:{region}": 1})
    ray.init(address=made.address, namespace=NAMESPACE, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def launch(tmp_path: Path, workers: list[str]) -> Launch:
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    return Launch(job, parse_workers(workers), "r", 0, 1, tmp_path / "state", tmp_path, 2)


def test_workers_are_said_by_number_and_region() -> None:
    assert parse_workers(["2", "1@oregon"]) == ("", "", "oregon")
    with pytest.raises(LaunchFailed, match="required N or N@REGION"):
        parse_workers(["oregon"])


def test_a_run_is_placed_by_region_loses_an_actor_and_ends(cluster: Any, tmp_path: Path) -> None:
    wanted = launch(tmp_path, ["1@oregon", "1@tokyo"])
    assert run(wanted, cluster.address, detach=True, as_json=True) == ExitCode.OK
    with pytest.raises(LaunchFailed, match="found a run called 'r'"):
        run(wanted, cluster.address, detach=True, as_json=True)
    coordinator = ray.get_actor(coordinator_name("r"), namespace=NAMESPACE)
    seen: list[dict[str, Any]] = []
    after, code, killed = 0, None, False
    while code is None:
        new, code = ray.get(coordinator.events.remote(after, 60.0))
        for after, event in new:  # noqa: B007
            seen.append(event)
        if not killed and any(e["event"] == "step" and e["step"] >= 12 for e in seen):
            victim = ray.get_actor("r-w1-tokyo", namespace=NAMESPACE)
            os.kill(ray.get(victim.report.remote())["pid"], signal.SIGKILL)
            killed = True
    steps = [e["step"] for e in seen if e["event"] == "step"]
    regions = {e["name"]: e["region"] for e in seen if e["event"] == "joined"}
    assert code == ExitCode.OK
    assert killed
    assert steps[-1] == STEPS
    assert regions == {"r-w0-oregon": "oregon", "r-w1-tokyo": "tokyo"}
    found = status_of("r", cluster.address)
    assert {row["name"] for row in found["actors"]} == {"r-coordinator", "r-w0-oregon", "r-w1-tokyo"}
    assert found["last"]["step"] == STEPS
    assert end("r", cluster.address, now=False) == 3
    with pytest.raises(LaunchFailed, match="found no run called 'r'"):
        status_of("r", cluster.address)


def test_a_cluster_that_has_not_what_is_asked_says_what_it_has(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.on_ray.launch.READY_TIMEOUT_S", 1.0)
    with pytest.raises(LaunchFailed, match="region:london"):
        run(launch(tmp_path, ["1@london"]), cluster.address, detach=True, as_json=True)
