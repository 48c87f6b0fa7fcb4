"""The script that a rented machine starts its workers by: they join, train, and end with the run."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from deploy.on_ray.config import SCRIPT
from deploy.processes import Child, command, free_port
from scheduler.exit_codes import ExitCode

TEXT = Path(__file__).parent.parent / "data" / "text.txt"
JOB = f"""
name: rented
model: {{family: gpt2, layers: 2, hidden: 32, heads: 4}}
data: {{files: ["{TEXT}"], held_out: 0.05, eval_samples: 8}}
sequence_length: 32
global_batch: 4
micro_batch: 2
steps: 3
"""


def bin_directory(at: Path) -> Path:
    """`deploy` and `worker` of this interpreter, installed or not."""
    at.mkdir()
    for name in ("deploy", "worker"):
        script = at / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m {name}.cli "$@"\n')
        script.chmod(0o755)
    return at


def test_a_machine_joins_by_the_script_and_a_second_start_leaves_its_workers_alone(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    start = command(
        "coordinator",
        "start",
        str(job),
        "--bind",
        "127.0.0.1:0",
        "--state-dir",
        str(tmp_path / "state"),
        "--json",
    )
    coordinator = Child("coordinator", start, tmp_path / "coordinator.log")
    try:
        listening = coordinator.wait_for("listening", 120.0)
        home = tmp_path / "isthmus"
        home.mkdir()
        (home / "token").write_text(Path(listening["token_file"]).read_text())
        port = free_port()
        bash = ["bash", str(SCRIPT), "local", "lab", listening["address"], str(port), "--insecure"]
        here = {
            "HOME": str(tmp_path),
            "ISTHMUS_BIN": str(bin_directory(tmp_path / "bin")),
            "ISTHMUS_ADDRESS_HERE": "127.0.0.1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        said = [
            subprocess.run(bash, env=os.environ | here, capture_output=True, text=True, check=False)
            for _ in range(2)
        ]
        joined = coordinator.wait_for("joined", 120.0)
        coordinator.wait_for("finished", 120.0)
        assert coordinator.process.wait(60) == ExitCode.OK
    finally:
        coordinator.stop()
    assert [x.returncode for x in said] == [0, 0], said
    assert "is supervised already" in said[1].stdout
    assert (joined["region"], joined["data_address"]) == ("lab", f"127.0.0.1:{port}")
    with (tmp_path / ".cache/isthmus/run" / f"{joined['name']}.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # waits for the supervisor to end
    log = (home / "logs" / f"{joined['name']}.log").read_text()
    assert "ended for good: 0 OK" in log


def test_a_machine_that_has_no_address_says_so(tmp_path: Path) -> None:
    bash = ["bash", str(SCRIPT), "nowhere", "lab", "127.0.0.1:1", "1"]
    done = subprocess.run(
        bash, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "found no public address of this nowhere machine" in done.stderr
