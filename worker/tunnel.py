"""A worker's two ends of the relay: connections that wait there for it, and local ports that lead to peers.

A peer that cannot be reached is given a port on loopback; whatever connects there comes out at the peer's own
data address, by way of the relay (`relay.py`). CURVE runs from end to end through it, so a port is as good as
the peer's address and gives nobody more. One thread with a loop of its own, so that the session's heartbeats
do not wait for tensors. Knows no plan; who needs the relay is decided by whoever asks for a port.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from protos.relay import DIAL, JOINED, LISTEN, NONCE_BYTES, answer
from protos.splice import COPY_BYTES, Ends, closed, connect, splice

log = logging.getLogger(__name__)

SPARE = 4
"""Connections kept waiting at the relay; one that is taken is replaced at once."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0
CALL_S = 10.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}

T = TypeVar("T")


class Tunnels:
    """Waits at the relay until `close`; `own` is the host:port that this worker's endpoint listens on."""

    def __init__(self, relay: str, key: bytes, public: bytes, own: str) -> None:
        host, _, port = own.rpartition(":")
        self._relay, self._key, self._public = relay, key, public
        self._own = f"{_EVERYWHERE.get(host, host)}:{port}"
        self._ports: dict[bytes, str] = {}
        self._servers: list[asyncio.Server] = []
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="tunnels", daemon=True)
        self._thread.start()
        for _ in range(SPARE):
            self._loop.call_soon_threadsafe(self._spawn, self._wait_at_relay())

    def port_to(self, public: bytes) -> str:
        """host:port on this machine from where the peer of this public key is reached. Any thread."""
        return self._ask(self._port_to(public))

    def close(self) -> None:
        """Cut everything. Idempotent."""
        if self._loop.is_closed():
            return
        self._ask(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _ask(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    # ---- in the loop

    def _spawn(self, work: Coroutine[Any, Any, None], owned: Ends | None = None) -> None:
        """Run `work`; the connection it owns is closed after it, also if it never began."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if owned is not None:
            task.add_done_callback(lambda _: owned.close())

    async def _close(self) -> None:
        self._closing = True
        for server in self._servers:
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await closed()

    async def _hello(self, role: bytes, public: bytes) -> Ends:
        """A connection to the relay that has said what it is for. Raises OSError, IncompleteReadError."""
        ends = await connect(self._relay)
        try:
            nonce = await ends.reader.readexactly(NONCE_BYTES)
            ends.writer.write(answer(self._key, nonce, role, public))
        except BaseException:
            ends.close()
            raise
        return ends

    async def _wait_at_relay(self) -> None:
        """Keep one connection waiting; pass each that is taken on to the endpoint."""
        wait_s = FIRST_WAIT_S
        while True:
            try:
                ends = await self._hello(LISTEN, self._public)
            except (OSError, asyncio.IncompleteReadError) as e:
                if wait_s == FIRST_WAIT_S:
                    log.warning("the relay %s does not answer (%s); trying again", self._relay, e)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                continue
            try:
                taken = await ends.reader.readexactly(1)
            except (OSError, asyncio.IncompleteReadError):
                ends.close()
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                continue
            except asyncio.CancelledError:
                ends.close()
                raise
            wait_s = FIRST_WAIT_S
            if taken == JOINED:
                self._spawn(self._to_endpoint(ends), ends)
            else:
                ends.close()

    async def _to_endpoint(self, ends: Ends) -> None:
        with suppress(OSError):
            await splice(ends, await connect(self._own))

    async def _port_to(self, public: bytes) -> str:
        if public not in self._ports:

            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                local = Ends(reader, writer)
                if self._closing:
                    local.close()
                    return
                local.tune()
                self._spawn(self._dial(local, public), local)

            server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=COPY_BYTES)
            self._servers.append(server)
            self._ports[public] = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return self._ports[public]

    async def _dial(self, local: Ends, public: bytes) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            remote = await self._hello(DIAL, public)
            try:
                if await remote.reader.readexactly(1) == JOINED:
                    await splice(local, remote)
            finally:
                remote.close()
