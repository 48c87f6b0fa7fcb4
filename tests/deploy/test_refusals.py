"""What `deploy` says to wrong input: what was found and what to do, with the exit code of its kind."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from scheduler.exit_codes import ExitCode

TINY = str(Path(__file__).parents[2] / "jobs" / "tiny.yaml")


@pytest.fixture
def a_file(tmp_path: Path) -> Path:
    """A file where a directory is wanted."""
    path = tmp_path / "file"
    path.touch()
    return path


def refused(*words: str, code: ExitCode) -> str:
    """What the command says on standard error."""
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, result.output
    return result.stderr


def test_links_of_no_trace_name_those_there_are(tmp_path: Path) -> None:
    said = refused("local", TINY, "--links", "mars", "--state-dir", str(tmp_path / "s"), code=ExitCode.USAGE)
    assert said.startswith("error: --links: found no trace 'mars'")
    assert "four_cities" in said


def test_a_state_directory_that_cannot_be_is_named_before_a_process_is_started(a_file: Path) -> None:
    state = a_file / "s"
    said = refused("local", TINY, "--state-dir", str(state), code=ExitCode.STATE_DIR)
    assert said.startswith(f"error: {state}: found that it cannot be written (Not a directory); give another")


def test_a_report_that_cannot_be_written_is_known_before_the_run(a_file: Path) -> None:
    state = a_file.parent / "s"
    words = ("local", TINY, "--state-dir", str(state), "--report", str(a_file))
    assert f"--report {a_file}: found that it cannot be written" in refused(*words, code=ExitCode.USAGE)
    assert not state.exists()


def test_a_directory_that_holds_no_run_is_not_removed(tmp_path: Path) -> None:
    mine = tmp_path / "thesis.tex"
    mine.write_text("years of work")
    said = refused("local", TINY, "--state-dir", str(tmp_path), "--fresh", code=ExitCode.STATE_DIR)
    assert "holds no run" in said
    assert mine.exists()


def test_a_wrong_job_is_said_as_the_coordinator_says_it(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(Path(TINY).read_text().replace("steps: 6", "stepz: 6"))
    result = CliRunner().invoke(app, ["local", str(job), "--json"])
    assert result.exit_code == ExitCode.JOB_INVALID
    event = json.loads(result.stdout)
    assert (event["event"], event["code"]) == ("error", ExitCode.JOB_INVALID)
    assert "stepz: found an unknown key (did you mean 'steps'?)" in event["reason"]
    assert event["reason"] in result.stderr
    job.write_bytes(b"\xff\xfe")
    said = refused("local", str(job), code=ExitCode.JOB_INVALID)
    assert "found no job to read ('utf-8' codec can't decode" in said


def test_what_cannot_be_supervised_is_refused(a_file: Path) -> None:
    words = ("supervise", "x", "--run-dir", str(a_file.parent / "held"))
    said = refused(*words, "--", "no-such-program", code=ExitCode.USAGE)
    assert said.startswith("error: no-such-program: found no such command")
    said = refused(*words, "--log", str(a_file / "log"), "--", "true", code=ExitCode.USAGE)
    assert "found that it cannot be written" in said


def test_without_ssh_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("secret\n")
    hosts = tmp_path / "hosts.yaml"
    hosts.write_text("coordinator: c:1\ntoken_file: token\ninsecure: true\nhosts: [{host: a}]\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    for verb in ("up", "status", "down"):
        assert "found no program `ssh`" in refused("ssh", verb, str(hosts), code=ExitCode.USAGE)


def test_a_cluster_that_is_not_there_is_said_at_once() -> None:
    pytest.importorskip("ray")
    with socket.socket() as held:  # taken, and nobody listens
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        for where in (address, f"ray://{address}"):
            said = refused("ray", "status", "--address", where, code=ExitCode.UNREACHABLE)
            assert f"--address {where}: nobody answers there (Connection refused)" in said
