"""Joined packets come apart as segmentation would have made them: every byte once, in its place."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.segments import HEADER_BYTES, TCP_V4, ones_sum, parse, part

SEGMENT, HEADERS = 100, 52  # an IP header of 20 bytes, a TCP header of 32
FIN, PSH, ACK, CWR = 1, 8, 16, 128
SEQUENCE = 0xFFFF_FFF0  # wraps after 16 bytes
SENT_FLAGS = FIN | PSH | ACK | CWR


def joined(payload: bytes, segment: int = SEGMENT) -> bytes:
    """A frame as a TUN device gives it."""
    ip = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        HEADERS + len(payload),
        0xFFFF,
        0x4000,
        64,
        6,
        0,
        b"\x0a\x63\0\1",
        b"\x0a\x63\0\2",
    )
    ip = ip[:10] + struct.pack("!H", 0xFFFF ^ ones_sum(ip)) + ip[12:]
    tcp = struct.pack("!HHIIBBHHH12x", 1000, 2000, SEQUENCE, 7, 0x80, SENT_FLAGS, 500, 0, 0)
    return struct.pack("=BBHHHH", 1, TCP_V4, HEADERS, segment, 20, 16) + ip + tcp + payload


def payload_of(frame: bytes) -> tuple[int, bytes, int]:
    """(where it begins in the stream, bytes, flags) after checking lengths and sums as a receiver does."""
    ip = frame[HEADER_BYTES:]
    assert struct.unpack_from("!H", ip, 2)[0] == len(ip)
    assert ones_sum(ip[:20]) == 0xFFFF
    pseudo = ip[12:20] + struct.pack("!HH", 6, len(ip) - 20)
    assert struct.unpack_from("!H", ip, 36)[0] in (0, ones_sum(pseudo))  # 0: as it was made above
    begin = (struct.unpack_from("!I", ip, 24)[0] - SEQUENCE) % 2**32
    return begin, ip[HEADERS:], ip[33]


def test_a_joined_frame_counts_as_its_packets_on_the_wire() -> None:
    packet = parse(joined(bytes(1037)))
    assert packet is not None
    assert packet.destination == b"\x0a\x63\0\2"
    assert (packet.n, packet.full_bytes, packet.last_bytes) == (11, 152, 89)
    assert packet.bytes_of(0, 11) == 1037 + 11 * HEADERS
    assert packet.bytes_of(0, 1) == 152
    assert packet.bytes_of(10, 11) == 89


@given(length=st.integers(101, 2000), cuts=st.sets(st.integers(1, 19), max_size=6))
def test_parts_carry_every_byte_once_and_in_its_place(length: int, cuts: set[int]) -> None:
    payload = bytes(i * 7 % 251 for i in range(length))
    packet = parse(joined(payload))
    assert packet is not None
    edges = [0, *sorted(c for c in cuts if c < packet.n), packet.n]
    at = 0
    for first, stop in pairwise(edges):
        frame = part(packet, first, stop)
        begin, carried, flags = payload_of(frame)
        assert begin == at
        assert carried == payload[at : at + len(carried)]
        assert bool(flags & (FIN | PSH)) == (stop == packet.n), "they belong to the last packet alone"
        assert bool(flags & CWR) == (first == 0), "it belongs to the first packet alone"
        again = parse(frame)
        assert again is not None
        assert again.n == stop - first
        assert again.bytes_of(0, again.n) == packet.bytes_of(first, stop)
        at += len(carried)
    assert at == length


def test_a_whole_packet_is_not_touched() -> None:
    frame = joined(bytes(300))
    packet = parse(frame)
    assert packet is not None
    assert part(packet, 0, 3) is frame


def test_a_plain_packet_stands_for_itself() -> None:
    frame = bytes(HEADER_BYTES) + joined(b"hello")[HEADER_BYTES:]
    packet = parse(frame)
    assert packet is not None
    assert (packet.n, packet.last_bytes) == (1, HEADERS + 5)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        bytes(9),
        bytes(HEADER_BYTES) + b"\x60" + bytes(39),  # IPv6
        joined(bytes(300))[: HEADER_BYTES + 30],  # ends within the TCP header
        joined(bytes(300))[: HEADER_BYTES + 9] + b"\x11" + joined(bytes(300))[HEADER_BYTES + 10 :],  # UDP
    ],
    ids=["empty", "half a header", "another protocol", "cut short", "joined, but no TCP"],
)
def test_what_is_no_packet_is_refused(frame: bytes) -> None:
    assert parse(frame) is None
