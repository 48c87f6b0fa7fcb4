"""Join tokens: what lets in, how often, until when; and that a refusal tells a stranger nothing."""

from __future__ import annotations

import json
import sqlite3
import string
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from coordinator import tokens as tokens_module
from coordinator.access import seconds
from coordinator.cli import app
from coordinator.tokens import DATABASE, FORGET_S, UNKNOWN, Purpose, TokenError, Tokens
from deploy.processes import command
from scheduler.exit_codes import ExitCode

A, B, C = (name.encode() * 32 for name in "abc")
"""Proofs of three identities."""
PURPOSES: tuple[Purpose, ...] = ("join", "dashboard")


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[Tokens]:
    opened = Tokens(tmp_path)
    yield opened
    opened.close()


def changed(token: str) -> str:
    """Another secret of the same token."""
    return token[:-1] + ("A" if token[-1] != "A" else "B")


def test_one_use_is_one_worker_which_may_come_back(tokens: Tokens) -> None:
    token = tokens.create(100.0)
    assert tokens.admit(token, 101.0, "a", A) == ""
    assert "used up (1 of 1)" in tokens.admit(token, 102.0, "b", B)
    assert tokens.admit(token, 103.0, "a", A) == ""
    assert tokens.refusal(token, 104.0, A) == ""
    assert "used up" in tokens.refusal(token, 104.0)
    (info,) = tokens.list()
    assert (info.used, info.uses, info.names, info.state(104.0)) == (1, 1, ("a",), "used up")


def test_so_many_workers_as_it_has_uses(tokens: Tokens) -> None:
    token = tokens.create(0.0, uses=2)
    assert [tokens.admit(token, 1.0, n, p) for n, p in (("a", A), ("b", B))] == ["", ""]
    assert "used up (2 of 2)" in tokens.admit(token, 1.0, "c", C)


def test_it_ends_when_it_was_to_end(tokens: Tokens) -> None:
    token = tokens.create(1000.0, uses=9, valid_s=60.0)
    assert tokens.refusal(token, 1059.9) == ""
    assert "expired 5 s ago" in tokens.refusal(token, 1065.0)
    assert "expired" in tokens.admit(token, 1065.0, "a", A)
    assert tokens.list()[0].used == 0


def test_revoked_is_revoked_for_everybody(tokens: Tokens) -> None:
    token = tokens.create(0.0, uses=5)
    assert tokens.admit(token, 1.0, "a", A) == ""
    assert tokens.revoke(tokens.list()[0].id, 2.0).revoked_s == 2.0
    assert "revoked" in tokens.admit(token, 3.0, "a", A)
    assert tokens.revoke(tokens.list()[0].id, 9.0).revoked_s == 2.0
    with pytest.raises(TokenError, match=r"found no token 'nosuch'"):
        tokens.revoke("nosuch", 1.0)


def test_a_refusal_tells_a_stranger_nothing(tokens: Tokens) -> None:
    """Expired, used up, revoked, valid, or none at all: without the secret all are the same."""
    names = [tokens.create(0.0, valid_s=valid_s) for valid_s in (1.0, 500.0, 500.0, 500.0)]
    tokens.admit(names[1], 1.0, "a", A)
    tokens.revoke(tokens.list()[2].id, 1.0)
    never = f"ist-{'0' * 12}-{'x' * 43}"
    for token in (*map(changed, names), never, "", "guess", "ist-", "x" * 10_000):
        assert tokens.refusal(token, 100.0, A) == UNKNOWN
        assert tokens.admit(token, 100.0, "a", A) == UNKNOWN


def test_the_secret_is_nowhere_on_disk(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    token = tokens.create(0.0, label="for bob")
    tokens.admit(token, 1.0, "a", A)
    tokens.close()
    assert (tmp_path / DATABASE).stat().st_mode & 0o777 == 0o600
    stored = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert b"for bob" in stored
    assert token.rpartition("-")[2].encode() not in stored
    assert A not in stored


def test_two_coordinators_cannot_both_take_the_last_use(tmp_path: Path) -> None:
    """One file, two processes' connections: what one admits the other knows."""
    one, two = Tokens(tmp_path), Tokens(tmp_path)
    token = one.create(0.0)
    assert one.admit(token, 1.0, "a", A) == ""
    assert "used up" in two.admit(token, 1.0, "b", B)
    one.close()
    two.close()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"uses": 0}, "--uses: found 0"),
        ({"uses": 10**9}, "--uses"),
        ({"valid_s": 0.0}, "--valid: found 0 s"),
        ({"valid_s": float("nan")}, "--valid"),
        ({"valid_s": 1e12}, "36525 days at most"),
        ({"label": "x" * 65}, "--label"),
        ({"label": "a\nb"}, "--label"),
    ],
)
def test_a_token_that_cannot_be_is_refused(tokens: Tokens, wrong: dict[str, object], said: str) -> None:
    with pytest.raises(TokenError, match=said):
        tokens.create(0.0, **wrong)  # type: ignore[arg-type]


def test_there_is_an_end_to_how_many(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "MAX_TOKENS", 1)
    tokens.create(0.0)
    with pytest.raises(TokenError, match="required fewer"):
        tokens.create(0.0)


@pytest.mark.parametrize("proof", [b"", b"x" * 15, b"x" * 65])
def test_a_proof_of_identity_has_a_length(tokens: Tokens, proof: bytes) -> None:
    assert "proof of identity" in tokens.admit(tokens.create(0.0), 1.0, "a", proof)


@settings(max_examples=60, deadline=None)
@given(st.text(string.printable, max_size=80), st.binary(max_size=40))
def test_noise_is_refused_and_breaks_nothing(noise: str, proof: bytes) -> None:
    with TemporaryDirectory() as directory:
        tokens = Tokens(Path(directory))
        tokens.create(0.0)
        assert tokens.refusal(noise, 1.0, proof) == UNKNOWN
        tokens.close()


def test_durations_are_read_as_written() -> None:
    assert [seconds(t) for t in ("90s", "15m", "1.5h", "7d")] == [90.0, 900.0, 5400.0, 604800.0]
    for wrong in ("", "7", "d", "-1h", "1w", "1e3s", "7 d"):
        with pytest.raises(TokenError, match="--valid"):
            seconds(wrong)


def test_the_commands_make_list_and_revoke(tmp_path: Path) -> None:
    def run(*args: str) -> str:
        result = CliRunner().invoke(app, ["tokens", *args, "--state-dir", str(tmp_path)])
        assert result.exit_code == 0, result.output
        return result.stdout

    made = json.loads(run("create", "--uses", "3", "--valid", "2h", "--label", "lab", "--json"))
    assert (made["uses"], made["valid_s"]) == (3, 7200.0)
    listed = json.loads(run("list", "--json"))
    assert (listed["label"], listed["state"], listed["used"]) == ("lab", "valid", 0)
    assert made["token"].split("-")[1] == listed["id"]
    assert made["token"] not in run("list")
    assert "revoked" in run("revoke", listed["id"])
    assert " revoked " in run("list")
    again = CliRunner().invoke(app, ["tokens", "revoke", "0" * 12, "--state-dir", str(tmp_path)])
    assert again.exit_code == ExitCode.USAGE
    assert "tokens list" in again.stderr


def test_a_file_of_before_there_were_purposes_is_gone_on_with(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    token = tokens.create(0.0)
    tokens.close()
    before = sqlite3.connect(tmp_path / DATABASE)
    before.execute("ALTER TABLE tokens DROP COLUMN purpose")
    before.commit()
    before.close()
    tokens = Tokens(tmp_path)
    assert tokens.refusal(token, 1.0) == ""
    assert [t.purpose for t in tokens.list()] == ["join"]
    assert tokens.refusal(tokens.create(0.0, purpose="dashboard"), 1.0, purpose="dashboard") == ""
    tokens.close()


def test_dashboards_tokens_of_long_ago_are_forgotten(tokens: Tokens) -> None:
    for purpose in PURPOSES:
        tokens.create(0.0, valid_s=1.0, purpose=purpose)
    tokens.create(FORGET_S)
    assert len(tokens.list()) == 3
    tokens.create(FORGET_S + 2.0)
    assert [t.purpose for t in tokens.list()] == ["join"] * 3


def test_what_another_process_revokes_is_revoked_here(tmp_path: Path) -> None:
    """The coordinator has the file open twice, at its door and for its page, while a person revokes."""
    door, page = Tokens(tmp_path), Tokens(tmp_path)
    token = page.create(0.0, valid_s=3e9, purpose="dashboard")
    assert door.refusal(token, 1.0, purpose="dashboard") == ""
    for words in (["list"], ["revoke", page.list()[0].id]):  # who ends first must leave the log to others
        asked = command("coordinator", "tokens", *words, "--state-dir", str(tmp_path))
        done = subprocess.run(asked, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for opened in (door, page):
        assert "revoked" in opened.refusal(token, 1.0, purpose="dashboard")
        opened.close()
