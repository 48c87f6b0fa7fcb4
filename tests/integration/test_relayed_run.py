"""Workers that accept no connection from anybody: they join, are measured, and train through a relay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.processes import Child, command, free_port

from .test_secure_run import JOB


@pytest.mark.parametrize("direct", ["both behind a NAT", "one behind a NAT"])
def test_a_run_of_workers_that_cannot_reach_each_other(tmp_path: Path, direct: str) -> None:
    """What a worker behind a NAT advertises leads nowhere: port 9 of this machine, where nobody listens."""
    job, state, relay_at = tmp_path / "job.yaml", tmp_path / "state", f"127.0.0.1:{free_port()}"
    job.write_text(JOB)
    started: list[Child] = []
    apart = direct.startswith("both")
    """The relay is a process of its own, or the coordinator's."""

    def child(name: str, *argv: str) -> Child:
        started.append(Child(name, command(argv[0], *argv[1:], "--json"), tmp_path / f"{name}.log"))
        return started[-1]

    try:
        coordinator = child(
            "coordinator", "coordinator", "start", str(job), "--bind", "127.0.0.1:0",
            "--state-dir", str(state), "--relay" if apart else "--relay-bind", relay_at,
        )  # fmt: skip
        listening = coordinator.wait_for("listening", 60)
        assert listening["relay"] == relay_at
        if apart:
            relay = child(
                "relay", "worker", "relay", "--bind", relay_at, "--token-file", listening["token_file"]
            )
            assert relay.wait_for("listening", 60)["address"] == relay_at
        hidden = ["w0", "w1"] if direct.startswith("both") else ["w1"]
        workers = [
            child(
                name, "worker", "join", listening["address"], "--token-file", listening["token_file"],
                "--name", name, "--identity", str(tmp_path / name), "--device", "cpu",
                *(["--advertise", "127.0.0.1:9"] if name in hidden else []),
            )
            for name in ("w0", "w1")
        ]  # fmt: skip
        finished = coordinator.wait_for("finished", 600)
        assert finished["step"] == 4
        assert coordinator.process.wait(60) == 0
        assert [w.process.wait(60) for w in workers] == [0, 0]
        relayed = [x["relayed"] for _, x in json.loads((state / "measured.json").read_text())["links"]]
        assert any(relayed), "what was measured through the relay is known as such"
        if apart:
            relay.process.terminate()
            passed = relay.wait_for("stopped", 30)
            assert passed["joined"] >= 2
            assert passed["refused"] == 0
            assert passed["n_bytes"] > 8 * 2 * 32 * 32 * 4, "at least the activations of a step"
    finally:
        for c in reversed(started):
            c.stop()
