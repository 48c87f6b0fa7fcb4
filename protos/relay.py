"""A relay for workers that cannot reach each other: it joins two connections and passes their bytes on.

    dialler --outbound--> relay <--outbound-- listener        (both are workers; neither accepts anything)

A listener leaves a few connections waiting under its public key; a dialler names the key it wants and is
joined with one of them. What passes is the CURVE connection of the two ends, so the relay sees neither
tensors nor keys and can change nothing unnoticed; it can only delay, count and cut. Whoever connects proves
that it has the run's relay key by answering a challenge, so that the relay carries nobody else's traffic.

    relay -> worker   nonce, 32 bytes
    worker -> relay   "ISTR1", role ("D" or "L"), public key 40, HMAC-SHA256(relay key, nonce role public key)
    relay -> worker   "1" once joined with the other end; the connection closes when it is not to be

Every count and wait has its cap here. Knows no run, no plan and no frame.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import signal
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from protos.splice import COPY_BYTES, Ends, closed, splice

log = logging.getLogger(__name__)

MAGIC = b"ISTR1"
DIAL, LISTEN = b"D", b"L"
NONCE_BYTES, KEY_BYTES, DIGEST_BYTES = 32, 40, 32
HELLO_BYTES = len(MAGIC) + 1 + KEY_BYTES + DIGEST_BYTES
JOINED = b"1"
HELLO_S = 10.0
"""For the answer to the challenge."""
DIAL_S = 20.0
"""A dialler waits this long for the other end."""
MAX_CONNECTIONS = 2048
MAX_WAITING = 64
"""Connections that wait under one public key; the oldest makes way."""
LOGGED_REFUSALS = 20


def answer(key: bytes, nonce: bytes, role: bytes, public: bytes) -> bytes:
    """What a worker sends after the relay's nonce."""
    return MAGIC + role + public + hmac.digest(key, nonce + role + public, hashlib.sha256)


@dataclass(slots=True, eq=False)
class _Spot:
    """A listener that waits: `gone` ends when it leaves, `over` when the dialler that took it is done."""

    ends: Ends
    gone: asyncio.Task[bytes]
    over: asyncio.Future[None]
    taken: bool = False


class Relay:
    """Listens between `listen` and `close`."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._waiting: dict[bytes, deque[_Spot]] = {}
        self._changed = asyncio.Condition()
        self.joined = 0
        """Pairs that were joined so far."""
        self.refused = 0
        self.n_bytes = 0
        """Passed on so far, both ways."""

    async def listen(self, bind: str) -> str:
        """Listen on host:port; the address with its real port. Raises OSError."""
        host, _, port = bind.rpartition(":")
        self._server = await asyncio.start_server(self._accept, host.strip("[]"), int(port), limit=COPY_BYTES)
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Cut everything."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = Ends(reader, writer)
        if self._closing or len(self._tasks) >= MAX_CONNECTIONS:
            self.refused += 1
            ends.close()
            return
        # A task of our own: asyncio logs one of its server's that is cancelled.
        task = asyncio.create_task(self._serve(ends))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: ends.close())  # also of one that was cancelled before it began

    async def _serve(self, ends: Ends) -> None:
        ends.tune()
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):  # it left, or never spoke
            await self._welcome(ends)

    async def _welcome(self, ends: Ends) -> None:
        nonce = secrets.token_bytes(NONCE_BYTES)
        ends.writer.write(nonce)
        hello = await asyncio.wait_for(ends.reader.readexactly(HELLO_BYTES), HELLO_S)
        role, public = hello[5:6], hello[6 : 6 + KEY_BYTES]
        fits = hmac.compare_digest(hello, answer(self._key, nonce, role, public))
        if not fits or role not in (DIAL, LISTEN):
            self.refused += 1
            if self.refused <= LOGGED_REFUSALS:
                log.warning("refused %s: it has not this run's key", ends.writer.get_extra_info("peername"))
        elif role == LISTEN:
            await self._keep(ends, public)
        else:
            await self._join(ends, public)

    async def _keep(self, ends: Ends, public: bytes) -> None:
        """Leave the listener waiting; the dialler that takes it passes its bytes."""
        waiting = self._waiting.setdefault(public, deque())
        if len(waiting) >= MAX_WAITING:
            waiting[0].gone.cancel()
        # A listener says nothing before it is joined: what can be read is its end.
        gone = asyncio.create_task(ends.reader.read(1))
        spot = _Spot(ends, gone, asyncio.get_running_loop().create_future())
        waiting.append(spot)
        async with self._changed:
            self._changed.notify_all()
        try:
            await asyncio.wait([gone])
            if spot.taken:
                await spot.over
        finally:
            gone.cancel()
            with suppress(ValueError):
                waiting.remove(spot)
            if not waiting and self._waiting.get(public) is waiting:
                del self._waiting[public]

    async def _join(self, ends: Ends, public: bytes) -> None:
        async with asyncio.timeout(DIAL_S), self._changed:
            await self._changed.wait_for(lambda: bool(self._waiting.get(public)))
            spot = self._waiting[public].popleft()
        spot.taken = True
        spot.gone.cancel()
        try:
            for side in (spot.ends, ends):
                side.writer.write(JOINED)
            self.joined += 1
            await splice(ends, spot.ends, self._count)
        finally:
            if not spot.over.done():
                spot.over.set_result(None)

    def _count(self, n_bytes: int) -> None:
        self.n_bytes += n_bytes


async def serve(bind: str, key: bytes, say: Callable[..., None]) -> None:
    """Relay until SIGINT or SIGTERM, and say then what was passed on. Raises OSError."""
    relay = Relay(key)
    over = asyncio.Event()
    say("listening", address=await relay.listen(bind))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    try:
        await over.wait()
    finally:
        await relay.close()
        say("stopped", joined=relay.joined, refused=relay.refused, n_bytes=relay.n_bytes)
