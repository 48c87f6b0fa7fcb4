"""How frames are cut: every stream has its part, and no piece is tiny or above the cap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.topology import Device, Topology
from scheduler.trace import About, Node, Trace, steady
from sim.emulate import Link, ShapeOptions
from worker.striping import MIN_PIECE_BYTES, piece_bytes, split
from worker.transport import Frame, FrameKey
from worker.wire import unpack_header

CAP = 1 << 19


@given(st.integers(0, 1 << 30), st.integers(1, 64))
def test_pieces_are_neither_tiny_nor_above_the_cap(frame_bytes: int, streams: int) -> None:
    assert MIN_PIECE_BYTES <= piece_bytes(frame_bytes, streams, CAP) <= CAP


def test_every_stream_has_a_part_of_a_frame_that_is_worth_it() -> None:
    assert piece_bytes(1 << 20, 4, CAP) == 1 << 18
    assert piece_bytes(1 << 20, 16, CAP) == 1 << 16
    assert piece_bytes(1 << 20, 64, CAP) == 1 << 14
    assert piece_bytes(8 << 10, 4, CAP) == MIN_PIECE_BYTES


@pytest.mark.parametrize("frame_bytes", [16 << 10, 60_000, 1 << 20])
def test_a_frame_takes_what_the_engine_predicts_where_flows_are_slow(frame_bytes: int) -> None:
    # A flow carries window / round trip = 160 kB/s of a link of 10 MB/s; a frame goes over four of them.
    streams, rtt_s = 4, 0.1
    even = steady(rtt_s, 1e7)
    trace = Trace("t", {n: Node(n) for n in "ab"}, {("a", "b"): even, ("b", "a"): even}, About(0.5))
    link = Link(trace, "a", "b", ShapeOptions(window_bytes=16_000), start_s=0.0)
    flows_s, arrived_s = [0.0] * streams, 0.0
    frame = Frame(
        FrameKey("activation", 0, 0, 0), 1, 1, "identity", "uint8", (frame_bytes,), (bytes_of(frame_bytes),)
    )
    for i, message in enumerate(split(frame, 0, 0, piece_bytes(frame_bytes, streams, CAP), False)):
        n_bytes = sum(map(len, message))
        there_s, flows_s[i % streams] = link.admit(n_bytes, 0.0, flows_s[i % streams])
        arrived_s = max(arrived_s, there_s)
    between = np.ones((2, 2))
    topology = Topology(
        (Device("a"), Device("b")), between * rtt_s / 2, between * 1e7, flow_Bps=between * 16_000 / rtt_s
    )
    predicted_s = topology.striped(streams).transfer_s(0, 1, frame_bytes)
    assert arrived_s == pytest.approx(predicted_s, rel=0.1)


def bytes_of(n: int) -> memoryview:
    return memoryview(bytes(n))


def test_a_cap_below_the_least_piece_is_kept() -> None:
    assert piece_bytes(1 << 20, 4, 8000) == 8000


@given(st.lists(st.binary(max_size=40), max_size=4), st.integers(1, 50))
def test_the_pieces_put_together_are_the_payload(parts: list[bytes], chunk_bytes: int) -> None:
    key = FrameKey("activation", 0, 0, 0)
    views = tuple(memoryview(p) for p in parts)
    frame = Frame(key, 1, 1, "identity", "uint8", (sum(map(len, parts)),), views)
    whole = bytearray(sum(map(len, parts)))
    for header, *pieces in split(frame, 0, 0, chunk_bytes, payload_crc=False):
        h = unpack_header(bytes(header), 1 << 20)
        data = b"".join(bytes(p) for p in pieces)
        assert len(data) == h.chunk_bytes
        whole[h.offset : h.offset + h.chunk_bytes] = data
    assert bytes(whole) == b"".join(parts)
