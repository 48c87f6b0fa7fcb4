"""The header is what was packed, or an error: nothing damaged is ever believed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.transport import KINDS, FrameError, FrameKey
from worker.wire import HEADER_BYTES, MAX_CHUNK_BYTES, MAX_FRAME_BYTES, Header, Message, pack, unpack

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
i32 = st.integers(-(2**31), 2**31 - 1)
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", max_size=8)
chunks = st.integers(0, MAX_CHUNK_BYTES)
headers = st.builds(
    Header,
    st.sampled_from(Message),
    st.builds(FrameKey, st.sampled_from(KINDS), u64, i32, i32, i32),
    dst=i32,
    plan_version=u64,
    codec=names,
    dtype=names,
    shape=st.lists(u32, max_size=6).map(tuple),
    buffer_version=u32,
    offset=st.integers(0, MAX_FRAME_BYTES - MAX_CHUNK_BYTES),
    total_bytes=st.just(MAX_FRAME_BYTES),
    chunk_bytes=chunks,
)
EXAMPLE = Header(
    Message.DATA, FrameKey("activation", 4, 2, 1), 3, 7, "identity", "float32", (2, 3), 0, 0, 24, 24
)


@given(headers)
def test_what_is_packed_is_unpacked(header: Header) -> None:
    assert unpack(pack(header)) == header


@given(headers, st.integers(0, HEADER_BYTES * 8 - 1))
def test_one_flipped_bit_is_always_noticed(header: Header, bit: int) -> None:
    data = bytearray(pack(header))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        unpack(bytes(data))


@given(st.binary(max_size=2 * HEADER_BYTES))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        unpack(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_bytes": MAX_FRAME_BYTES + 1}, "beyond what is allowed"),
        ({"offset": 20}, "beyond what is allowed"),
        ({"chunk_bytes": MAX_CHUNK_BYTES + 1, "total_bytes": MAX_FRAME_BYTES}, "beyond what is allowed"),
    ],
)
def test_lengths_are_checked_before_memory_is_taken(change: dict[str, int], message: str) -> None:
    with pytest.raises(FrameError, match=message):
        unpack(pack(replace(EXAMPLE, **change)))  # type: ignore[arg-type]


def test_what_no_header_can_carry_fails_at_the_sender() -> None:
    with pytest.raises(FrameError, match="at most 6"):
        pack(replace(EXAMPLE, shape=(1,) * 7))
    with pytest.raises(FrameError, match="no header can carry"):
        pack(replace(EXAMPLE, key=replace(EXAMPLE.key, kind="gossip")))
