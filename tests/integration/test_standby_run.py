"""A coordinator is killed, and the one that stands by goes on where it stood, with the same workers."""

from __future__ import annotations

from pathlib import Path

from coordinator.store import Store
from deploy.processes import Child, command, free_port
from scheduler.exit_codes import ExitCode

TEXT = Path(__file__).parent.parent / "data" / "text.txt"
STEPS = 150
JOB = f"""
name: standby
model: {{family: gpt2, layers: 2, hidden: 16, heads: 2}}
data: {{files: ["{TEXT}"], held_out: 0.05, eval_samples: 0}}
sequence_length: 16
global_batch: 4
micro_batch: 2
steps: {STEPS}
checkpoint: {{every: 0}}
parallelism: {{stages: 2}}
"""


def test_the_second_coordinator_takes_over_and_no_step_is_lost_or_done_twice(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "token").write_text("the token of both, long enough\n")
    ports, shared = (free_port(), free_port()), str(tmp_path / "shared.sqlite")
    started: list[Child] = []

    def child(name: str, *argv: str) -> Child:
        started.append(Child(name, command(*argv, "--json"), tmp_path / f"{name}.log"))
        return started[-1]

    def coordinator(i: int, *more: str) -> Child:
        return child(
            f"coordinator{i}", "coordinator", "start", str(tmp_path / "job.yaml"), "--bind",
            f"127.0.0.1:{ports[i]}", "--state-dir", str(tmp_path / f"state{i}"), "--store", shared,
            "--token-file", str(tmp_path / "token"), "--lease", "4", *more,
        )  # fmt: skip

    try:
        first = coordinator(0)
        first.wait_for("listening", 120)
        second = coordinator(1, "--standby")
        assert "drives the run" in second.wait_for("standby", 120)["reason"]
        workers = [
            child(
                name, "worker", "join", ",".join(f"127.0.0.1:{p}" for p in ports), "--name", name,
                "--token-file", str(tmp_path / "token"), "--identity", str(tmp_path / name),
                "--device", "cpu", "--bind", "127.0.0.1:0", "--rejoin-timeout", "120",
            )
            for name in ("w0", "w1")
        ]  # fmt: skip
        first.wait_for("step", 120)
        first.kill()
        second.wait_for("recovery", 120)
        assert second.wait_for("finished", 120)["step"] == STEPS
        assert second.process.wait(60) == ExitCode.OK
        assert [w.process.wait(60) for w in workers] == [ExitCode.OK] * 2
    finally:
        for c in reversed(started):
            c.stop()
    with Store(tmp_path / "state1", read_only=True) as store:
        assert store.ledger().ranges == ((0, 4 * STEPS),)
        discarded = store.rows("SELECT count(*) AS n FROM steps WHERE discarded = 1")
        assert discarded[0]["n"] == 0, "the workers kept their layers"
        attempts = store.rows("SELECT DISTINCT attempt FROM steps")
        assert len(attempts) == 2
