"""A worker from joining to leaving: the event loop around one thread of work.

The loop keeps heartbeats going while tensors are computed, and passes commands on in order; an
abort does not wait for its turn. First Ctrl-C drains, second stops.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import torch

from protos import orchestrator_pb2 as pb
from protos.convert import device_to_message
from protos.orchestrator_pb2_grpc import OrchestratorStub
from protos.tls import Authority, aio_channel
from protos.version import PROTOCOL_VERSION
from scheduler.checkpoint_layout import LayerFileInfo
from scheduler.exit_codes import ExitCode
from scheduler.job import job_from_json
from worker.device import LocalDevice
from worker.endpoint import DataEndpoint
from worker.faults import Fault, Faults, no_faults
from worker.identity import Identity
from worker.runtime import Runtime, Uploads
from worker.session import JoinRefused, Membership, Session, join
from worker.tunnel import Tunnels
from worker.ways import Ways

Say = Callable[..., None]


@dataclass(frozen=True, slots=True)
class MemberOptions:
    """What `worker join` was told."""

    address: str
    token: str
    name: str
    bind: str
    advertise: str | None
    data_dir: Path
    cache_dir: Path
    peer_map: Path | None
    streams: int
    threads: int
    join_timeout_s: float
    identity: Identity
    faults: tuple[Fault, ...] = ()
    """That this process is to suffer, for tests."""
    authority: Authority | None = None
    """Who signs the coordinator's certificate; None: in the clear."""


class LoopFiles:
    """`Files` for the thread of work: each call runs on the event loop and is waited for."""

    def __init__(self, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        self._session, self._loop = session, loop

    def put(self, step: int, name: str, data: bytes) -> None:
        try:
            asyncio.run_coroutine_threadsafe(self._session.put_layer(step, name, data), self._loop).result()
        except grpc.aio.AioRpcError as e:
            raise Uploads(f"{name}: the coordinator did not store it: {e.details()}") from None

    def get(self, step: int, file: LayerFileInfo) -> bytes:
        return asyncio.run_coroutine_threadsafe(self._session.get_layer(step, file), self._loop).result()


async def run_member(options: MemberOptions, device: LocalDevice, say: Say) -> ExitCode:
    """Join, obey until told to stop, leave. Returns the exit code. Raises JoinRefused, TransportError."""
    torch.set_num_threads(options.threads)
    routes = _routes(options.peer_map)
    identity = options.identity
    tunnels: Tunnels | None = None
    endpoint = DataEndpoint(options.bind, keys=identity.keys)
    try:
        async with aio_channel(options.address, options.authority) as channel:
            stub = OrchestratorStub(channel)
            data_address = options.advertise or endpoint.address
            request = pb.JoinRequest(
                protocol_version=PROTOCOL_VERSION,
                token=options.token,
                name=options.name,
                device=device_to_message(device.described, kind=device.kind, model=device.model),
                data_address=data_address,
                incarnation=identity.incarnation,
                curve_public_key=identity.keys.public,
                identity_proof=identity.proof(options.token),
            )
            member = await join(
                stub,
                request,
                address=options.address,
                authority=options.authority,
                timeout_s=options.join_timeout_s,
                rng=random.Random(os.getpid()),
                say=lambda text: say("waiting", reason=text),
            )
            say(
                "joined",
                name=options.name,
                run=member.run,
                device=f"{device.kind} ({device.model})",
                data_address=data_address,
            )
            if member.relay_address:
                public = identity.keys.public
                tunnels = Tunnels(member.relay_address, member.relay_key, public, endpoint.address)
                say("relay", address=member.relay_address)
            ways = Ways(routes, tunnels)
            return await _Member(options, device, say, stub, member, endpoint, ways).run()
    finally:
        if tunnels is not None:
            await asyncio.to_thread(tunnels.close)
        await asyncio.to_thread(endpoint.close)


class _Member:
    """The session, the thread of work, and what passes between them."""

    def __init__(
        self,
        options: MemberOptions,
        device: LocalDevice,
        say: Say,
        stub: OrchestratorStub,
        member: Membership,
        endpoint: DataEndpoint,
        ways: Ways,
    ) -> None:
        self._say = say
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._session = Session(stub, member)
        self._work = ThreadPoolExecutor(1, "work")
        self._interrupts = 0
        self._ended: tuple[ExitCode, str] | None = None
        self._runtime = Runtime(
            job=job_from_json(member.job_json),
            run=member.run,
            name=options.name,
            device=device,
            endpoint=endpoint,
            files=LoopFiles(self._session, self._loop),
            data_dir=options.data_dir,
            cache_dir=options.cache_dir,
            ways=ways,
            streams=options.streams,
            emit=self._emit,
            say=say,
            reached=Faults(options.faults).reached if options.faults else no_faults,
        )

    def _emit(self, event: pb.Event) -> None:
        self._loop.call_soon_threadsafe(self._session.send, event)

    async def run(self) -> ExitCode:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._interrupt)
        try:
            async for command in self._session.commands():
                self._take(command)
                if self._ended is not None:
                    break
        except grpc.aio.AioRpcError as e:
            self._lost(f"{e.code().name}: {e.details()}")
        else:
            if self._ended is None:
                self._lost("it closed the session")
        assert self._ended is not None
        code, reason = self._ended
        self._runtime.abort(reason)
        self._session.close()
        await asyncio.to_thread(self._work.shutdown)
        await asyncio.to_thread(self._runtime.close)
        self._say("stopped", code=int(code), reason=reason)
        return code

    def _lost(self, why: str) -> None:
        self._ended = self._ended or (
            ExitCode.COORDINATOR_LOST,
            f"the coordinator went away ({why}); start it with --resume and join again",
        )

    def _take(self, command: pb.Command) -> None:
        match command.WhichOneof("body"):
            case "stop":
                self._ended = (ExitCode(command.stop.code), command.stop.reason)
            case "admit":
                self._endpoint.admit(command.admit.curve_public_keys)
            case "abort_plan":
                self._say("aborted", reason=command.abort_plan.reason)
                self._runtime.abort(command.abort_plan.reason, command.abort_plan.plan_version)
            case "commit":
                self._runtime.commit(command.commit)
            case _:
                self._work.submit(self._obey, command)

    def _obey(self, command: pb.Command) -> None:
        try:
            self._runtime.handle(command)
        except BaseException as e:  # a defect of ours: the coordinator must hear of it, not wait
            reason = f"{type(e).__name__}: {e}"
            failed = pb.Failed(code=int(ExitCode.INTERNAL), reason=reason, fatal=True)
            self._loop.call_soon_threadsafe(self._session.send, pb.Event(failed=failed))
            raise

    def _interrupt(self) -> None:
        self._interrupts += 1
        if self._interrupts == 1:
            self._say("leaving", reason="told to leave; once more stops at once")
            self._session.send(pb.Event(leaving=pb.Leaving(reason="told to leave by its operator")))
            return
        self._ended = (ExitCode.INTERRUPTED, "stopped by a second signal")
        self._session.close()


def _routes(path: Path | None) -> dict[str, str]:
    """`{peer: "host:port"}` of a --peer-map file. Raises JoinRefused for one that is none."""
    if path is None:
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or not all(isinstance(v, str) for v in raw.values()):
            raise ValueError("not an object of strings")
        return raw
    except (OSError, ValueError) as e:
        raise JoinRefused(
            ExitCode.USAGE, f'--peer-map {path}: found {e}, required JSON like {{"name": "host:port"}}'
        ) from e
