"""The header of a frame on the wire: a fixed struct, a short tail, a checksum over both.

    magic 4s | version B | flags B | kind B | codec length B | dtype length B | dimensions B | parts B | 0 B
    run Q | plan version Q | sender I | destination I | step Q | micro-batch i | tag q | buffer version q
    frame Q | chunk offset Q | chunk bytes I | payload crc32 I          (all little-endian)
    codec | dtype | dimensions x Q | lengths of the payload's parts x Q | crc32 I of everything before

A frame above the chunk size travels as several messages, each with the whole header, so that any
chunk may come first, on any stream. Every length is checked before memory is taken. Knows nothing
of sockets; refuses to look into payloads.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass

from worker.transport import KINDS, Frame, FrameError, FrameKey

MAGIC = b"ISTH"
ACK_MAGIC = b"ISTA"
HEADER_VERSION = 1
FLAG_PAYLOAD_CRC = 1

MAX_HEADER_BYTES = 1024
MAX_NAME_BYTES = 128
MAX_DIMENSIONS = 16
MAX_PARTS = 16
MAX_DIMENSION = 1 << 48
MAX_CHUNK_BYTES = 16 << 20

_FIXED = struct.Struct("<4sBBBBBBBBQQIIQiqqQQII")
_CRC = struct.Struct("<I")
_ACK = struct.Struct("<4sBB2xQQIQ")
_KIND_INDEX = {kind: i for i, kind in enumerate(KINDS)}


@dataclass(frozen=True, slots=True)
class Header:
    """One chunk of a frame: [offset, offset + chunk_bytes) of the payload's parts laid end to end.

    `run` is `run_hash` of the run's id; `frame` numbers the sender's frames within a plan;
    `lengths` are the bytes of the payload's parts; `payload_crc` is of this chunk, None: not sent.
    """

    run: int
    plan_version: int
    key: FrameKey
    dst: int
    codec: str
    dtype: str
    shape: tuple[int, ...]
    lengths: tuple[int, ...]
    buffer_version: int = 0
    frame: int = 0
    offset: int = 0
    chunk_bytes: int = 0
    payload_crc: int | None = None

    @property
    def payload_bytes(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True, slots=True)
class Ack:
    """`n_bytes` of credit given back by `rank`, for frames of `kind` that it was sent."""

    run: int
    plan_version: int
    rank: int
    kind: str
    n_bytes: int


def run_hash(run: str) -> int:
    """The run's id as 64 bits, so that a frame of another run is noticed. Not a secret."""
    return int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "little")


def frame_header(frame: Frame, run: int, number: int = 0) -> Header:
    """The header of a whole frame, its one chunk covering all of the payload."""
    return Header(
        run, frame.plan_version, frame.key, frame.dst, frame.codec, frame.dtype, frame.shape,
        tuple(p.nbytes for p in frame.payload), frame.buffer_version, number, 0, frame.n_bytes,
    )  # fmt: skip


def pack_header(h: Header) -> bytes:
    """The header as bytes. Raises FrameError for what the format cannot hold."""
    codec, dtype = h.codec.encode(), h.dtype.encode()
    _check(h, codec, dtype)
    flags = 0 if h.payload_crc is None else FLAG_PAYLOAD_CRC
    key = h.key
    try:
        fixed = _FIXED.pack(
            MAGIC, HEADER_VERSION, flags, _KIND_INDEX[key.kind], len(codec), len(dtype), len(h.shape),
            len(h.lengths), 0, h.run, h.plan_version, key.src, h.dst, key.step, key.mb, key.tag,
            h.buffer_version, h.frame, h.offset, h.chunk_bytes, h.payload_crc or 0,
        )  # fmt: skip
        sizes = struct.pack(f"<{len(h.shape) + len(h.lengths)}Q", *h.shape, *h.lengths)
    except struct.error as error:
        raise FrameError(f"{key} to rank {h.dst} has a number that its field cannot hold: {error}") from None
    body = b"".join((fixed, codec, dtype, sizes))
    return body + _CRC.pack(zlib.crc32(body))


def _check(h: Header, codec: bytes, dtype: bytes) -> None:
    if h.key.kind not in _KIND_INDEX:
        raise FrameError(f"kind: found {h.key.kind!r}, required one of {', '.join(KINDS)}")
    for label, found, cap in (
        ("bytes of the codec's name", len(codec), MAX_NAME_BYTES),
        ("bytes of the dtype's name", len(dtype), MAX_NAME_BYTES),
        ("dimensions", len(h.shape), MAX_DIMENSIONS),
        ("parts of the payload", len(h.lengths), MAX_PARTS),
        ("elements in a dimension", max(h.shape, default=0), MAX_DIMENSION),
    ):
        if found > cap:
            raise FrameError(f"{label}: found {found}, required at most {cap}")


def unpack_header(data: bytes, frame_bytes_cap: int, chunk_bytes_cap: int = MAX_CHUNK_BYTES) -> Header:
    """The header that `data` holds. Raises FrameError: truncated, corrupt, unknown version, too large."""
    n = len(data)
    if n < _FIXED.size + _CRC.size or n > MAX_HEADER_BYTES:
        raise FrameError(f"header: found {n} bytes, required {_FIXED.size + _CRC.size} to {MAX_HEADER_BYTES}")
    if data[:4] != MAGIC:
        raise FrameError(
            f"header starts with {data[:4]!r}, required {MAGIC!r}: not a frame of Isthmus, or corrupt"
        )
    if data[4] != HEADER_VERSION:
        raise FrameError(
            f"header version: found {data[4]}, required {HEADER_VERSION}; install the same version of isthmus"
        )
    (crc,) = _CRC.unpack_from(data, n - _CRC.size)
    if zlib.crc32(memoryview(data)[: -_CRC.size]) != crc:
        raise FrameError("header is corrupt: its checksum does not match")
    (_, _, flags, kind, n_codec, n_dtype, n_shape, n_parts, _, run, plan_version, src, dst, step, mb, tag,
     buffer_version, frame, offset, chunk_bytes, payload_crc) = _FIXED.unpack_from(data)  # fmt: skip
    at = _FIXED.size + n_codec + n_dtype
    if n != at + 8 * (n_shape + n_parts) + _CRC.size:
        raise FrameError(f"header: found {n} bytes, required {at + 8 * (n_shape + n_parts) + _CRC.size}")
    if kind >= len(KINDS):
        raise FrameError(f"kind: found number {kind}, required less than {len(KINDS)}")
    sizes = struct.unpack_from(f"<{n_shape + n_parts}Q", data, at)
    try:
        codec, dtype = data[_FIXED.size : at - n_dtype].decode(), data[at - n_dtype : at].decode()
    except UnicodeDecodeError:
        raise FrameError("header: the name of codec or dtype is not UTF-8") from None
    key = FrameKey(KINDS[kind], step, mb, src, tag)
    h = Header(
        run, plan_version, key, dst, codec, dtype, sizes[:n_shape], sizes[n_shape:], buffer_version,
        frame, offset, chunk_bytes, payload_crc if flags & FLAG_PAYLOAD_CRC else None,
    )  # fmt: skip
    _check(h, codec.encode(), dtype.encode())
    if h.payload_bytes > frame_bytes_cap:
        raise FrameError(
            f"{key}: found a payload of {h.payload_bytes} bytes, required at most {frame_bytes_cap}"
        )
    if chunk_bytes > chunk_bytes_cap:
        raise FrameError(f"{key}: found a chunk of {chunk_bytes} bytes, required at most {chunk_bytes_cap}")
    if offset + chunk_bytes > h.payload_bytes:
        raise FrameError(
            f"{key}: found a chunk of {chunk_bytes} bytes at {offset} of a payload of {h.payload_bytes} bytes"
        )
    return h


def pack_ack(ack: Ack) -> bytes:
    body = _ACK.pack(
        ACK_MAGIC, HEADER_VERSION, _KIND_INDEX[ack.kind], ack.run, ack.plan_version, ack.rank, ack.n_bytes
    )
    return body + _CRC.pack(zlib.crc32(body))


def unpack_ack(data: bytes) -> Ack:
    """Raises FrameError when `data` is not a whole, intact credit of this version."""
    if len(data) != _ACK.size + _CRC.size or data[:4] != ACK_MAGIC:
        raise FrameError(f"credit: found {len(data)} bytes starting {data[:4]!r}, required {ACK_MAGIC!r}")
    if _CRC.unpack_from(data, _ACK.size)[0] != zlib.crc32(data[: _ACK.size]):
        raise FrameError("credit is corrupt: its checksum does not match")
    _, version, kind, run, plan_version, rank, n_bytes = _ACK.unpack_from(data)
    if version != HEADER_VERSION or kind >= len(KINDS):
        raise FrameError(
            f"credit: found version {version}, kind {kind}; required {HEADER_VERSION}, a known kind"
        )
    return Ack(run, plan_version, rank, KINDS[kind], n_bytes)
