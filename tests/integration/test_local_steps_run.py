"""Replicas that step alone, as real processes: a run that is drained goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path

from coordinator.history import read_history
from deploy.local import LocalCluster
from deploy.processes import Event
from scheduler.exit_codes import ExitCode
from tests.integration.test_run import run, write_job

LOCAL = """{stages: 1, replicas: 2}
local_steps: {every: 4}
compression:
  reduce: {feedback: {bits: 8, group: 32}}
"""


def test_a_run_of_local_steps_resumes_to_the_same_losses(tmp_path: Path) -> None:
    job = write_job(tmp_path, LOCAL)
    job.write_text(
        job.read_text().replace("steps: 120", "steps: 40").replace("eval_every: 60", "eval_every: 0")
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, events = run(job, whole, 2)
    assert code == ExitCode.OK
    expected = read_history(whole)
    assert expected.plan is not None
    assert expected.plan.local_steps == 4
    assert len(expected.losses) == 40
    assert expected.losses[-1] < expected.losses[0] - 0.5
    assert {"shard", "reduced"} <= {u["kind"] for e in events if e["event"] == "links" for u in e["links"]}

    def drain(cluster: LocalCluster, event: Event) -> None:
        if event["event"] == "step" and event["step"] == 26:  # a round is open: its pieces are on their way
            cluster.drain()

    code, _ = run(job, broken, 2, on=drain)
    assert code == ExitCode.OK
    done = len(read_history(broken).losses)
    assert 26 <= done < 40
    code, _ = run(job, broken, 2, resume=True)
    assert code == ExitCode.OK
    assert read_history(broken).losses == expected.losses
    checkpoint = max((broken / "checkpoints").iterdir())
    assert len(list(checkpoint.glob("layer-*.local-1.safetensors"))) == 4
