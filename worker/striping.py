"""A frame as pieces for several streams, and the pieces as a frame again, in any order.

The sender cuts the payload's parts, laid end to end, at equal distances (`piece_bytes`); every piece
says where it belongs. Knows nothing of sockets; takes memory only for what a checked header says.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from worker.transport import Frame
from worker.wire import Header, frame_header, pack_header

Message = list[bytes | memoryview]
"""One message of the wire: a packed header, then the pieces of payload."""


MIN_PIECE_BYTES = 4 << 10
"""Smaller pieces cost more in messages (some 90 us of both ends' processors each) than a further stream
brings, even where flows are slow. The engine takes it that every frame uses all streams of its link."""


def piece_bytes(frame_bytes: int, streams: int, chunk_bytes: int) -> int:
    """How large the pieces of a frame are: one for each stream, but no tiny ones and none above the cap.

    A flow on a long link is held to its window, so that every stream ought to carry a part of each
    frame; where one stream carries all, larger pieces are cheaper.
    """
    return min(chunk_bytes, max(MIN_PIECE_BYTES, -(-frame_bytes // streams)))


def spans(parts: Sequence[memoryview], offset: int, n_bytes: int) -> list[memoryview]:
    """The pieces of [offset, offset + n_bytes) of `parts` (1-d, bytes) laid end to end; none is empty."""
    found = []
    for part in parts:
        if n_bytes == 0:
            break
        if offset >= part.nbytes:
            offset -= part.nbytes
            continue
        piece = part[offset : offset + n_bytes]
        found.append(piece)
        n_bytes -= piece.nbytes
        offset = 0
    return found


def crc_of(pieces: Sequence[memoryview]) -> int:
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
    return crc


def as_bytes(part: memoryview) -> memoryview:
    """The part as a flat view of bytes. Raises TypeError when it is not C-contiguous."""
    if part.ndim == 1 and part.itemsize == 1:
        return part
    return part.cast("B") if part.nbytes else memoryview(b"")


def split(frame: Frame, run: int, number: int, chunk_bytes: int, payload_crc: bool) -> Iterator[Message]:
    """The messages that carry `frame`; at least one. Pieces are views of the payload, not copies."""
    whole = frame_header(frame, run, number)
    parts = [as_bytes(p) for p in frame.payload]
    total = whole.payload_bytes
    for offset in range(0, max(total, 1), chunk_bytes):
        n = min(chunk_bytes, total - offset)
        pieces = spans(parts, offset, n)
        crc = crc_of(pieces) if payload_crc else None
        yield [pack_header(replace(whole, offset=offset, chunk_bytes=n, payload_crc=crc)), *pieces]


class Assembly:
    """A frame that is being received into its own buffers, one for each part of the payload."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.parts = [np.empty(n, np.uint8).data for n in header.lengths]
        self._missing = header.payload_bytes
        self._seen: set[int] = set()

    def room(self, header: Header) -> list[memoryview] | None:
        """Where the chunk's pieces go; None when it came before or is of another frame than the first."""
        h = self.header
        same = (h.key, h.dst, h.lengths, h.shape, h.codec) == (
            header.key, header.dst, header.lengths, header.shape, header.codec,
        )  # fmt: skip
        if not same or header.offset in self._seen:
            return None
        return spans(self.parts, header.offset, header.chunk_bytes)

    def done(self, header: Header) -> bool:
        """The chunk was written. Returns whether the frame is whole."""
        self._seen.add(header.offset)
        self._missing -= header.chunk_bytes
        return self._missing <= 0

    def frame(self) -> Frame:
        h = self.header
        return Frame(
            h.key, h.dst, h.plan_version, h.codec, h.dtype, h.shape, tuple(self.parts), h.buffer_version
        )
