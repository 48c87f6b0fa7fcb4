"""A compressed run of real processes: what the plan says is what travels, and it resumes where it was."""

from __future__ import annotations

from pathlib import Path
from signal import SIGKILL

from coordinator.history import read_history
from deploy.local import LocalCluster
from deploy.processes import Event
from scheduler.exit_codes import ExitCode
from tests.integration.test_run import run, write_job

COMPRESSION = """{stages: 2, replicas: 2}
compression:
  activations: {acsgd: {forward_bits: 4, backward_bits: 8, group: 32, buffers: disk}}
  reduce: {feedback: {bits: 4, group: 32}}
"""

ACTIVATIONS = "acsgd:group=32,memory=disk"


def test_a_compressed_run_tells_what_its_links_did_and_resumes_with_its_residuals(tmp_path: Path) -> None:
    job = write_job(tmp_path, COMPRESSION)
    job.write_text(
        job.read_text().replace("steps: 120", "steps: 40").replace("eval_every: 60", "eval_every: 0")
    )
    state = tmp_path / "state"

    def kill(cluster: LocalCluster, event: Event) -> None:
        if event["event"] == "checkpoint" and event["step"] == 30:
            cluster.coordinator.kill()

    code, _ = run(job, state, 4, on=kill)
    assert code == -SIGKILL
    code, events = run(job, state, 4, resume=True)
    assert code == ExitCode.OK
    history = read_history(state)
    assert history.plan is not None
    assert history.plan.codecs.activation == ((ACTIVATIONS,),) * 2
    assert history.plan.codecs.gradient == (("kbit:group=32,rounding=stochastic",),) * 2
    assert len(history.losses) == 40
    assert history.losses[-1] < history.losses[0] - 0.5
    uses = [use for event in events if event["event"] == "links" for use in event["links"]]
    ratios = {use["kind"]: use["ratio"] for use in uses if use["sent_bytes"]}
    assert 3.5 < ratios["gradient"] < 4.0
    assert 6.0 < ratios["shard"] < 8.0
    assert {use["codec"] for use in uses if use["kind"] == "activation"} == {ACTIVATIONS}
    assert any(0 < use["relative_error"] < 0.2 for use in uses if use["kind"] == "shard")
    checkpoint = max((state / "checkpoints").iterdir())
    assert len(list(checkpoint.glob("layer-*.residual-1.safetensors"))) == 4
