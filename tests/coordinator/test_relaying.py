"""The coordinator's own relay: it joins two who have the run's key, is told of, and is shown in status."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coordinator import events as e
from coordinator.cli import app
from coordinator.relaying import relay_beside
from protos.relay import DIAL, JOINED, LISTEN, NONCE_BYTES, answer
from protos.splice import Ends, connect
from scheduler.exit_codes import ExitCode

from .job import TEXT

KEY, PUBLIC = b"k" * 32, b"p" * 40


async def said(address: str, role: bytes) -> Ends:
    ends = await connect(address)
    nonce = await ends.reader.readexactly(NONCE_BYTES)
    ends.writer.write(answer(KEY, nonce, role, PUBLIC))
    return ends


def test_it_joins_two_beside_a_loop_that_does_something_else() -> None:
    async def both(address: str) -> bytes:
        listener, dialler = await said(address, LISTEN), await said(address, DIAL)
        assert await dialler.reader.readexactly(1) == await listener.reader.readexactly(1) == JOINED
        dialler.writer.write(b"tensors")
        found = await listener.reader.readexactly(7)
        for ends in (listener, dialler):
            ends.close()
        return found

    with relay_beside("127.0.0.1:0", KEY) as (address, relay):
        assert asyncio.run(asyncio.wait_for(both(address), 20.0)) == b"tensors"
        assert relay.joined == 1
    host, _, port = address.rpartition(":")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((host, int(port)), 1.0).close()


def test_a_taken_port_is_said_and_nothing_is_left_over() -> None:
    with relay_beside("127.0.0.1:0", KEY) as (address, _), pytest.raises(OSError, match="in use"):  # noqa: SIM117
        with relay_beside(address, KEY):
            raise AssertionError("it listens twice")


def test_a_relay_that_listens_everywhere_needs_an_address_to_be_reached_at(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(TEXT)
    argv = ["start", str(job), "--state-dir", str(tmp_path / "s"), "--relay-bind", "0.0.0.0:1"]
    result = CliRunner().invoke(app, argv)
    assert result.exit_code == ExitCode.USAGE
    assert "required --relay HOST:PORT" in result.output


def test_a_link_that_has_become_slower_is_still_relayed() -> None:
    link = e.LinkSample("b", 0.1, 1e6, flow_Bps=5e5, relayed=True)
    assert link.times(2.0) == e.LinkSample("b", 0.2, 5e5, flow_Bps=2.5e5, relayed=True)
