"""Bytes passed on between two connections, both ways, until one is gone. Knows nothing of what they are."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

COPY_BYTES = 256 << 10
"""Read at once, and what a connection may hold that the other end has not taken."""
IDLE_S = 30
"""After so long without traffic TCP asks whether the other end is there, which also keeps a NAT's entry."""


@dataclass(slots=True)
class Ends:
    """One connection, as asyncio has it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def close(self) -> None:
        with suppress(OSError, RuntimeError):
            self.writer.close()

    def tune(self) -> None:
        """Small messages (credits, echoes) are not held back, and a dead connection is noticed."""
        s = self.writer.get_extra_info("socket")
        if s is not None:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)


async def closed() -> None:
    """Let the loop do what closing left it to do, which takes some turns, before it is stopped."""
    for _ in range(4):
        await asyncio.sleep(0)


async def connect(host_port: str) -> Ends:
    """Raises OSError."""
    host, _, port = host_port.rpartition(":")
    ends = Ends(*await asyncio.open_connection(host.strip("[]"), int(port), limit=COPY_BYTES))
    ends.tune()
    return ends


async def splice(a: Ends, b: Ends, count: Callable[[int], None] = lambda _: None) -> None:
    """Pass bytes both ways; when one side ends, both are closed. `count` is told of every piece."""
    both = [asyncio.create_task(_copy(x, y, count)) for x, y in ((a, b), (b, a))]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        a.close()
        b.close()


async def _copy(source: Ends, target: Ends, count: Callable[[int], None]) -> None:
    with suppress(OSError):
        while data := await source.reader.read(COPY_BYTES):
            target.writer.write(data)
            count(len(data))
            await target.writer.drain()
