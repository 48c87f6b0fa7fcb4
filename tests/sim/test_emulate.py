"""The relay gives what the trace says: arithmetic without a clock, and bytes unchanged through sockets."""

from __future__ import annotations

import asyncio

import pytest

from scheduler.trace import About, Node, Trace, TraceError, series, steady
from sim.emulate import Link, LinkShaper, ShapedNode, ShapeOptions

MB = 1_000_000


def trace(bandwidth_Bps: float | None = 10 * MB, rtt_s: float = 0.1) -> Trace:
    one = steady(rtt_s, bandwidth_Bps)
    return Trace("t", {n: Node(n) for n in "ab"}, {("a", "b"): one, ("b", "a"): one}, About(0.5))


def link(t: Trace, **options: float) -> Link:
    return Link(t, "a", "b", ShapeOptions(**options), start_s=0.0)  # type: ignore[arg-type]


def test_one_transfer_takes_its_delay_and_its_bytes() -> None:
    arrive_s, _ = link(trace()).admit(MB, at_s=3.0, flow_free_s=0.0)
    assert arrive_s == pytest.approx(3.0 + 0.1 + 0.05)


def test_transfers_of_one_link_wait_for_each_other() -> None:
    shared = link(trace())
    arrivals = [shared.admit(MB, 0.0, 0.0)[0] for _ in range(5)]
    assert arrivals == pytest.approx([0.1 * n + 0.05 for n in range(1, 6)])


def test_a_flow_is_held_to_its_window_and_several_are_faster() -> None:
    # 100 kB in flight at 100 ms: 1 MB/s a flow on a link of 10 MB/s.
    one = link(trace(), window_bytes=100_000)
    free_s = 0.0
    for _ in range(10):
        arrive_s, free_s = one.admit(100_000, 0.0, free_s)
    assert arrive_s == pytest.approx(1.0 + 0.05)
    several = link(trace(), window_bytes=100_000)
    arrivals = [several.admit(100_000, 0.0, 0.0)[0] for _ in range(10)]
    assert max(arrivals) < 0.3


def test_scales_multiply_what_the_trace_says() -> None:
    arrive_s, _ = link(trace(), delay_scale=2.0, bandwidth_scale=0.5).admit(MB, 0.0, 0.0)
    assert arrive_s == pytest.approx(0.2 + 0.1)


def test_unknown_bandwidth_is_no_limit() -> None:
    assert link(trace(None)).admit(1000 * MB, 0.0, 0.0)[0] == pytest.approx(0.05)


def test_the_link_follows_the_trace_in_scaled_time() -> None:
    slow_then_fast = series([(0.0, 0.2, 1.0 * MB, None, None), (60.0, 0.02, None, None, None)])
    t = Trace("t", trace().nodes, {("a", "b"): slow_then_fast}, About(0.5))
    hurried = link(t, time_scale=10.0)
    assert hurried.now(5.9)[0] == pytest.approx(0.1)
    assert hurried.now(6.0)[0] == pytest.approx(0.01)


def test_bytes_pass_unchanged_in_both_directions() -> None:
    data = bytes(range(256)) * 4000

    async def scenario() -> bytes:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.readexactly(len(data)))[::-1])
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        nodes = [ShapedNode("w0", "a", "127.0.0.1:1"), ShapedNode("w1", "b", f"127.0.0.1:{port}")]
        async with LinkShaper(trace(rtt_s=0.01), nodes, ShapeOptions()) as shaper:
            host, _, relay = shaper.routes["w0"]["w1"].rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(relay))
            writer.write(data)
            back = await reader.read(-1)
            writer.close()
        server.close()
        return back

    assert asyncio.run(scenario()) == data[::-1]


def test_a_peer_that_is_not_there_closes_the_connection() -> None:
    async def scenario() -> bytes:
        nodes = [ShapedNode("w0", "a", "127.0.0.1:1"), ShapedNode("w1", "b", "127.0.0.1:1")]
        async with LinkShaper(trace(), nodes, ShapeOptions()) as shaper:
            host, _, relay = shaper.routes["w0"]["w1"].rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(relay))
            got = await reader.read(-1)
            writer.close()
            return got

    assert asyncio.run(scenario()) == b""


def test_places_the_trace_does_not_have_are_named() -> None:
    with pytest.raises(TraceError, match="Atlantis"):
        LinkShaper(trace(), [ShapedNode("w0", "Atlantis", "127.0.0.1:1")], ShapeOptions())
