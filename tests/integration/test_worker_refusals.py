"""A worker that cannot join says why, and its exit code says it to scripts."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.processes import Child, command, free_port
from scheduler.exit_codes import ExitCode

JOB = Path(__file__).parent.parent.parent / "jobs" / "tiny.yaml"


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A coordinator that waits for three workers: (address, token file)."""
    state = tmp_path_factory.mktemp("coordinator")
    child = Child(
        "coordinator",
        command("coordinator", "start", str(JOB), "--bind", "127.0.0.1:0",
                "--state-dir", str(state), "--min-workers", "3", "--json"),
        state / "log",
    )  # fmt: skip
    try:
        event = child.wait_for("listening", 60)
        yield event["address"], event["token_file"]
    finally:
        child.stop()


def worker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("worker", *arguments), capture_output=True, text=True, timeout=120, check=False
    )


def test_check_finds_everything_right(listening: tuple[str, str]) -> None:
    done = worker("check", listening[0], "--token-file", listening[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok: ") == 2


@pytest.mark.parametrize("what", ["check", "join"])
def test_a_wrong_token(listening: tuple[str, str], tmp_path: Path, what: str) -> None:
    (tmp_path / "token").write_text("not this one")
    done = worker(what, listening[0], "--token-file", str(tmp_path / "token"))
    assert done.returncode == ExitCode.TOKEN
    assert "token" in done.stderr


def test_a_missing_token_file(listening: tuple[str, str]) -> None:
    done = worker("join", listening[0], "--token-file", "/no/such/token")
    assert done.returncode == ExitCode.TOKEN
    assert "/no/such/token" in done.stderr


def test_a_taken_name(listening: tuple[str, str], tmp_path: Path) -> None:
    address, token = listening
    first = Child(
        "first",
        command("worker", "join", address, "--token-file", token, "--name", "twin", "--json"),
        tmp_path / "log",
    )
    try:
        first.wait_for("joined", 60)
        done = worker("join", address, "--token-file", token, "--name", "twin")
    finally:
        first.stop()
    assert done.returncode == ExitCode.NAME_TAKEN
    assert "twin" in done.stderr


def test_no_coordinator_is_retried_and_then_said(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    (tmp_path / "token").write_text("x")
    done = worker("join", address, "--token-file", str(tmp_path / "token"), "--join-timeout", "1.5", "--json")
    assert done.returncode == ExitCode.UNREACHABLE
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(e["event"] == "waiting" for e in events) >= 2
    assert address in done.stderr


def test_a_data_port_in_use(listening: tuple[str, str]) -> None:
    address, token = listening
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        taken = f"127.0.0.1:{s.getsockname()[1]}"
        for what in ("join", "check"):
            done = worker(what, address, "--token-file", token, "--bind", taken)
            assert done.returncode == ExitCode.PORT_IN_USE
            assert taken in done.stderr


def test_leaving_this_machine_in_the_clear_needs_to_be_said() -> None:
    done = worker("join", "10.1.2.3:29520")
    assert done.returncode == ExitCode.INSECURE_BIND
    assert "--insecure" in done.stderr


def test_an_unknown_device_is_named(listening: tuple[str, str]) -> None:
    done = worker("join", listening[0], "--token-file", listening[1], "--device", "cuda:77")
    assert done.returncode == ExitCode.DEVICE
    assert "cuda:77" in done.stderr
