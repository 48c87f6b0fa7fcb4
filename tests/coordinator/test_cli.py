"""The command itself: what it prints, what it refuses, the number it ends with."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from coordinator.cli import app
from coordinator.progress import Bar, human_bytes, step_numbers
from coordinator.resume import open_run
from coordinator.starting import default_min_workers
from protos.tls import is_loopback
from scheduler.exit_codes import ExitCode

from .fake_worker import FakeWorker
from .job import TEXT, a_job
from .test_checkpoints import save
from .test_store import record

runner = CliRunner()


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TEXT)
    return path


def start(job_file: Path, *more: str) -> Any:
    state = str(job_file.parent / "state")
    return runner.invoke(app, ["start", str(job_file), "--state-dir", state, *more])


def test_validate_says_what_the_job_is(job_file: Path) -> None:
    result = runner.invoke(app, ["validate", str(job_file), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "event": "valid",
        "job": "tiny",
        "layers": 4,
        "steps": 8,
        "tokens_per_step": 128,
    }


@pytest.mark.parametrize("command", ["start", "validate"])
def test_a_wrong_job_names_file_line_and_key(job_file: Path, command: str) -> None:
    job_file.write_text(TEXT + "stepz: 4\n")
    line = len(job_file.read_text().splitlines())
    result = runner.invoke(app, [command, str(job_file)])
    assert result.exit_code == ExitCode.JOB_INVALID
    assert f"{job_file}:{line}: stepz" in result.stderr


def test_a_missing_job_file_is_said(tmp_path: Path) -> None:
    result = runner.invoke(app, ["validate", str(tmp_path / "no.yaml"), "--json"])
    assert result.exit_code == ExitCode.JOB_INVALID
    event = json.loads(result.stdout)
    assert (event["event"], event["code"]) == ("error", ExitCode.JOB_INVALID)
    assert "no.yaml" in event["reason"]


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "192.0.2.1:29520", "example.org:1", "[::]:0"])
def test_binding_beyond_this_machine_is_refused_unless_asked_for(job_file: Path, bind: str) -> None:
    result = start(job_file, "--bind", bind)
    assert result.exit_code == ExitCode.INSECURE_BIND
    assert "no certificate" in result.stderr
    assert "coordinator certs" in result.stderr
    assert "--insecure" in result.stderr


def test_what_is_loopback() -> None:
    assert all(is_loopback(h) for h in ("127.0.0.1", "127.8.8.8", "localhost", "[::1]"))
    assert not any(is_loopback(h) for h in ("0.0.0.0", "10.0.0.1", "[::]", "localhost.example.org"))


@pytest.mark.parametrize("bind", ["29520", ":29520", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:x"])
def test_an_address_without_host_or_port_is_refused(job_file: Path, bind: str) -> None:
    assert start(job_file, "--bind", bind).exit_code == ExitCode.USAGE


def test_a_port_in_use_has_its_own_code(job_file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = start(job_file, "--bind", f"127.0.0.1:{taken.getsockname()[1]}")
    assert result.exit_code == ExitCode.PORT_IN_USE
    assert "the address cannot be listened on (Address already in use); another process has" in result.stderr


@pytest.mark.parametrize("command", ["status", "drain", "stop"])
def test_an_address_to_ask_at_is_host_and_port(command: str) -> None:
    result = runner.invoke(app, [command, "--address", "garbage"])
    assert result.exit_code == ExitCode.USAGE
    assert "--address: found 'garbage', required HOST:PORT" in result.stderr


def test_a_page_is_served_at_host_and_port(job_file: Path) -> None:
    pytest.importorskip("starlette")
    result = start(job_file, "--bind", "127.0.0.1:0", "--dashboard", "nonsense")
    assert result.exit_code == ExitCode.USAGE
    assert "--dashboard: found 'nonsense', required HOST:PORT" in result.stderr


def test_a_store_that_does_not_open_is_not_remembered(job_file: Path) -> None:
    store = job_file.parent / "no" / "run.sqlite"
    result = start(job_file, "--bind", "127.0.0.1:0", "--store", str(store))
    assert result.exit_code == ExitCode.STATE_DIR
    assert f"{store}: found unable to open database file" in result.stderr
    assert not (job_file.parent / "state" / "store").exists()


def test_a_plan_that_is_none_says_what_it_lacks(job_file: Path) -> None:
    plan = job_file.parent / "plan.json"
    assert "No such file or directory\n" in start(job_file, "--plan", str(plan)).stderr
    plan.write_text('{"version": 1, "placement": []}')
    result = start(job_file, "--plan", str(plan))
    assert result.exit_code == ExitCode.USAGE
    assert "found no micro_batches, partition, schedule; required of a plan" in result.stderr


@pytest.mark.parametrize("words", [("certs",), ("tokens", "create"), ("tokens", "list")])
def test_a_state_directory_that_cannot_be_written_is_said_alike(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    state = tmp_path / "file" / "state"
    result = runner.invoke(app, [*words, "--state-dir", str(state)])
    assert result.exit_code == ExitCode.STATE_DIR
    assert f"{state}: found that it cannot be written (Not a directory); give another" in result.stderr


def test_where_no_token_was_made_it_is_said(tmp_path: Path) -> None:
    result = runner.invoke(app, ["tokens", "list", "--state-dir", str(tmp_path)])
    assert "`coordinator tokens create` makes one" in result.stdout
    assert runner.invoke(app, ["tokens", "list", "--state-dir", str(tmp_path), "--json"]).stdout == ""


def test_nothing_to_resume_and_a_run_in_the_way_have_their_codes(job_file: Path) -> None:
    assert start(job_file, "--resume").exit_code == ExitCode.CHECKPOINT_MISSING
    opened = open_run(job_file.parent / "state", a_job(), resume=False, resume_step=None, now_s=1.0)
    opened.store.step(record(0), 0.4, 2.0)
    opened.close()
    result = start(job_file)
    assert result.exit_code == ExitCode.STATE_DIR
    assert "--resume" in result.stderr


@pytest.mark.parametrize("command", ["status", "drain", "stop"])
def test_asking_nobody_says_so(tmp_path: Path, command: str) -> None:
    result = runner.invoke(app, [command, "--state-dir", str(tmp_path)])
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "no running coordinator" in result.stderr
    (tmp_path / "token").write_text("t" * 20)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    result = runner.invoke(app, [command, "--state-dir", str(tmp_path), "--address", address])
    assert result.exit_code == ExitCode.UNREACHABLE
    assert address in result.stderr


def test_every_command_has_help_and_every_flag_its_twin() -> None:
    for command in ("start", "status", "validate", "drain", "stop", "exit-codes"):
        result = runner.invoke(app, [command, "--help"], terminal_width=200)
        assert result.exit_code == 0
        assert "--json" in result.stdout
    for twin in ("ISTHMUS_BIND", "ISTHMUS_STATE_DIR", "ISTHMUS_MIN_WORKERS", "ISTHMUS_INSECURE"):
        assert twin in runner.invoke(app, ["start", "--help"], terminal_width=200).stdout


def test_exit_codes_are_listed() -> None:
    lines = runner.invoke(app, ["exit-codes", "--json"]).stdout.splitlines()
    assert {json.loads(x)["code"] for x in lines} == {int(c) for c in ExitCode}


def test_min_workers_follow_from_the_job() -> None:
    assert default_min_workers(a_job(parallelism="{stages: 2, replicas: 3}"))[0] == 6
    n, why = default_min_workers(a_job(parallelism="auto"))
    assert n == 1
    assert "--min-workers" in why


# ---- showing


STEP = {
    "event": "step", "step": 3, "steps": 80, "loss": 2.5, "tokens": 128, "tokens_per_s": 1234.5,
    "step_s": 0.42, "predicted_step_s": 0.4, "grad_norm": 1.0,
    "sent_bytes": 1_500_000, "raw_bytes": 1_500_000,
}  # fmt: skip


def test_the_numbers_of_a_step_stand_beside_their_prediction() -> None:
    assert (
        step_numbers(STEP, " eval 2.6000", 3_000_000)
        == "loss 2.5000 eval 2.6000 | 1,234 tokens/s | step 0.42 s, predicted 0.4 | 3.0 MB sent"
    )
    assert [human_bytes(n) for n in (7, 1500, 2e9)] == ["7 B", "1.5 kB", "2.0 GB"]


def test_without_a_terminal_steps_are_lines_but_not_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(Console(soft_wrap=True)) as show:
        for i in range(1, 81):
            show(STEP | {"step": i})
        show({"event": "phase", "phase": "saving", "reason": "saving after step 80"})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 41
    assert lines[-2].startswith("step 80/80 loss 2.5000")


def test_with_a_terminal_there_is_a_bar() -> None:
    console = Console(force_terminal=True, width=150, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file, Bar(console) as show:
        show(STEP | {"step": 80})
        show({"event": "eval", "step": 80, "eval_loss": 2.6})
    text = console.export_text()
    assert "80/80" in text
    assert "predicted 0.4" in text
    assert "eval loss 2.6000 after step 80" in text


# ---- the process


def test_a_run_that_is_done_waits_for_nobody_when_it_is_resumed(job_file: Path) -> None:
    opened = open_run(job_file.parent / "state", a_job(), resume=False, resume_step=None, now_s=1.0)
    save(opened.checkpoints, 8, 2.5)
    opened.store.end_attempt("finished", ExitCode.OK, "all 8 steps are done", 2.0)
    opened.close()
    result = start(job_file, "--resume", "--bind", "127.0.0.1:0")
    assert result.exit_code == ExitCode.OK
    assert "finished: all 8 steps were done already" in result.stdout
    assert "step 8 of 8, loss 1.5000, eval loss 2.5000\n" in result.stdout
    assert "checkpoint: " in result.stdout
    event = json.loads(start(job_file, "--resume", "--bind", "127.0.0.1:0", "--json").stdout)
    assert (event["event"], event["code"], event["loss"], event["steps"]) == ("finished", 0, 1.5, 8)


def _workers(address: str, secret: str, **behaviour: Any) -> threading.Thread:
    async def both() -> None:
        pair = [FakeWorker(n, secret, **behaviour) for n in "ab"]
        await asyncio.gather(*(w.run(address) for w in pair))

    thread = threading.Thread(target=lambda: asyncio.run(both()), daemon=True)
    thread.start()
    return thread


def _events(process: subprocess.Popen[str], until: str, **fields: Any) -> list[dict[str, Any]]:
    found = []
    assert process.stdout is not None
    for line in process.stdout:
        found.append(json.loads(line))
        if found[-1]["event"] == until and fields.items() <= found[-1].items():
            break
    return found


def test_the_process_says_how_to_join_drains_at_ctrl_c_and_resumes(job_file: Path) -> None:
    state = job_file.parent / "state"
    argv = [sys.executable, "-m", "coordinator.cli", "start", str(job_file), "--state-dir", str(state)]
    argv += ["--bind", "127.0.0.1:0", "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as first:
        (listening,) = _events(first, "listening")
        token_file = Path(listening["token_file"])
        assert listening["join"] == f"worker join {listening['address']} --token-file {token_file}"
        assert token_file.stat().st_mode & 0o777 == 0o600
        thread = _workers(listening["address"], token_file.read_text().strip(), step_s=0.05)
        _events(first, "step", step=2)
        asked = runner.invoke(app, ["status", "--state-dir", str(state), "--json"])
        assert json.loads(asked.stdout)["phase"] in ("running", "saving")
        first.send_signal(signal.SIGINT)
        end = _events(first, "finished")[-1]
        assert first.wait(30) == 0
        thread.join(30)
    assert 2 <= end["step"] < 8
    assert not (state / "address").exists()
    with subprocess.Popen([*argv, "--resume"], stdout=subprocess.PIPE, text=True) as second:
        listening = _events(second, "listening")[-1]
        assert listening["step"] == end["step"]
        thread = _workers(listening["address"], token_file.read_text().strip())
        events = _events(second, "finished")
        assert second.wait(30) == 0
        thread.join(30)
    assert [x["step"] for x in events if x["event"] == "step"] == list(range(end["step"] + 1, 9))
    assert events[-1]["step"] == 8
    third = subprocess.run([*argv, "--resume"], stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    (said,) = map(json.loads, third.stdout.splitlines())
    assert {key: said[key] for key in ("event", "step", "loss", "checkpoint")} == {
        key: events[-1][key] for key in ("event", "step", "loss", "checkpoint")
    }


def test_a_run_whose_output_nobody_reads_any_more_still_ends_when_told(job_file: Path) -> None:
    state = str(job_file.parent / "state")
    words = ["start", str(job_file), "--bind", "127.0.0.1:0", "--state-dir", state, "--json"]
    coordinator = subprocess.Popen(
        [sys.executable, "-m", "coordinator.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert coordinator.stdout is not None
    assert coordinator.stderr is not None
    with coordinator.stderr as errors:
        with coordinator.stdout as lines:
            assert "listening" in lines.readline()
        coordinator.terminate()
        said = errors.read()
    assert coordinator.wait(60) == ExitCode.OK, said
    assert "BrokenPipe" not in said
