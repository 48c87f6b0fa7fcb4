"""Sequences divided among real processes: one worker's losses, and a lost shard's positions taken over."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.history import read_history
from deploy.local import LocalCluster
from deploy.processes import Event
from scheduler.exit_codes import ExitCode
from tests.integration.test_run import RELATIVE, run, write_job

STEPS, LOST_AFTER = 14, 5


def short_job(directory: Path, parallelism: str) -> Path:
    job = write_job(directory, parallelism)
    text = job.read_text().replace("steps: 120", f"steps: {STEPS}").replace("eval_every: 60", "eval_every: 7")
    job.write_text(text)
    return job


def test_three_shards_train_as_one_worker_and_go_on_as_two(tmp_path: Path) -> None:
    """32 positions: 10, 11 and 11; then 16 and 16."""
    code, _ = run(short_job(tmp_path, "{stages: 1, replicas: 1}"), tmp_path / "one", 1)
    assert code == ExitCode.OK
    expected = read_history(tmp_path / "one")

    def lose(cluster: LocalCluster, event: Event) -> None:
        if event["event"] == "step" and event["step"] == LOST_AFTER:
            cluster.workers["w1"].kill()

    job = short_job(tmp_path, "{stages: 1, replicas: 3, split: sequence}")
    code, events = run(job, tmp_path / "three", 3, on=lose)
    assert code == ExitCode.OK
    found = read_history(tmp_path / "three")
    assert found.losses == pytest.approx(expected.losses, rel=RELATIVE)
    assert found.losses[-1] < found.losses[0] - 0.3
    assert [e.loss for e in found.evals] == pytest.approx([e.loss for e in expected.evals], rel=RELATIVE)
    plans = [e for e in events if e["event"] == "plan"]
    assert [(len(p["placement"]), p["split"]) for p in plans] == [(3, "sequence"), (2, "sequence")]
    assert {"keys", "owed"} <= {u["kind"] for e in events if e["event"] == "links" for u in e["links"]}
