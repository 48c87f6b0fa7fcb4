"""A whole run whose workers live in network namespaces, joined by the packet switch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.local import LinkOptions, LocalCluster, LocalOptions
from scheduler.exit_codes import ExitCode
from sim.namespaces import Namespaces, SwitchUnavailable

TINY = Path(__file__).parent.parent.parent / "jobs" / "tiny.yaml"


def test_workers_in_namespaces_train_and_all_their_tensors_cross_the_switch(tmp_path: Path) -> None:
    try:
        Namespaces(1).close()
    except SwitchUnavailable as reason:
        pytest.skip(str(reason))
    job = tmp_path / "job.yaml"  # both workers must hold a stage, else nothing need cross
    job.write_text(TINY.read_text() + "parallelism: {stages: 2, replicas: 1}\n")
    links = LinkOptions("four_cities", "switch", delay_scale=0.1, mtu=4000, queue_bytes=1 << 20, seed=3)
    options = LocalOptions(workers=2, links=links, state_dir=tmp_path / "run", data_dir=TINY.parent)
    with LocalCluster(job, options) as cluster:
        events = list(cluster.events())
        code = cluster.wait()
        address = cluster.address
    assert code == ExitCode.OK
    assert address.startswith("127.0.0.1:"), "the coordinator stays where everybody can ask it"
    joined = [e["data_address"] for e in events if e["event"] == "joined"]
    assert sorted(a.rpartition(":")[0] for a in joined) == ["10.99.0.1", "10.99.0.2"]
    sent = sum(e["sent_bytes"] for e in events if e["event"] == "step")
    log = (tmp_path / "run" / "logs" / "links.log").read_text().splitlines()
    stopped = next(e for e in map(json.loads, log) if e["event"] == "stopped")
    crossed = [link["delivered_bytes"] for link in stopped["links"].values()]
    assert len(crossed) == 2
    assert sum(crossed) > sent > 0
