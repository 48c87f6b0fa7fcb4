"""A run with its page: followed by server-sent events while it goes on, and opened again after its end."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from deploy.processes import Child, command
from scheduler.exit_codes import ExitCode

pytest.importorskip("starlette")

TEXT = Path(__file__).parent.parent / "data" / "text.txt"
JOB = f"""
name: seen
model: {{family: gpt2, layers: 2, hidden: 32, heads: 4}}
data: {{files: ["{TEXT}"], held_out: 0.05, eval_samples: 8}}
sequence_length: 32
global_batch: 4
micro_batch: 2
steps: 6
"""


def ask(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def test_a_page_follows_the_run_and_shows_it_again(tmp_path: Path) -> None:
    job, state = tmp_path / "job.yaml", tmp_path / "state"
    job.write_text(JOB)
    where = ["--state-dir", str(state), "--json"]
    start = command(
        "coordinator", "start", str(job), "--bind", "127.0.0.1:0", "--dashboard", "127.0.0.1:0", *where
    )
    coordinator = Child("coordinator", start, tmp_path / "coordinator.log")
    phases = []
    try:
        page = coordinator.wait_for("dashboard", 120.0)["address"]
        listening = coordinator.wait_for("listening", 120.0)
        join = command(
            "worker", "join", listening["address"], "--token-file", listening["token_file"], "--name", "w"
        )
        worker = Child("worker", join, tmp_path / "worker.log")
        with urllib.request.urlopen(f"{page}api/events", timeout=120) as events:
            while True:
                try:
                    line = events.readline()
                except OSError:
                    break
                if not line:
                    break
                if line.startswith(b"data: "):
                    phases.append(json.loads(line[6:])["phase"])
        assert coordinator.process.wait(60) == ExitCode.OK
    finally:
        coordinator.stop()
        worker.stop()
    assert phases[-1] == "finished"
    assert len(phases) > 1, "it was followed, not only told the end"
    listed = subprocess.run(
        command("coordinator", "runs", str(tmp_path), "--json"), capture_output=True, text=True, check=True
    )
    run = json.loads(listed.stdout)
    assert (run["phase"], run["step"], run["steps"]) == ("finished", 6, 6)
    again = Child(
        "again", command("coordinator", "dashboard", "--at", "127.0.0.1:0", *where), tmp_path / "again.log"
    )
    try:
        page = again.wait_for("dashboard", 120.0)["address"]
        shown, points = ask(f"{page}api/run"), ask(f"{page}api/steps")
        assert (shown["phase"], shown["step"], shown["loss"]) == ("finished", 6, run["loss"])
        assert points["series"]["step"] == [1, 2, 3, 4, 5, 6]
        assert ask(f"{page}api/timeline")["measured"]
    finally:
        again.stop()


def test_a_page_that_others_can_reach_wants_a_certificate(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    start = command("coordinator", "start", str(job), "--bind", "127.0.0.1:0", "--dashboard", "0.0.0.0:0")
    done = subprocess.run(
        [*start, "--state-dir", str(tmp_path / "s")], capture_output=True, text=True, check=False
    )
    assert done.returncode == ExitCode.INSECURE_BIND
    assert "coordinator certs" in done.stderr
