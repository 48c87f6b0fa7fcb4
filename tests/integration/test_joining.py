"""A worker that joins in the middle of a run is measured beside the steps and taken in; nothing is lost."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from coordinator.history import read_history
from coordinator.store import Store
from deploy.local import LocalCluster, LocalOptions
from deploy.processes import Child, command
from scheduler.exit_codes import ExitCode

TEXT = Path(__file__).parent.parent / "data" / "text.txt"
EVERY, GLOBAL_BATCH = 8, 16
LOOKS = ("--look-every", "0.5", "--margin", "0.02")
"""On a machine that computes for others too, the newcomer may look half as fast as it is."""
JOB = f"""
name: joining
model: {{family: gpt2, layers: 4, hidden: 128, heads: 4}}
data: {{files: ["{TEXT}"], held_out: 0.05, eval_samples: 0}}
sequence_length: 32
global_batch: {GLOBAL_BATCH}
micro_batch: 2
steps: 3000
optimizer: {{lr: 1e-3, warmup_steps: 2, eps: 1e-4}}
checkpoint: {{every: {EVERY}, keep: 1000}}
parallelism: auto
"""


def test_a_worker_that_joins_is_taken_in_when_it_pays_and_the_weights_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    options = LocalOptions(workers=1, state_dir=tmp_path / "joined", options_of={"coordinator": LOOKS})
    moved, newcomer, drained = None, None, False
    with LocalCluster(tmp_path / "job.yaml", options) as cluster:
        late = command(
            "worker", "join", cluster.address, "--token-file", cluster.token_file, "--name", "late",
            "--device", "cpu", "--bind", "127.0.0.1:0", "--data-dir", str(tmp_path), "--threads", "1",
            "--json",
        )  # fmt: skip
        try:
            for event in cluster.events():
                if event["event"] == "step" and newcomer is None:
                    newcomer = Child("late", late, cluster.logs / "late.log")
                if event["event"] == "recovery":
                    moved = event
                together = event["event"] == "checkpoint" and moved and event["step"] > moved["step"]
                if together and not drained:
                    drained = True
                    cluster.drain()
            assert cluster.wait() == ExitCode.OK
            assert newcomer is not None
            assert newcomer.process.wait(60) == ExitCode.OK
        finally:
            if newcomer is not None:
                newcomer.stop()
    assert moved is not None
    assert moved["way"] == "move"
    assert "paid for at step" in moved["reason"]
    history = read_history(tmp_path / "joined")
    assert history.plan is not None
    assert set(history.plan.devices) == {"w0", "late"}
    assert any(x.kind == "outlook" and x.body["moves"] for x in history.events)
    with Store(tmp_path / "joined", read_only=True) as store:
        assert store.ledger().ranges == ((0, len(history.steps) * GLOBAL_BATCH),)
    last = len(history.steps) // EVERY * EVERY
    assert last > moved["step"], "steps were done together, and saved"
    assert_as_if_alone(tmp_path, last)


def assert_as_if_alone(directory: Path, step: int) -> None:
    """The checkpoint of `step` is that of a run that one worker did by itself, but for the sums' order."""
    options = LocalOptions(workers=1, state_dir=directory / "alone")
    with LocalCluster(directory / "job.yaml", options) as cluster:
        for event in cluster.events():
            if event["event"] == "checkpoint" and event["step"] == step:
                cluster.drain()
        assert cluster.wait() == ExitCode.OK
    at = f"checkpoints/step-{step:06d}"
    files = sorted(f.name for f in (directory / "alone" / at).glob("*.safetensors"))
    assert files
    for name in files:
        alone, together = (load_file(directory / d / at / name) for d in ("alone", "joined"))
        assert alone.keys() == together.keys()
        for key, x in alone.items():
            torch.testing.assert_close(together[key], x, rtol=1e-3, atol=2e-5)
