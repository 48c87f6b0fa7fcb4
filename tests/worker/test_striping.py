"""How frames are cut: every stream has its part, and no piece is tiny or above the cap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

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
    assert piece_bytes(1 << 20, 64, CAP) == MIN_PIECE_BYTES


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
