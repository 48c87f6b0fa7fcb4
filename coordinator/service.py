"""The gRPC shell: checks who is asking and what was sent, and hands events to the driver.

Refuses before it reads: another protocol version, a wrong token, a taken name, a session that is
not one, a file larger than the layer can be. Knows nothing of phases beyond that.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc

from protos import orchestrator_pb2 as pb
from protos import orchestrator_pb2_grpc
from protos.convert import (
    ConvertError,
    PeerInfo,
    device_from_message,
    is_curve_key,
    links_from_messages,
    spans_from_messages,
)
from protos.relay_key import relay_key
from protos.version import PROTOCOL_VERSION, SESSION_METADATA
from scheduler.checkpoint_layout import MAX_FILE_BYTES
from scheduler.exit_codes import ExitCode
from scheduler.job import job_to_json

from . import events as e
from .checkpoints import CheckpointMissing, CheckpointWriteError, Upload, UploadRefused
from .driver import Driver, Line, new_session
from .status_reply import status_reply
from .tokens import UNKNOWN, Tokens
from .wire import command_to_message, event_from_message

CHUNK_DEADLINE_S = 180.0
"""A piece of a file that does not come for this long is given up."""
MAX_ADDRESS = 256
MAX_TEXT = 256
"""Of what a worker tells of itself, which is kept and shown as long as the run lasts."""
MAX_UPLOADS = 64
_REFUSED = {
    ExitCode.NAME_TAKEN: grpc.StatusCode.ALREADY_EXISTS,
    ExitCode.QUARANTINED: grpc.StatusCode.PERMISSION_DENIED,
    ExitCode.RUN_OVER: grpc.StatusCode.ABORTED,
    ExitCode.SUPERSEDED: grpc.StatusCode.UNAVAILABLE,  # the worker tries again, and elsewhere
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


Context = Any  # grpc.aio.ServicerContext; grpc ships no types that name its messages


class Service(orchestrator_pb2_grpc.OrchestratorServicer):  # type: ignore[misc]  # generated, untyped
    """The protocol's calls on one driver."""

    def __init__(self, driver: Driver, token: str, tokens: Tokens, relay: str = "") -> None:
        self._driver = driver
        self._token = token.encode()
        self._tokens = tokens
        self._relay = relay
        self._uploads = 0

    # ---- joining

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinReply:  # noqa: N802
        if request.protocol_version != PROTOCOL_VERSION:
            await _abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"found a worker of protocol version {request.protocol_version}, the coordinator speaks "
                f"{PROTOCOL_VERSION}; install the same version of isthmus on both",
            )
        await self._check_token(request.token, context, request.identity_proof)
        if not _NAME.fullmatch(request.name):
            await _abort(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                f"found the name {request.name[:80]!r}, required up to 64 letters, digits, '.', '_' or '-'",
            )
        if not 0 < len(request.data_address) <= MAX_ADDRESS or not request.incarnation:
            await _abort(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                f"found data address {request.data_address[:80]!r} and incarnation "
                f"{request.incarnation[:80]!r}, required both",
            )
        device = request.device
        for what, text in (
            ("incarnation", request.incarnation), ("kind", device.kind), ("model", device.model),
            ("host", device.host), ("region", device.region),
        ):  # fmt: skip
            if len(text) > MAX_TEXT:
                reason = f"found a {what} of {len(text)} characters, required at most {MAX_TEXT}"
                await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, reason)
        if not is_curve_key(request.curve_public_key):
            await _abort(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                f"found a public key of {len(request.curve_public_key)} bytes, required 40 of Z85",
            )
        session = new_session()
        peer = PeerInfo(request.name, request.data_address, request.curve_public_key)
        described = device_from_message(device, request.name)
        refusal = self._driver.join(e.Join(described, request.incarnation, session, peer))
        if refusal is not None:
            status = _REFUSED.get(refusal.code, grpc.StatusCode.FAILED_PRECONDITION)
            await _abort(context, status, refusal.reason)
        if not self._is_own(request.token):
            spent = self._tokens.admit(request.token, time.time(), request.name, request.identity_proof)
            if spent:  # somebody took its last use in between
                self._driver.apply(e.Disconnected(request.name, spent))
                await _abort(context, grpc.StatusCode.UNAUTHENTICATED, spent)
        return pb.JoinReply(
            session=session,
            run=self._driver.run,
            job_json=job_to_json(self._driver.job),
            heartbeat_s=self._driver.state.options.heartbeat_s,
            committed=self._driver.state.done,
            committed_plan=self._driver.state.ran.version if self._driver.state.ran else 0,
            committed_norm=self._driver.state.grad_norm,
            relay_address=self._relay,
            relay_key=relay_key(self._token.decode()) if self._relay else b"",
        )

    async def Session(  # noqa: N802
        self, requests: AsyncIterator[pb.Event], context: Context
    ) -> AsyncIterator[pb.Command]:
        session = _session(context)
        line = self._driver.connect(session)
        if line is None:
            await _abort(context, grpc.StatusCode.UNAUTHENTICATED, "found no session of this id; join first")
        reader = asyncio.create_task(self._read(requests, line))
        ended = ["the stream was closed"]
        reader.add_done_callback(lambda task: _end_line(task, line, ended))
        try:
            while (body := await line.queue.get()) is not None:
                yield command_to_message(body)
        finally:
            reader.cancel()
            self._driver.disconnect(session, ended[0])

    async def _read(self, requests: AsyncIterator[pb.Event], line: Line) -> None:
        async for message in requests:
            event = event_from_message(line.worker, message)
            if event is not None:
                if message.WhichOneof("body") == "heartbeat":
                    self._driver.memory_used_bytes[line.worker] = message.heartbeat.memory_used_bytes
                self._driver.apply(event)
            elif message.WhichOneof("body") == "step_done":
                self._take_spans(line.worker, message.step_done)
            else:
                self._driver.tell("generated", name=line.worker, text=message.generated.text)

    def _take_spans(self, worker: str, done: pb.StepDone) -> None:
        state = self._driver.state
        if state.plan and done.plan_version == state.plan_version and done.step < state.done:
            rank = state.plan.rank_of_device(worker)
            if rank is not None:
                spans, links = spans_from_messages(done.spans, rank), links_from_messages(done.links, rank)
                self._driver.take_spans(done.step, rank, spans, links)

    # ---- people and scripts

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:  # noqa: N802
        await self._check_token(request.token, context)
        if request.curve_public_key and is_curve_key(request.curve_public_key):
            self._driver.visit(request.curve_public_key)
        return status_reply(self._driver)

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainReply:  # noqa: N802
        if not self._is_own(request.token):
            await _abort(context, grpc.StatusCode.UNAUTHENTICATED, UNKNOWN)
        self._driver.apply(e.Drain(request.reason[:1000] or "asked to", request.now))
        return pb.DrainReply(phase=self._driver.state.phase)

    # ---- checkpoints

    async def PutLayer(  # noqa: N802
        self, requests: AsyncIterator[pb.LayerChunk], context: Context
    ) -> pb.PutLayerReply:
        await self._check_member(context)
        if self._uploads >= MAX_UPLOADS:
            await _abort(
                context, grpc.StatusCode.UNAVAILABLE, f"{MAX_UPLOADS} files are coming in; try again"
            )
        self._uploads += 1
        upload: Upload | None = None
        step = 0
        try:
            sha256 = ""
            while (chunk := await _next_chunk(requests)) is not None:
                if upload is None:
                    step = chunk.step
                    upload = self._begin_upload(chunk)
                elif chunk.step != step:
                    raise UploadRefused(f"found a piece of step {chunk.step}, required step {step}")
                upload.write(chunk.data, chunk.offset)
                sha256 = chunk.sha256
            if upload is None:
                raise UploadRefused("found no piece of a file, required one or more")
            stored = await asyncio.to_thread(upload.commit, sha256)
            self._driver.apply(e.LayerStored(step, stored))
            return pb.PutLayerReply(n_bytes=stored.n_bytes, sha256=stored.sha256)
        except UploadRefused as error:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except TimeoutError:
            reason = f"no piece came for {CHUNK_DEADLINE_S:.0f} s"
            await _abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, reason)
        except CheckpointWriteError as error:
            self._driver.apply(e.SaveFailed(step, str(error)))
            await _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        finally:
            self._uploads -= 1
            if upload is not None:
                upload.abandon()

    def _begin_upload(self, first: pb.LayerChunk) -> Upload:
        saving = self._driver.state.saving
        if saving is None or saving.step != first.step or saving.writing:
            raise UploadRefused(f"step {first.step} is not being saved")
        layers = self._driver.state.layers
        largest = max((x.parameter_bytes + x.state_bytes for x in layers), default=0)
        cap = min(MAX_FILE_BYTES, 2 * largest + (64 << 20))  # headers, and dtypes wider than the profile's
        return self._driver.opened.checkpoints.upload(first.step, first.name, first.total_bytes, cap)

    async def GetLayer(  # noqa: N802
        self, request: pb.GetLayerRequest, context: Context
    ) -> AsyncIterator[pb.LayerChunk]:
        await self._check_member(context)
        store = self._driver.opened.checkpoints
        try:
            sha256 = {f.name: f.sha256 for f in store.manifest(request.step).files}.get(request.name, "")
            for offset, total, data in store.read(request.step, request.name):
                last = offset + len(data) == total
                yield pb.LayerChunk(
                    step=request.step,
                    name=request.name,
                    offset=offset,
                    total_bytes=total,
                    data=data,
                    sha256=sha256 if last else "",
                )
        except CheckpointMissing as error:
            await _abort(context, grpc.StatusCode.NOT_FOUND, str(error))

    # ---- who is asking

    def _is_own(self, token: str) -> bool:
        """Whether it is the run's own token, which may do everything, as often as it likes."""
        return hmac.compare_digest(token.encode(), self._token)

    async def _check_token(self, token: str, context: Context, proof: bytes = b"") -> None:
        """The run's own token, or a join token that is good for this caller; spends nothing."""
        if self._is_own(token):
            return
        refused = self._tokens.refusal(token, time.time(), proof)
        if refused:
            await _abort(context, grpc.StatusCode.UNAUTHENTICATED, refused)

    async def _check_member(self, context: Context) -> None:
        if self._driver.worker_of(_session(context)) is None:
            await _abort(context, grpc.StatusCode.UNAUTHENTICATED, "found no session of this id; join first")


async def _abort(context: Context, code: grpc.StatusCode, reason: str) -> NoReturn:
    await context.abort(code, reason)
    raise AssertionError("context.abort raises")


def _session(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == SESSION_METADATA:
            return str(value)
    return ""


async def _next_chunk(requests: AsyncIterator[pb.LayerChunk]) -> pb.LayerChunk | None:
    """The next piece, or None at the end. Raises TimeoutError."""
    return await asyncio.wait_for(anext(requests, None), CHUNK_DEADLINE_S)


def _end_line(task: asyncio.Task[None], line: Line, ended: list[str]) -> None:
    """The worker's side of the stream is over: end ours, and remember why."""
    if task.cancelled():
        return
    error = task.exception()
    if isinstance(error, ConvertError):
        ended[0] = f"it sent what cannot be: {error}"
    elif error is not None:
        ended[0] = f"the stream broke: {type(error).__name__}: {error}"
    if not line.queue.full():
        line.queue.put_nowait(None)
