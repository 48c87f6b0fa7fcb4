"""The header: what goes in comes out, and nothing that was changed on the way gets through."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.striping import Assembly, split
from worker.transport import KINDS, Frame, FrameError, FrameKey
from worker.wire import (
    MAX_CHUNK_BYTES,
    MAX_DIMENSION,
    MAX_DIMENSIONS,
    MAX_PARTS,
    Ack,
    Header,
    pack_ack,
    pack_header,
    run_hash,
    unpack_ack,
    unpack_header,
)

CAP = 1 << 30
I32 = st.integers(-(2**31), 2**31 - 1)
U32, U64, I64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1)
NAMES = st.text(max_size=16)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    lengths = tuple(draw(st.lists(st.integers(0, CAP // MAX_PARTS), max_size=MAX_PARTS)))
    offset = draw(st.integers(0, sum(lengths)))
    return Header(
        run=draw(U64),
        plan_version=draw(U64),
        key=FrameKey(draw(st.sampled_from(KINDS)), draw(U64), draw(I32), draw(U32), draw(I64)),
        dst=draw(U32),
        codec=draw(NAMES),
        dtype=draw(NAMES),
        shape=tuple(draw(st.lists(st.integers(0, MAX_DIMENSION), max_size=MAX_DIMENSIONS))),
        lengths=lengths,
        buffer_version=draw(I64),
        frame=draw(U64),
        offset=offset,
        chunk_bytes=draw(st.integers(0, min(sum(lengths) - offset, MAX_CHUNK_BYTES))),
        payload_crc=draw(st.none() | U32),
    )  # fmt: skip


SAMPLE = Header(
    run_hash("r1"), 3, FrameKey("gradient", 7, 1, 2, 5), 4, "quantize4", "float32", (2, 8, 16), (512, 64),
    buffer_version=9, frame=11, offset=128, chunk_bytes=256,
)  # fmt: skip


@given(headers())
def test_a_header_comes_back_as_it_was(header: Header) -> None:
    assert unpack_header(pack_header(header), CAP) == header


@given(headers(), st.data())
@settings(max_examples=300)
def test_one_changed_byte_is_always_noticed(header: Header, data: st.DataObject) -> None:
    packed = bytearray(pack_header(header))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FrameError):
        unpack_header(bytes(packed), CAP)


def test_every_truncation_is_noticed() -> None:
    packed = pack_header(SAMPLE)
    for n in range(len(packed)):
        with pytest.raises(FrameError):
            unpack_header(packed[:n], CAP)
    with pytest.raises(FrameError):
        unpack_header(packed + b"\0", CAP)


@given(st.binary(max_size=2000))
def test_noise_is_a_frame_error_and_nothing_else(noise: bytes) -> None:
    with pytest.raises(FrameError):
        unpack_header(noise, CAP)
    with pytest.raises(FrameError):
        unpack_ack(noise)


def forged(**at: int) -> bytes:
    """SAMPLE with single bytes set and a checksum that is right again."""
    body = bytearray(pack_header(SAMPLE)[:-4])
    for name, value in at.items():
        body[int(name[1:])] = value
    return bytes(body) + struct.pack("<I", zlib.crc32(body))


def test_errors_say_what_was_found_and_what_is_required() -> None:
    with pytest.raises(FrameError, match=r"version: found 9, required 1"):
        unpack_header(forged(b4=9), CAP)
    with pytest.raises(FrameError, match=r"kind: found number 200"):
        unpack_header(forged(b6=200), CAP)
    with pytest.raises(FrameError, match=r"required b'ISTH'"):
        unpack_header(forged(b0=0), CAP)
    with pytest.raises(FrameError, match=r"found a payload of 576 bytes, required at most 500"):
        unpack_header(pack_header(SAMPLE), 500)
    with pytest.raises(FrameError, match=r"chunk of 256 bytes, required at most 100"):
        unpack_header(pack_header(SAMPLE), CAP, 100)
    with pytest.raises(FrameError, match=r"chunk of 256 bytes at 500 of a payload of 576"):
        unpack_header(pack_header(replace(SAMPLE, offset=500)), CAP)
    with pytest.raises(FrameError, match=r"dimensions: found 17, required at most 16"):
        pack_header(replace(SAMPLE, shape=(1,) * 17))
    with pytest.raises(FrameError, match=r"cannot hold"):
        pack_header(replace(SAMPLE, dst=-1))


@given(U64, U64, U32, st.sampled_from(KINDS), U64)
def test_a_credit_comes_back_as_it_was(run: int, version: int, rank: int, kind: str, n: int) -> None:
    ack = Ack(run, version, rank, kind, n)
    packed = bytearray(pack_ack(ack))
    assert unpack_ack(bytes(packed)) == ack
    packed[run % len(packed)] ^= 1
    with pytest.raises(FrameError):
        unpack_ack(bytes(packed))


def test_run_hash_is_stable_between_processes() -> None:
    assert run_hash("r1") == run_hash("r1") != run_hash("r2")
    assert run_hash("") == int.from_bytes(bytes.fromhex("e4a6a0577479b2b4"), "little")


@given(
    st.lists(st.binary(max_size=200), max_size=4),
    st.integers(1, 64),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_pieces_in_any_order_make_the_frame_again(
    parts: list[bytes], chunk: int, crc: bool, rng: object
) -> None:
    key = FrameKey("shard", 1, 0, 0)
    frame = Frame(key, 1, 1, "c", "d", (3,), tuple(memoryview(p) for p in parts), 2)
    messages = list(split(frame, 5, 1, chunk, crc))
    rng.shuffle(messages)  # type: ignore[attr-defined]
    found: Frame | None = None
    assembly: Assembly | None = None
    for head, *pieces in messages:
        assert found is None
        header = unpack_header(bytes(head), CAP)
        assembly = assembly or Assembly(header)
        room = assembly.room(header)
        assert room is not None
        assert [r.nbytes for r in room] == [memoryview(p).nbytes for p in pieces]
        for into, piece in zip(room, pieces, strict=True):
            into[:] = piece
        if assembly.done(header):
            found = assembly.frame()
        assert assembly.room(header) is None  # the same piece twice
    assert found is not None
    assert [bytes(p) for p in found.payload] == parts
    assert (found.key, found.shape, found.buffer_version) == (key, (3,), 2)
