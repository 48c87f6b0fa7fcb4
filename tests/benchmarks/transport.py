"""How fast the data plane is: against a bare socket copy, and over a long link with window-limited flows.

    python -m tests.benchmarks.transport [--quick] [--out FILE]

Loopback: a process sends frames to another, over one plain TCP socket (`sendall`, `recv_into`) and
over the ZeroMQ transport (frames of the same size, taken as a worker takes them). Both read from and
write to 64 MiB of buffers in turn, as tensors come and go, so that neither lives in the cache. They
take turns; the best round of each counts. Goal: at least 0.7 of the bare socket for frames of 1 MiB
and more (a smaller one is shown: there the cost of a message shows).

Long link: a relay with a round trip of 100 ms, 60 MB/s, and a window of 256 KiB a flow, so that one
flow gets window / round trip = 2.6 MB/s. The same frames over 1, 4 and 16 streams. Goal: at least
0.7 of min(streams x window / round trip, 60 MB/s).

The last line is JSON; the exit code is 1 if a goal is missed.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from scheduler.trace import About, Node, Trace, steady
from sim.emulate import LinkShaper, ShapedNode, ShapeOptions
from tests.benchmarks.command import run as run_command
from worker.addresses import PeerAddress
from worker.transport import Frame, FrameKey
from worker.zmq_transport import DataEndpoint

KIB, MIB = 1 << 10, 1 << 20
SIZES = (256 * KIB, MIB, 4 * MIB, 16 * MIB)
GOAL = 0.7
JUDGED_BYTES = MIB
WORKING_SET_BYTES = 64 * MIB
RTT_S, LINK_BPS, WINDOW_BYTES = 0.1, 60e6, 256 * KIB
STREAMS = (1, 4, 16)
TIMEOUT_S = 120.0


# ---- the receiving process


def receive(pipe: Connection) -> None:
    """Obey (what, *arguments) until told to stop. Rank 1 of every plan."""
    endpoint = DataEndpoint("127.0.0.1:0")
    listener = socket.create_server(("127.0.0.1", 0))
    pipe.send((endpoint.address, listener.getsockname()[1]))
    while (order := pipe.recv())[0] != "stop":
        if order[0] == "socket":
            _, n_bytes, n = order
            connection, _ = listener.accept()
            pipe.send(take_bytes(connection, n_bytes, n))
            connection.close()
        else:
            _, version, sender, streams, n = order
            peers = {0: PeerAddress(sender)}
            transport = endpoint.open(version, 1, peers, run="bench", streams=streams, reach_timeout_s=None)
            pipe.send("open")
            for mb in range(n):
                transport.receive(FrameKey("activation", 0, mb, 0), TIMEOUT_S)
                if mb == 0:
                    pipe.send("first")
            pipe.send(time.monotonic())
            transport.close()
    endpoint.close()


def take_bytes(connection: socket.socket, n_bytes: int, n: int) -> float:
    """Receive n buffers; the clock when all are there."""
    views = buffers(n_bytes)
    for i in range(n):
        got, view = 0, views[i % len(views)]
        while got < n_bytes:
            got += connection.recv_into(view[got:])
    return time.monotonic()


def buffers(n_bytes: int) -> list[memoryview]:
    """Memory that was touched: as many buffers as make WORKING_SET_BYTES."""
    return [memoryview(bytearray(b"x" * n_bytes)) for _ in range(max(1, WORKING_SET_BYTES // n_bytes))]


# ---- the sending process


@dataclass
class Sender:
    """Rank 0, and what it needs of the other process."""

    pipe: Connection
    endpoint: DataEndpoint
    there: str
    port: int
    version: int = 0

    def over_socket(self, n_bytes: int, n: int) -> float:
        """Bytes a second."""
        views = buffers(n_bytes)
        self.pipe.send(("socket", n_bytes, n))
        with socket.create_connection(("127.0.0.1", self.port)) as s:
            start_s = time.monotonic()
            for i in range(n):
                s.sendall(views[i % len(views)])
            end_s: float = self.pipe.recv()
        return n * n_bytes / (end_s - start_s)

    def over_transport(self, n_bytes: int, n: int, streams: int = 1, via: str = "") -> float:
        """Bytes a second after the first frame, which connects and fills the pipe. `via`: another address."""
        self.version += 1
        self.pipe.send(("frames", self.version, self.endpoint.address, streams, n + 1))
        self.pipe.recv()
        peers = {1: PeerAddress(via or self.there)}
        transport = self.endpoint.open(self.version, 0, peers, run="bench", streams=streams)
        views = buffers(n_bytes)

        def send(mb: int) -> None:
            key = FrameKey("activation", 0, mb, 0)
            transport.send(
                Frame(key, 1, self.version, "identity", "uint8", (n_bytes,), (views[mb % len(views)],))
            )

        send(0)
        self.pipe.recv()
        start_s = time.monotonic()
        for mb in range(1, n + 1):
            send(mb)
        end_s: float = self.pipe.recv()
        transport.close()
        return n * n_bytes / (end_s - start_s)


# ---- the relay's process


def relay(pipe: Connection, target: str) -> None:
    """Shape rank 0 -> rank 1 (`target`) until the pipe closes."""
    one = steady(RTT_S, LINK_BPS)
    trace = Trace("long", {n: Node(n) for n in "ab"}, {("a", "b"): one, ("b", "a"): one}, About(0.5))

    async def serve() -> None:
        ends = [ShapedNode("a", "a", "127.0.0.1:9"), ShapedNode("b", "b", target)]
        async with LinkShaper(trace, ends, ShapeOptions(window_bytes=WINDOW_BYTES)) as shaper:
            pipe.send(shaper.routes["a"]["b"])
            await asyncio.to_thread(pipe.recv)

    asyncio.run(serve())


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(benchmark, __doc__, "fewer bytes, fewer rounds", arguments)


def benchmark(quick: bool) -> tuple[list[str], bool]:
    spawn = multiprocessing.get_context("spawn")
    near, far = spawn.Pipe()
    receiver = spawn.Process(target=receive, args=(far,), daemon=True)
    receiver.start()
    there, port = near.recv()
    endpoint = DataEndpoint("127.0.0.1:0")
    sender = Sender(near, endpoint, there, port)
    relay_near, relay_far = spawn.Pipe()
    shaper = spawn.Process(target=relay, args=(relay_far, there), daemon=True)
    try:
        loopback = compare(sender, rounds=5 if quick else 10, n_bytes=(128 if quick else 256) * MIB)
        shaper.start()
        long_link = stripe(sender, relay_near.recv(), seconds=3.0 if quick else 8.0)
        relay_near.send("stop")
    finally:
        near.send(("stop",))
        receiver.join(30)
        endpoint.close()
    return report(loopback, long_link)


def compare(sender: Sender, rounds: int, n_bytes: int) -> dict[int, tuple[float, float]]:
    """By frame size: (socket, transport) in bytes a second, the best of the rounds."""
    best = dict.fromkeys(SIZES, (0.0, 0.0))
    for _ in range(rounds):
        for size, (bare, ours) in best.items():
            n = n_bytes // size
            best[size] = (
                max(bare, sender.over_socket(size, n)),
                max(ours, sender.over_transport(size, n)),
            )
    return best


def stripe(sender: Sender, via: str, seconds: float) -> dict[int, tuple[float, float]]:
    """By streams: (what the link can carry on them, measured), bytes a second."""
    found = {}
    for streams in STREAMS:
        possible_Bps = min(streams * WINDOW_BYTES / RTT_S, LINK_BPS)
        n = max(8, round(possible_Bps * seconds / MIB))
        found[streams] = (possible_Bps, sender.over_transport(MIB, n, streams, via))
    return found


def report(
    loopback: dict[int, tuple[float, float]], long_link: dict[int, tuple[float, float]]
) -> tuple[list[str], bool]:
    missed = []
    lines = ["loopback, one stream", f"{'frame':>10}{'socket GB/s':>14}{'transport GB/s':>16}{'ratio':>8}"]
    for size, (bare, ours) in loopback.items():
        lines.append(f"{size // KIB:>6} KiB{bare / 1e9:14.2f}{ours / 1e9:16.2f}{ours / bare:8.2f}")
        if size >= JUDGED_BYTES and ours / bare < GOAL:
            missed.append(f"frames of {size // KIB} KiB: {ours / bare:.2f} of a bare socket")
    link = f"{RTT_S * 1e3:.0f} ms round trip, {LINK_BPS / 1e6:.0f} MB/s, {WINDOW_BYTES // KIB} KiB a flow"
    lines.append(f"a link of {link}")
    lines.append(f"{'streams':>10}{'possible MB/s':>14}{'transport MB/s':>16}{'ratio':>8}")
    for streams, (possible, ours) in long_link.items():
        lines.append(f"{streams:>10}{possible / 1e6:14.1f}{ours / 1e6:16.1f}{ours / possible:8.2f}")
        if ours / possible < GOAL:
            missed.append(f"{streams} streams: {ours / possible:.2f} of what the link carries")
    lines.append("; ".join(f"missed: {m}, required at least {GOAL}" for m in missed) or "all goals reached")
    figures = {
        "benchmark": "transport",
        "passed": not missed,
        "loopback_ratio": {str(size): round(ours / bare, 3) for size, (bare, ours) in loopback.items()},
        "long_link_MBps": {str(k): round(ours / 1e6, 2) for k, (_, ours) in long_link.items()},
    }
    lines.append(json.dumps(figures))
    return lines, bool(missed)


if __name__ == "__main__":
    sys.exit(main())
