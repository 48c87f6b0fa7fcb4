"""What `worker` says to wrong words on its command line, before it connects to anybody."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from scheduler.exit_codes import ExitCode
from worker.cli import app

HERE = "127.0.0.1:29520"


def refused(*words: str, code: ExitCode) -> str:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, result.output
    return result.stderr.strip()


@pytest.mark.parametrize(
    ("words", "what", "found"),
    [
        (("join", "127.0.0.1"), "the coordinator's address", "127.0.0.1"),
        (("check", f"{HERE},x:99999"), "the coordinator's address", "x:99999"),
        (("join", HERE, "--bind", ":29530"), "--bind", ":29530"),
        (("join", HERE, "--advertise", "here"), "--advertise", "here"),
        (("relay", "--bind", "127.0.0.1:²"), "--bind", "127.0.0.1:²"),
    ],
)
def test_an_address_without_host_or_port_is_named(words: tuple[str, ...], what: str, found: str) -> None:
    said = refused(*words, code=ExitCode.USAGE)
    assert said == f"error: {what}: found {found!r}, required HOST:PORT with a port of 0 .. 65535"


def test_a_token_that_cannot_be_read_says_why_once(tmp_path: Path) -> None:
    path = tmp_path / "token"
    said = refused("join", HERE, "--token-file", str(path), code=ExitCode.TOKEN)
    assert said.endswith(
        f"{path}: found no token to read (No such file or directory), required the coordinator's"
    )


@pytest.mark.parametrize("words", [("export", "{}", "out"), ("generate", "{}")])
def test_what_is_no_checkpoint_is_told_what_one_looks_like(words: tuple[str, ...], tmp_path: Path) -> None:
    said = refused(*(word.format(tmp_path) for word in words), code=ExitCode.CHECKPOINT_CORRUPT)
    assert said.startswith(f"error: {tmp_path}: found no manifest.json to read (No such file or directory)")
    assert "checkpoints/step-" in said
