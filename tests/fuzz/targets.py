"""What is fuzzed: everything that reads bytes from another machine or from a file somebody may have changed.

A target takes any bytes and returns, or raises one of the errors that its reader promises. Anything else that
comes out of it is a defect. Targets of checksummed formats put the checksum right, so that what lies behind
it is reached too.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import zmq
from google.protobuf.message import DecodeError

from coordinator.tokens import Tokens
from coordinator.wire import event_from_message
from protos import orchestrator_pb2 as pb
from protos.convert import ConvertError, is_curve_key, plan_from_message
from scheduler.checkpoint_layout import ManifestError, parse_manifest
from scheduler.job import JobError, job_from_json, parse_job
from scheduler.plan_text import plan_of_document
from scheduler.trace import TraceError
from scheduler.trace_text import parse_trace
from tests.fuzz.__main__ import CORPUS
from worker.inbound import Inbound
from worker.limits import Limits
from worker.transport import Frame, FrameError, FrameKey
from worker.wire import MAX_HEADER_BYTES, pack_header, unpack_ack, unpack_header

FRAME_CAP = 1 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """`run` may raise `promised` and nothing else."""

    run: Callable[[bytes], None]
    promised: tuple[type[Exception], ...] = ()

    def __call__(self, data: bytes) -> None:
        with suppress(*self.promised):
            self.run(data)


def summed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def frame(data: bytes) -> None:
    for read in (lambda d: unpack_header(d, FRAME_CAP), unpack_ack):
        for message in (data, summed(data)):
            try:
                found = read(message)
            except FrameError:
                continue
            assert len(message) <= MAX_HEADER_BYTES
            if message[:4] == b"ISTH" and read is not unpack_ack:
                header = unpack_header(message, FRAME_CAP)
                assert header.payload_bytes <= FRAME_CAP
                assert unpack_header(pack_header(header), FRAME_CAP) == header == found


class Router:
    """Messages of several parts, as a ROUTER socket would give them."""

    def __init__(self, messages: list[list[bytes]]) -> None:
        self._messages = messages
        self._parts: list[bytes] = []

    def recv(self, flags: int = 0, copy: bool = True) -> bytes | zmq.Frame:  # noqa: ARG002
        if not self._parts:
            if not self._messages:
                raise zmq.Again
            self._parts = [b"peer", *self._messages.pop(0)]
        part = self._parts.pop(0)
        return part if copy else zmq.Frame(part)

    def recv_into(self, into: memoryview) -> int:
        part = self._parts.pop(0)
        n = min(len(part), into.nbytes)
        into[:n] = part[:n]
        return len(part)

    def getsockopt(self, option: int) -> int:
        assert option == zmq.RCVMORE
        return int(bool(self._parts))

    def send_multipart(self, parts: list[bytes], flags: int) -> None:
        """Echoes go nowhere."""


def inbound(data: bytes) -> None:
    """Messages of parts: a byte says how long a part is, 255 ends the message; headers get their sum."""
    messages, parts, at = [], list[bytes](), 0
    while at < len(data):
        n = data[at]
        if n == 255:
            messages.append(parts)
            parts = []
            at += 1
            continue
        part = data[at + 1 : at + 1 + n]
        parts.append(part if parts else summed(part))
        at += 1 + n
    messages.append(parts)
    limits = Limits(credit_bytes=1000, queue_bytes=1000, frame_bytes=4096, inbound_bytes=8192)
    taken = Inbound(Router(messages), limits)  # type: ignore[arg-type]
    taken.take(1000)
    assert 0 <= taken._n_bytes <= limits.inbound_bytes


def event(data: bytes) -> None:
    message = pb.Event()
    message.ParseFromString(data)
    event_from_message("w", message)


def command(data: bytes) -> None:
    message = pb.Command()
    message.ParseFromString(data)
    if message.WhichOneof("body") == "take_plan":
        plan = plan_from_message(message.take_plan.plan)
        assert plan.n_ranks >= 1
        assert all(len(row) == plan.n_stages for row in plan.placement)
    for key in message.admit.curve_public_keys:
        assert not is_curve_key(key) or len(key) in (0, 40)


def job(data: bytes) -> None:
    text = data.decode(errors="replace")
    parsed = parse_job(text, "f")
    assert parsed.steps >= 1
    assert parsed.global_batch >= 1


def job_json(data: bytes) -> None:
    job_from_json(data.decode(errors="replace"))


def manifest(data: bytes) -> None:
    found = parse_manifest(data.decode(errors="replace"), "f")
    for file in found.files:
        assert "/" not in file.name
        assert ".." not in file.name


def layer(data: bytes) -> None:
    from worker.checkpoint import LayerFileError, from_bytes

    try:
        tensors = from_bytes(data, "f")
    except LayerFileError:
        return
    assert sum(t.numel() * t.element_size() for t in tensors.values()) <= len(data)


class Pieces:
    """What would come as the pieces of one item."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def receive(self, key: FrameKey, timeout_s: float) -> Frame:  # noqa: ARG002
        from worker.follow_items import PIECE_BYTES

        data = self._data[key.mb * PIECE_BYTES : (key.mb + 1) * PIECE_BYTES]
        return Frame(key, 1, 0, "identity", "uint8", (len(data),), [memoryview(data)])


def followed(data: bytes) -> None:
    """An item of a layer, as it is and with the hash and the sizes put right."""
    from worker.checkpoint import LayerFileError
    from worker.follow_items import HEADER, receive_item

    body = data[HEADER.size :]
    right = b""
    if len(data) >= HEADER.size:
        kind, layer, step, lr, frozen, n, *_ = HEADER.unpack_from(data)
        n %= len(body) + 1
        digest = hashlib.sha256(body).digest()
        right = HEADER.pack(kind % 2, layer % 3, step, lr, frozen, n, len(body) - n, digest) + body
    for message in (data, right):
        with suppress(FrameError, LayerFileError):
            item = receive_item(Pieces(message), 0, 0, {0: 1 << 16, 1: 1 << 16}, 1.0)  # type: ignore[arg-type]
            assert item.layer in (0, 1)


def trace(data: bytes) -> None:
    """Three files, parted by NUL: rows, nodes, about."""
    rows, nodes, about, *_ = [*data.decode(errors="replace").split("\0"), "", "", ""]
    parse_trace("t", "t.csv", rows.splitlines(), nodes.splitlines(), about)


def plan_json(data: bytes) -> None:
    try:
        document = json.loads(data.decode(errors="replace"))
    except (ValueError, RecursionError):
        return
    plan_of_document(document, "f")


@cache
def _tokens() -> Tokens:
    directory = TemporaryDirectory()
    tokens = Tokens(Path(directory.name))
    tokens.create(0.0)
    _kept.append(directory)
    return tokens


_kept: list[TemporaryDirectory[str]] = []


def token(data: bytes) -> None:
    assert _tokens().refusal(data.decode(errors="replace"), 1.0, data[:40]) != ""


TARGETS = {
    "frame": Target(frame),
    "inbound": Target(inbound),
    "event": Target(event, (DecodeError, ConvertError)),
    "command": Target(command, (DecodeError, ConvertError)),
    "job": Target(job, (JobError,)),
    "job_json": Target(job_json, (JobError,)),
    "manifest": Target(manifest, (ManifestError,)),
    "layer": Target(layer),
    "followed": Target(followed),
    "trace": Target(trace, (TraceError,)),
    "plan_json": Target(plan_json, (ValueError,)),
    "token": Target(token),
}


def corpus(name: str) -> Iterator[tuple[str, bytes]]:
    """(file name, content) of what is kept for a target, in order."""
    for file in sorted((CORPUS / name).iterdir()):
        yield file.name, file.read_bytes()
