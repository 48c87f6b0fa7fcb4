"""Links of this machine shaped like recorded ones: a relay in user space, without any privilege.

For every directed pair (src, dst) it listens on a port of loopback; src connects there instead of
to dst. Bytes src -> dst wait for the link's one-way delay and its rate, as the trace has them at
that moment; what comes back on the same connection takes the link dst -> src. A flow can be held
to window / round trip, as TCP's are on long links. Has no slow start and no loss.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations

from scheduler.trace import Trace, TraceError

READ_BYTES = 1 << 16
BUFFER_BYTES = 4 << 20
"""A direction of a connection holds at most this beyond what its delay keeps on the way."""


@dataclass(frozen=True, slots=True)
class ShapedNode:
    """A process: its name, the trace's node where it is, and the address that it listens on."""

    name: str
    place: str
    address: str


@dataclass(frozen=True, slots=True)
class ShapeOptions:
    """`*_scale` multiply what the trace says. `window_bytes`: of one flow; 0: flows have no limit."""

    delay_scale: float = 1.0
    bandwidth_scale: float = 1.0
    window_bytes: int = 0
    time_scale: float = 1.0
    """Seconds of the trace that pass in one second."""


class Link:
    """One directed link: its delay now, and when its rate lets the next bytes leave."""

    def __init__(self, trace: Trace, src: str, dst: str, options: ShapeOptions, start_s: float) -> None:
        self._trace, self._src, self._dst, self._options, self._start_s = trace, src, dst, options, start_s
        self._free_s = 0.0

    def now(self, at_s: float) -> tuple[float, float, float]:
        """(one-way delay in s, round trip in s, bandwidth in bytes/s) at `at_s` of the clock.

        What the trace does not know neither delays nor limits.
        """
        if self._src == self._dst:
            return 0.0, 0.0, float("inf")
        o = self._options
        state = self._trace.at((at_s - self._start_s) * o.time_scale, self._src, self._dst)
        bandwidth = float("inf") if state.bandwidth_Bps is None else state.bandwidth_Bps * o.bandwidth_scale
        return (state.one_way_s or 0.0) * o.delay_scale, (state.rtt_s or 0.0) * o.delay_scale, bandwidth

    def admit(self, n_bytes: int, at_s: float, flow_free_s: float) -> tuple[float, float]:
        """Take `n_bytes` at `at_s`: (when they arrive, when their flow may send again).

        The link serves first come, first served; the flow is held to its window beside that.
        """
        delay_s, rtt_s, bandwidth_Bps = self.now(at_s)
        begin_s = max(at_s, self._free_s, flow_free_s)
        self._free_s = begin_s + n_bytes / bandwidth_Bps
        window = self._options.window_bytes
        flow_s = begin_s + n_bytes * rtt_s / window if window else self._free_s
        return max(self._free_s, flow_s) + delay_s, flow_s


class _Pump:
    """One direction of one connection: read, wait for the link, write."""

    def __init__(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._link, self._reader, self._writer = link, reader, writer
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._wake = asyncio.Event()
        self._ended = False

    async def run(self) -> None:
        await asyncio.gather(self._take(), self._give())

    async def _take(self) -> None:
        flow_free_s = 0.0
        try:
            while data := await self._reader.read(READ_BYTES):
                now_s = time.monotonic()
                arrive_s, flow_free_s = self._link.admit(len(data), now_s, flow_free_s)
                self._waiting.append((arrive_s, data))
                self._wake.set()
                # Beyond what is on the way, the sender waits as it would for a full link.
                ahead_s = arrive_s - self._link.now(now_s)[0] - now_s
                if ahead_s > 0.02:
                    await asyncio.sleep(ahead_s - 0.01)
        except OSError:
            pass  # a process that was killed resets its connections; the other end is told by the close
        finally:
            self._ended = True
            self._wake.set()

    async def _give(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                if not self._waiting:
                    if self._ended:
                        break
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                due_s = self._waiting[0][0]
                wait_s = due_s - time.monotonic()
                if wait_s > 0.0005:
                    await asyncio.sleep(wait_s)
                now_s = time.monotonic() + 0.0005
                while self._waiting and self._waiting[0][0] <= now_s:
                    self._writer.write(self._waiting.popleft()[1])
                await self._writer.drain()
        with contextlib.suppress(OSError):
            self._writer.close()


def require_links(trace: Trace, places: Iterable[str]) -> None:
    """Raises TraceError unless the trace has all `places` and every link between two of them."""
    there = sorted(set(places))
    unknown = [p for p in there if p not in trace.nodes]
    if unknown:
        raise TraceError(
            f"found the places {', '.join(unknown)}, required nodes of {trace.name}: {', '.join(trace.nodes)}"
        )
    lacking = [pair for pair in permutations(there, 2) if pair not in trace.links]
    if lacking:
        raise TraceError(f"{trace.name}: found no link from {lacking[0][0]} to {lacking[0][1]}, required one")


class LinkShaper:
    """`async with LinkShaper(trace, nodes, options) as shaper: shaper.routes["w0"]["w1"]`."""

    def __init__(self, trace: Trace, nodes: list[ShapedNode], options: ShapeOptions) -> None:
        require_links(trace, [n.place for n in nodes])
        start_s = time.monotonic()
        self._nodes = nodes
        self._links = {
            (a.name, b.name): Link(trace, a.place, b.place, options, start_s)
            for a in nodes
            for b in nodes
            if a.name != b.name
        }
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.routes: dict[str, dict[str, str]] = {n.name: {} for n in nodes}
        """routes[src][dst] = "127.0.0.1:port" where src reaches dst."""

    async def __aenter__(self) -> LinkShaper:
        for src, dst in self._links:
            await self._listen(src, dst)
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self, src: str, dst: str) -> None:
        target = next(n.address for n in self._nodes if n.name == dst)
        host, _, port = target.rpartition(":")

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                far_reader, far_writer = await asyncio.open_connection(host, int(port))
            except OSError:
                writer.close()  # nobody there yet: the sender's socket tries again by itself
                return
            finally:
                self._tasks.discard(task)
            self._tasks.add(task)
            try:
                there = _Pump(self._links[src, dst], reader, far_writer)
                back = _Pump(self._links[dst, src], far_reader, writer)
                await asyncio.gather(there.run(), back.run())
            except asyncio.CancelledError:
                pass  # the shaper is closing
            finally:
                self._tasks.discard(task)
                for w in (writer, far_writer):
                    w.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=BUFFER_BYTES)
        self._servers.append(server)
        self.routes[src][dst] = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
