"""What can be ordered is what the table says, it happens once, and does what it says."""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from worker import faults as f
from worker import faulty_sockets

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's sockets are Linux's")


def text_of(how: str) -> str:
    return f"1:0:vote@3:{how}" + ("=2" if f.HOWS[how].timed else "")


@pytest.mark.parametrize("how", f.HOWS)
@pytest.mark.parametrize("phase", f.PHASES)
def test_every_way_can_be_ordered_for_every_phase(how: str, phase: f.Phase) -> None:
    fault = f.parse_fault(text_of(how).replace("vote", phase))
    assert fault == f.Fault(1, 0, phase, 3, how, 2.0 if f.HOWS[how].timed else 0.0)


@pytest.mark.parametrize(
    "text",
    ["", "1:0:vote@3", "1:0:vote@3:explode", "1:0:lunch@3:kill", "1:0:vote@3:stop", "1:0:vote@3:kill=2",
     "1:0:vote@3:stop=-1", "1:0:vote@3:clock=-5", "1:0:vote@3:full=x", "x:0:vote@3:kill", "1:0:vote@3:kill "],
)  # fmt: skip
def test_what_cannot_be_ordered_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="found the fault"):
        f.parse_fault(text)


def test_a_star_is_any_plan_and_any_rank() -> None:
    fault = f.parse_fault("*:*:vote@3:kill")
    assert fault.is_at("vote", 3, plan_version=7, rank=2)
    assert not fault.is_at("vote", 4, plan_version=7, rank=2)
    assert not f.parse_fault("*:1:vote@3:kill").is_at("vote", 3, plan_version=7, rank=2)


def test_what_needs_linux_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert f.parse_fault("1:0:vote@3:kill").how == "kill"
    with pytest.raises(ValueError, match="on darwin, required Linux for reset"):
        f.parse_fault("1:0:vote@3:reset")


def test_a_fault_happens_once_at_its_moment_and_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    happened: list[tuple[float, int]] = []
    said: list[dict[str, Any]] = []
    how = f.How("for this test", lambda seconds, port: happened.append((seconds, port)), timed=True)
    monkeypatch.setitem(f.HOWS, "stop", how)
    ordered = f.Faults(
        [f.parse_fault("1:0:vote@3:stop=2")], 29500, lambda _, **told: said.append(told), tmp_path
    )
    for moment in ((3, 1, 1), (4, 1, 0), (3, 2, 0)):
        ordered.reached("vote", *moment)
    ordered.reached("commit", 3, 1, 0)
    assert happened == []
    ordered.reached("vote", 3, 1, 0)
    ordered.reached("vote", 3, 1, 0)
    assert happened == [(2.0, 29500)]
    assert [(s["how"], s["phase"], s["step"]) for s in said] == [("stop", "vote", 3)]


def test_who_takes_the_place_does_not_meet_the_fault_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of the workers that share a directory the first meets a rank's fault, under whatever plan."""
    happened: list[str] = []
    monkeypatch.setitem(f.HOWS, "kill", f.How("for this test", lambda *_: happened.append("kill")))
    told = [f.parse_fault("*:1:vote@3:kill"), f.parse_fault("*:1:commit@5:kill")]
    first, second = (f.Faults(told, 29500, lambda *_, **__: None, tmp_path / "tokens") for _ in range(2))
    first.reached("vote", 3, 1, 1)
    second.reached("vote", 3, 2, 1)
    assert happened == ["kill"]
    second.reached("commit", 5, 2, 1)
    first.reached("commit", 5, 2, 1)
    assert happened == ["kill", "kill"]


def test_a_full_disk_takes_nothing_more_until_there_is_room(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    f.HOWS["full"].does(3600.0, 0)
    try:
        out = (tmp_path / "file").open("wb", buffering=0)
        with out, pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            out.write(b"x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (tmp_path / "file").write_bytes(b"x")


def test_the_clock_on_the_wall_jumps_and_the_other_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", time.time)
    wall, steady = time.time(), time.monotonic()
    f.HOWS["clock"].does(86400.0, 0)
    assert time.time() > wall + 80000
    assert time.monotonic() >= steady


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """(connected, accepted)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
        with one, other:
            for s in (one, other):
                s.settimeout(20.0)
            yield one, other


@linux
def test_the_sessions_connection_is_told_from_the_others_by_the_coordinators_port(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    one, other = connection
    port = one.getpeername()[1]
    session = list(faulty_sockets.connections(port, session=True))
    tensors = list(faulty_sockets.connections(port, session=False))
    assert [s.getsockname() for s in session] == [one.getsockname()]
    assert other.getsockname() in [s.getsockname() for s in tensors]
    assert one.getsockname() not in [s.getsockname() for s in tensors]
    for s in (*session, *tensors):
        s.close()
    one.send(b"still there")
    assert other.recv(64) == b"still there"


@linux
def test_a_muted_connection_hears_nothing_until_it_is_not(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    one, other = connection
    port = other.getpeername()[1]  # so `one` is muted, and `other` is "the session"
    muted = faulty_sockets.mute(port)
    one.setblocking(False)
    other.send(b"x")
    with pytest.raises(BlockingIOError):
        one.recv(1)
    faulty_sockets.unmute(muted)
    one.settimeout(20.0)
    assert one.recv(1) == b"x"  # sent again by TCP


@linux
def test_a_connection_is_made_of_garbage_or_reset(connection: tuple[socket.socket, socket.socket]) -> None:
    _, other = connection
    port = other.getpeername()[1]
    faulty_sockets.corrupt(port)
    assert other.recv(1024, socket.MSG_WAITALL) == b"\xa5" * 1024
    faulty_sockets.reset(port, session=False)
    with pytest.raises(ConnectionResetError):
        other.recv(64)


@linux
def test_a_slow_connection_is_as_fast_as_before_in_the_end(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    one, other = connection
    slowed = faulty_sockets.slow(other.getpeername()[1], 20_000)
    assert one.getsockopt(socket.SOL_SOCKET, 47) == 20_000
    faulty_sockets.as_fast_as_before(slowed)
    assert one.getsockopt(socket.SOL_SOCKET, 47) in (-1, 0xFFFFFFFF)
