"""The worker's way to its coordinator: join with patience, one session stream, layers up and down.

Everything is an outbound connection. Knows messages and their order, not what they make a worker do.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import grpc

from protos import orchestrator_pb2 as pb
from protos.orchestrator_pb2_grpc import OrchestratorStub
from protos.tls import Authority, explain
from protos.version import SESSION_METADATA
from scheduler.checkpoint_layout import CHUNK_BYTES, LayerFileInfo
from scheduler.exit_codes import ExitCode

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 10.0
CALL_TIMEOUT_S = 600.0

_REFUSALS = {
    grpc.StatusCode.FAILED_PRECONDITION: ExitCode.PROTOCOL_VERSION,
    grpc.StatusCode.UNAUTHENTICATED: ExitCode.TOKEN,
    grpc.StatusCode.ALREADY_EXISTS: ExitCode.NAME_TAKEN,
    grpc.StatusCode.PERMISSION_DENIED: ExitCode.QUARANTINED,
    grpc.StatusCode.ABORTED: ExitCode.RUN_OVER,
}


class JoinRefused(Exception):
    """The coordinator does not take this worker, or is not there; `code` is the exit code."""

    def __init__(self, code: ExitCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True)
class Membership:
    """What a worker has once it is taken in."""

    session: str
    run: str
    job_json: str
    heartbeat_s: float
    relay_address: str = ""
    """host:port; '': there is none."""
    relay_key: bytes = b""
    stub: OrchestratorStub | None = None
    """Of the coordinator that took it in."""
    committed: pb.Commit | None = None
    """The last step that all have voted for, if there is one."""


async def join(
    stubs: Sequence[tuple[str, OrchestratorStub]],
    request: pb.JoinRequest,
    *,
    authority: Authority | None,
    timeout_s: float,
    rng: random.Random,
    say: Callable[[str], None],
) -> Membership:
    """Ask to be taken in until a coordinator answers or `timeout_s` have passed. `stubs`: with the address of
    each, in turn: one drives the run, others may stand by. Raises JoinRefused."""
    waited_s, wait_s, turn = 0.0, FIRST_WAIT_S, 0
    while True:
        address, stub = stubs[turn % len(stubs)]
        turn += 1
        try:
            reply = await stub.Join(request, timeout=10.0)
            return Membership(
                reply.session,
                reply.run,
                reply.job_json,
                reply.heartbeat_s,
                reply.relay_address,
                reply.relay_key,
                stub,
                _last_commit(reply),
            )
        except grpc.aio.AioRpcError as e:
            if e.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                code = _REFUSALS.get(e.code(), ExitCode.RUN_OVER)
                raise JoinRefused(code, e.details() or e.code().name) from None
            if why := await asyncio.to_thread(explain, address, authority):
                raise JoinRefused(ExitCode.TLS, why) from None
            if turn % len(stubs):
                continue  # another may answer at once
            if waited_s >= timeout_s:
                raise JoinRefused(
                    ExitCode.UNREACHABLE,
                    f"no coordinator answered at {address} within {timeout_s:g} s ({e.details()}); "
                    "check that it runs, the host and the port, and firewalls between",
                ) from None
        pause_s = min(wait_s * (0.5 + rng.random()), max(timeout_s - waited_s, 0.05))
        say(f"no coordinator at {address} yet; trying again in {pause_s:.1f} s")
        await asyncio.sleep(pause_s)
        waited_s, wait_s = waited_s + pause_s, min(2 * wait_s, LONGEST_WAIT_S)


def _last_commit(reply: pb.JoinReply) -> pb.Commit | None:
    if not reply.committed or not reply.committed_plan:
        return None
    step, norm = reply.committed - 1, reply.committed_norm
    return pb.Commit(plan_version=reply.committed_plan, step=step, grad_norm=norm)


class Session:
    """The open session: a queue of events going up, commands coming down, files both ways."""

    def __init__(
        self,
        member: Membership,
        waits_for: Callable[[], int | None],
        memory_used: Callable[[], int],
    ) -> None:
        """Told with each heartbeat: `waits_for`, the rank whose tensor this worker waits for, if it does;
        `memory_used`, the bytes in use at this moment, 0 if not known."""
        assert member.stub is not None
        self._stub, self._waits_for, self._memory_used = member.stub, waits_for, memory_used
        self._metadata = ((SESSION_METADATA, member.session),)
        self._up: asyncio.Queue[pb.Event | None] = asyncio.Queue()
        self._heartbeat_s = member.heartbeat_s

    def send(self, event: pb.Event) -> None:
        """Queue an event; call it on the event loop."""
        self._up.put_nowait(event)

    def close(self) -> None:
        """End the upward stream once what is queued has gone."""
        self._up.put_nowait(None)

    async def commands(self) -> AsyncIterator[pb.Command]:
        """Commands until the coordinator, or `close`, ends the stream. Raises grpc.aio.AioRpcError."""
        beating = asyncio.create_task(self._beat())
        try:
            async for command in self._stub.Session(self._events(), metadata=self._metadata):
                yield command
        finally:
            beating.cancel()

    async def _events(self) -> AsyncIterator[pb.Event]:
        while (event := await self._up.get()) is not None:
            yield event

    async def _beat(self) -> None:
        while True:
            rank = self._waits_for()
            beat = pb.Heartbeat(
                waits=rank is not None, waits_for=rank or 0, memory_used_bytes=self._memory_used()
            )
            self.send(pb.Event(heartbeat=beat))
            await asyncio.sleep(self._heartbeat_s)

    async def put_layer(self, step: int, name: str, data: bytes) -> None:
        """Send one file of a checkpoint. Raises grpc.aio.AioRpcError if it is refused."""
        sha256 = hashlib.sha256(data).hexdigest()

        async def pieces() -> AsyncIterator[pb.LayerChunk]:
            for offset in range(0, max(len(data), 1), CHUNK_BYTES):
                piece = data[offset : offset + CHUNK_BYTES]
                last = offset + len(piece) == len(data)
                yield pb.LayerChunk(
                    step=step,
                    name=name,
                    offset=offset,
                    total_bytes=len(data),
                    data=piece,
                    sha256=sha256 if last else "",
                )

        await self._stub.PutLayer(pieces(), metadata=self._metadata, timeout=CALL_TIMEOUT_S)

    async def get_layer(self, step: int, file: LayerFileInfo) -> bytes:
        """Fetch one file of a checkpoint, at most the size that was promised."""
        request = pb.GetLayerRequest(step=step, name=file.name)
        data = bytearray()
        async for chunk in self._stub.GetLayer(request, metadata=self._metadata, timeout=CALL_TIMEOUT_S):
            if len(data) + len(chunk.data) > file.n_bytes:
                raise ValueError(
                    f"{file.name}: found more than the {file.n_bytes} bytes that the manifest names"
                )
            data += chunk.data
        return bytes(data)
