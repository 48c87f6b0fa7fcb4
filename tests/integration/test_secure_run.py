"""A run over TLS with join tokens: members train; who lacks certificate, token or a use of it is told so."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from deploy.processes import Child, command
from scheduler.exit_codes import ExitCode

TEXT = Path(__file__).parent.parent / "data" / "text.txt"
JOB = f"""
name: sealed
model: {{family: gpt2, layers: 2, hidden: 32, heads: 4}}
data: {{files: ["{TEXT}"], held_out: 0.05, eval_samples: 4}}
sequence_length: 32
global_batch: 8
micro_batch: 2
steps: 4
parallelism: {{stages: 2, replicas: 1}}
"""


def done(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(argv[0], *argv[1:]), capture_output=True, text=True, timeout=120, check=False
    )


def made(*argv: str) -> dict[str, object]:
    result = done(*argv, "--json")
    assert result.returncode == 0, result.stderr
    found: dict[str, object] = json.loads(result.stdout)
    return found


@pytest.fixture
def children() -> object:
    started: list[Child] = []
    yield started
    for child in started:
        child.stop()


def test_two_workers_of_one_token_train_over_tls(tmp_path: Path, children: list[Child]) -> None:
    state, job = tmp_path / "state", tmp_path / "job.yaml"
    job.write_text(JOB)
    ca = str(made("coordinator", "certs", "--state-dir", str(state))["ca"])
    token = made("coordinator", "tokens", "create", "--uses", "2", "--state-dir", str(state))["token"]
    (tmp_path / "token").write_text(f"{token}\n")
    coordinator = Child(
        "coordinator",
        command(
            "coordinator", "start", str(job), "--bind", "127.0.0.1:0", "--state-dir", str(state),
            "--min-workers", "3", "--json",
        ),
        tmp_path / "coordinator.log",
    )  # fmt: skip
    children.append(coordinator)
    listening = coordinator.wait_for("listening", 60)
    assert listening["tls"]
    assert listening["join"].endswith(f"--ca {ca}")
    address = listening["address"]

    clear = done("worker", "check", address, "--token-file", str(tmp_path / "token"))
    assert clear.returncode == ExitCode.TLS
    assert "pass --ca FILE" in clear.stderr
    fits = done("worker", "check", address, "--token-file", str(tmp_path / "token"), "--ca", ca)
    assert fits.returncode == 0, fits.stderr

    def worker(name: str, token_file: Path = tmp_path / "token") -> Child:
        child = Child(
            name,
            command(
                "worker", "join", address, "--token-file", str(token_file), "--ca", ca, "--name", name,
                "--identity", str(tmp_path / name), "--device", "cpu", "--json",
            ),
            tmp_path / f"{name}.log",
        )  # fmt: skip
        children.append(child)
        return child

    first = worker("w0")
    first.wait_for("joined", 60)
    visit = done("worker", "check", address, "--token-file", listening["token_file"], "--ca", ca)
    assert visit.returncode == 0, visit.stderr
    assert "worker w0 at" in visit.stdout
    first.kill()  # it comes back, with its identity, for the same use
    first.process.wait()
    coordinator.wait_for("left", 60)
    workers = [worker("w0"), worker("w1")]
    for child in workers:
        child.wait_for("joined", 60)
    # The run waits for a third, so it is there still when one comes whose token is used up.
    third = done("worker", "join", address, "--token-file", str(tmp_path / "token"), "--ca", ca)
    assert third.returncode == ExitCode.TOKEN
    assert "used up (2 of 2)" in third.stderr
    workers.append(worker("third", Path(listening["token_file"])))

    finished = coordinator.wait_for("finished", 600)
    assert finished["step"] == 4
    assert coordinator.process.wait(60) == 0
    assert [w.process.wait(60) for w in workers] == [0, 0, 0]
    listed = made("coordinator", "tokens", "list", "--state-dir", str(state))
    assert (listed["state"], listed["names"]) == ("used up", ["w0", "w1"])
