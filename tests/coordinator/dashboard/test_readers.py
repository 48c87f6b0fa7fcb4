"""What the page refuses: wrong, expired and revoked tokens, other sites' pages, paths outside its folder."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from starlette.testclient import TestClient
from typer.testing import CliRunner

from coordinator.cli import app
from coordinator.dashboard import server
from coordinator.dashboard.attach import Where, opened_at
from coordinator.dashboard.board import Board
from coordinator.dashboard.guard import COOKIE, Readers, local_names, refusal
from coordinator.dashboard.server import STATIC, Dashboard
from coordinator.progress import line_of
from coordinator.tokens import UNREADABLE, Tokens

DATA = ("/api/run", "/api/steps", "/api/timeline", "/api/links", "/api/events", "/api/openapi", "/metrics",
        "/static/app.js", "/")  # fmt: skip


class Clock:
    at_s = 1000.0

    def __call__(self) -> float:
        return self.at_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[Tokens]:
    with closing(Tokens(tmp_path)) as opened:
        yield opened


@pytest.fixture
def token(tokens: Tokens) -> str:
    return tokens.create(1000.0, valid_s=60.0, purpose="dashboard")


@pytest.fixture
def asked(tokens: Tokens, tmp_path: Path, clock: Clock) -> TestClient:
    """Of a page that others can reach."""
    return TestClient(Dashboard(Board(job="j"), tmp_path, Readers(tokens, clock)).app)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_a_token_reads_until_it_expires(asked: TestClient, token: str, clock: Clock) -> None:
    clock.at_s = 1059.9
    assert asked.get("/api/run", headers=bearer(token)).status_code == 200
    clock.at_s = 1065.0
    for path in DATA:
        refused = asked.get(path, headers=bearer(token))
        assert refused.status_code == 401
        assert "expired 5 s ago" in refused.json()["error"]


@pytest.mark.parametrize("shown", ["", "wrong", "isd-", "isd-000000000000-" + "x" * 43, "x" * 5000])
def test_a_wrong_token_or_none_reads_nothing(asked: TestClient, token: str, shown: str) -> None:
    secret = token[:-1] + ("A" if token[-1] != "A" else "B")
    for path in DATA:
        for guess in (shown, secret):
            answer = asked.get(path, headers=bearer(guess))
            assert (answer.status_code, answer.json()["error"]) == (401, UNREADABLE)
    assert asked.get("/api/run", params={"token": shown}).status_code == 401
    asked.cookies.set(COOKIE, shown)
    assert asked.get("/api/run").status_code == 401


def test_a_token_that_was_revoked_reads_no_more(asked: TestClient, tokens: Tokens, token: str) -> None:
    assert asked.get("/api/run", headers=bearer(token)).status_code == 200
    tokens.revoke(tokens.list()[0].id, 1001.0)
    refused = asked.get("/api/run", headers=bearer(token))
    assert refused.status_code == 401
    assert "revoked" in refused.json()["error"]


def test_a_token_to_join_by_opens_no_page_and_the_pages_joins_nothing(
    asked: TestClient, tokens: Tokens, token: str
) -> None:
    joins = tokens.create(1000.0, uses=9, valid_s=60.0)
    for shown in (joins, joins.replace("ist-", "isd-")):
        assert asked.get("/api/run", headers=bearer(shown)).status_code == 401
    for shown in (token, token.replace("isd-", "ist-")):
        assert tokens.admit(shown, 1001.0, "a", b"a" * 32) != ""


def test_the_pages_cookie_ends_with_its_token_and_the_token_leaves_the_address(
    asked: TestClient, token: str, clock: Clock
) -> None:
    clock.at_s = 1020.0
    answer = asked.get(f"/?token={token}&run=a", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, ".?run=a")
    [cookie] = SimpleCookie(answer.headers["set-cookie"]).values()
    assert cookie.value == token
    assert cookie["max-age"] == "40"
    assert cookie["httponly"]
    assert cookie["samesite"] == "strict"
    assert not cookie["secure"]
    page = asked.get(f"/?token={token}")
    assert (page.status_code, page.url.query) == (200, b"")
    assert asked.get("/api/run").status_code == 200, "the cookie carries it from then on"
    clock.at_s = 1061.0
    assert asked.get("/api/run").status_code == 401


def test_over_tls_the_cookie_goes_over_tls_alone(
    tokens: Tokens, tmp_path: Path, token: str, clock: Clock
) -> None:
    shown = Dashboard(Board(), tmp_path, Readers(tokens, clock))
    client = TestClient(shown.app, base_url="https://testserver")
    answer = client.get(f"/runs?token={token}", follow_redirects=False)
    [cookie] = SimpleCookie(answer.headers["set-cookie"]).values()
    assert cookie["secure"]


def test_a_page_that_follows_the_run_is_left_when_its_token_ends(
    tokens: Tokens, tmp_path: Path, token: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PUSH_EVERY_S", 0.001)
    monkeypatch.setattr(server, "ASK_AGAIN_S", 0.002)
    shown = Dashboard(Board(), tmp_path, Readers(tokens, clock))

    async def follow() -> list[bytes]:
        told = []
        async for line in shown._stream(token):
            told.append(line)
            clock.at_s = 1061.0
        return told

    [told] = asyncio.run(follow())
    assert told.startswith(b"data: ")


def test_the_address_carries_a_token_with_an_end_that_is_said(tmp_path: Path) -> None:
    where = Where("0.0.0.0:0")
    assert not where.on_loopback
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        event = opened_at(where, listening, tmp_path, 3600.0, 1000.0)
        local = opened_at(Where("127.0.0.1:0"), listening, tmp_path / "none", 3600.0, 1000.0)
    assert event["until_s"] == 4600.0
    assert event["address"] in line_of(event)
    assert "until 1970-01-01T01:16+00:00" in line_of(event)
    assert local["address"] in line_of(local)
    given = event["address"].partition("?token=")[2]
    with closing(Tokens(tmp_path)) as tokens:
        assert tokens.refusal(given, 4599.0, purpose="dashboard") == ""
        assert "expired" in tokens.refusal(given, 4600.0, purpose="dashboard")
        assert tokens.list()[0].id == event["token_id"]
    assert "token" not in local["address"]
    assert not (tmp_path / "none").exists()


def test_the_commands_make_list_and_revoke_them(tmp_path: Path) -> None:
    def run(*args: str, code: int = 0) -> Any:
        done = CliRunner().invoke(app, ["tokens", *args, "--state-dir", str(tmp_path), "--json"])
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)

    made = run("create", "--for", "dashboard", "--valid", "2h")
    assert (made["for"], made["valid_s"]) == ("dashboard", 7200.0)
    listed = run("list")
    assert (listed["purpose"], listed["state"]) == ("dashboard", "valid")
    assert run("revoke", listed["id"])["id"] == listed["id"]
    assert run("list")["state"] == "revoked"
    assert "--uses: found 3" in run("create", "--for", "dashboard", "--uses", "3", code=2)["reason"]


@pytest.mark.parametrize(
    "path", ["/static/..%2Fserver.py", "/static/../server.py", "/static/nothing.js", "/etc/passwd",
             "/static/%2e%2e/guard.py", "/static//etc/passwd", "/static/..%5cserver.py", "/static/"],
)  # fmt: skip
def test_a_path_outside_the_static_folder_is_refused(tmp_path: Path, path: str) -> None:
    client = TestClient(Dashboard(Board(), tmp_path).app)
    assert (STATIC.parent / "server.py").exists()
    assert client.get(path).status_code == 404


CROSS_SITE = [
    ({"host": "localhost:8265", "sec-fetch-site": "cross-site"}, 403),
    ({"host": "localhost:8265", "sec-fetch-site": "same-site"}, 403),
    ({"host": "localhost:8265", "origin": "http://evil.example"}, 403),
    ({"host": "localhost:8265", "origin": "null"}, 403),
]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        *CROSS_SITE,
        ({"host": "localhost:8265"}, None),
        ({"host": "[::1]:8265"}, None),
        ({"host": "evil.example:8265"}, 421),
        (
            {"host": "localhost:8265", "sec-fetch-site": "same-origin", "origin": "http://localhost:8265"},
            None,
        ),
    ],
)
def test_on_this_machine_another_sites_page_is_refused(headers: dict[str, str], status: int | None) -> None:
    found = refusal(headers, local_names("127.0.0.1:8265"), None, "")
    assert (found[0] if found else None) == status


@pytest.mark.parametrize("headers", [headers for headers, _ in CROSS_SITE])
def test_another_sites_page_is_refused_also_with_a_good_token(
    asked: TestClient, token: str, headers: dict[str, str]
) -> None:
    asked.cookies.set(COOKIE, token)
    assert asked.get("/api/run", headers=headers).status_code == 403
    assert asked.get("/api/run").status_code == 200
