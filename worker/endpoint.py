"""Frames over ZeroMQ: a worker's data address, which outlives every plan, and its I/O thread.

    endpoint = DataEndpoint("0.0.0.0:0", streams=4)  # before joining: the address is announced there
    endpoint.measure(peer, probe_bytes)
    transport = endpoint.open(plan_version, rank, peers, run=...)

    worker -- DEALER x streams --> peer's ROUTER     frames, probes
    worker <-- same connections -- peer's ROUTER     credits, echoes

Frames come in over one ROUTER socket; what goes out has its own DEALER sockets, one for each
stream of each link (`outbound.py`). Sockets are not thread safe, so one thread owns them all and
the others hand it work. It answers probes outside any plan, holds frames of a plan that is not
open yet, and drops and counts frames that are stale or corrupt. Refuses to know what frames mean.

With CURVE keys, traffic is encrypted and a peer proves that it holds the secret key that was
announced for it. Who may connect are the keys that were admitted (`admission.py`), which the coordinator
names, and a frame is taken only from a connection of the key that its rank has in the plan.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import zmq

from protos.address import split_host_port
from worker.addresses import CurveKeys, PeerAddress, bind_text, keep_alive
from worker.admission import DOMAIN, Admission
from worker.inbound import Inbound
from worker.limits import Limits
from worker.outbound import Outbound
from worker.probe import LinkMeasurement, measure, reach
from worker.ready_links import ReadyLinks
from worker.transport import TransportError
from worker.wire import MAX_CHUNK_BYTES, MAX_HEADER_BYTES, run_hash
from worker.zmq_plan import ZmqTransport, unheard

log = logging.getLogger(__name__)

ROUTER_BATCH = 64
"""Messages taken before the outgoing side has its turn."""


class DataEndpoint:
    """Listens on `bind` ("host:port"; port 0 takes a free one). Raises TransportError if it cannot."""

    def __init__(
        self, bind: str, streams: int = 2, keys: CurveKeys | None = None, limits: Limits | None = None
    ) -> None:
        if streams < 1:
            raise ValueError(f"streams: found {streams}, required 1 or more")
        self.streams = streams
        """TCP connections to each peer."""
        self.limits = limits or Limits()
        self.keys = keys
        self._context = zmq.Context(io_threads=1)
        self._admission = Admission(self._context) if keys is not None else None
        self._router = self._context.socket(zmq.ROUTER)
        try:
            self._listen(bind)
        except zmq.ZMQError as error:
            self._router.close(0)
            if self._admission is not None:
                self._admission.close()
            self._context.term()
            raise TransportError(
                f"cannot listen on {bind}: {error}; stop what listens there, or give another address"
            ) from error
        host, port = split_host_port(self._router.getsockopt_string(zmq.LAST_ENDPOINT).removeprefix("tcp://"))
        self.address = f"{host}:{port}"
        """host:port that is listened on."""
        self._inbound = Inbound(self._router, self.limits, self._admission)
        self._outbound: dict[ZmqTransport, Outbound] = {}
        self._poller = zmq.Poller()
        self._ready = ReadyLinks(self._context, self._poller, keys)
        self._bell, self._bell_reader = socket.socketpair()
        self._bell.setblocking(False)
        self._bell_reader.setblocking(False)
        self._rung = False
        self._work: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._closed = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"data-{port}", daemon=True)
        self._thread.start()

    def _listen(self, bind: str) -> None:
        r = self._router
        r.setsockopt(zmq.LINGER, 0)
        r.setsockopt(zmq.RCVHWM, ROUTER_BATCH)  # then TCP's own back-pressure holds the senders
        r.setsockopt(zmq.SNDHWM, 0)  # credits and echoes only; a dropped credit would stall a link
        r.setsockopt(zmq.MAXMSGSIZE, max(MAX_CHUNK_BYTES, MAX_HEADER_BYTES))
        keep_alive(r)
        if self.keys is not None:
            r.setsockopt(zmq.CURVE_SERVER, 1)
            r.setsockopt(zmq.CURVE_SECRETKEY, self.keys.secret)
            r.setsockopt(zmq.CURVE_PUBLICKEY, self.keys.public)
            r.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
        if bind_text(bind).startswith("tcp://["):
            r.setsockopt(zmq.IPV6, 1)
        r.bind(bind_text(bind))

    # ---- what other threads call

    def admit(self, keys: Iterable[bytes]) -> None:
        """Take connections of these public keys and no others; without keys of its own there is no door.

        Frames of a key that is not named any more are dropped, also on connections that are open.
        """
        if self._admission is not None:
            admitted = frozenset(keys)
            self._admission.admit(admitted)
            self.submit(lambda: self._ready.admit(admitted))

    @property
    def refused(self) -> int:
        """Connections that were refused because of their key."""
        return self._admission.refused if self._admission else 0

    def open(
        self,
        plan_version: int,
        rank: int,
        peers: Mapping[int, PeerAddress],
        *,
        run: str = "",
        streams: int = 0,
        reach_timeout_s: float | None = 10.0,
        cut: Callable[[int, str], None] = unheard,
    ) -> ZmqTransport:
        """This rank's transport for one plan of `run`; frames of another run are refused.

        `streams` 0: as many to each peer as the endpoint was made with.
        `cut(peer, reason)`: told at most once by the I/O thread, when what was under way to a peer is lost.
        Every peer must answer within `reach_timeout_s` (None: do not ask), or PeerUnreachable names it.
        Frames of older plans are stale from now on. Raises TransportError after `close`.
        """
        if rank in peers:
            raise ValueError(f"peers: found this transport's own rank {rank}")
        if reach_timeout_s is not None:
            reach(self._context, peers, self.keys, reach_timeout_s)
        n_streams = streams or self.streams
        transport = ZmqTransport(self, run_hash(run), plan_version, rank, peers, n_streams, cut)
        self._ask(lambda: self._opened(transport))
        return transport

    def measure(
        self, peer: PeerAddress, probe_bytes: int, streams: int = 0, timeout_s: float = 10.0
    ) -> LinkMeasurement:
        """Round trip and bandwidth of the link to `peer` (`streams` 0: as many as frames use).

        Blocks; any thread may call it. Raises PeerUnreachable, naming address and port.
        """
        return measure(self._context, peer, self.keys, probe_bytes, streams or self.streams, timeout_s)

    def keep_ready(self, peer: PeerAddress, streams: int) -> None:
        """Have a connection to `peer` open for the next plan that has it with so many streams."""
        self.submit(lambda: self._ready.keep(peer, streams))

    def reach(self, peers: Mapping[int, PeerAddress], timeout_s: float = 10.0) -> None:
        """Raises PeerUnreachable, naming address and port, unless every peer answers in time."""
        reach(self._context, peers, self.keys, timeout_s)

    @property
    def dropped(self) -> tuple[int, int]:
        """(stale, corrupt) messages dropped since the start, of whatever plan."""
        return self._inbound.dropped_stale, self._inbound.dropped_corrupt

    def submit(self, work: Callable[[], None]) -> None:
        """Have the I/O thread do `work` soon."""
        self._work.append(work)
        self.ring()

    def ring(self) -> None:
        """Wake the I/O thread: something waits for it."""
        if not self._rung:
            self._rung = True
            with suppress(OSError):  # full: it is awake anyway; closed: it has ended
                self._bell.send(b"!")

    def release(self, transport: ZmqTransport, linger_s: float) -> None:
        """Close the transport's sockets; what was handed to them may still leave for `linger_s`."""
        with suppress(TransportError):  # an endpoint that has ended has closed them
            self._ask(lambda: self._release(transport, linger_s))

    def close(self) -> None:
        """End every transport, the thread and all sockets. Idempotent."""
        with self._closed:
            if self._stopping:
                return
            for transport in list(self._outbound):
                transport.close()
            self._stopping = True
            self.ring()
            self._thread.join()
            self._bell.close()
            self._bell_reader.close()
            self._context.term()  # waits for lingering sockets, each for its linger at most

    def _ask(self, work: Callable[[], None]) -> None:
        """Have the I/O thread do `work` and wait until it did."""
        done = threading.Event()
        failed: list[Exception] = []

        def run() -> None:
            try:
                work()
            except Exception as error:
                failed.append(error)
            done.set()

        self.submit(run)
        while not done.wait(0.5):
            if not self._thread.is_alive():
                raise TransportError(f"the data endpoint {self.address} has ended")
        if failed:
            raise failed[0]

    # ---- what the I/O thread does

    def _opened(self, transport: ZmqTransport) -> None:
        self._outbound[transport] = Outbound(transport, self._ready, self._poller)
        self._inbound.open(transport)

    def _release(self, transport: ZmqTransport, linger_s: float) -> None:
        self._inbound.close(transport)
        outbound = self._outbound.pop(transport, None)
        if outbound is not None:
            outbound.close(linger_s)
            for peer in transport.peers.values():
                self._ready.keep(peer, transport.streams)

    def _wait_ms(self) -> int | None:
        """How long the thread may sleep; None: until something comes."""
        waits = [o.wait_ms for o in self._outbound.values()]
        waits += [self._ready.wait_ms, *([self._admission.wait_ms] if self._admission else [])]
        return min((w for w in waits if w is not None), default=None)

    def _run(self) -> None:
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self._bell_reader, zmq.POLLIN)
        admission = self._admission
        if admission is not None:
            self._poller.register(admission.socket, zmq.POLLIN)
        reason = f"the data endpoint {self.address} was closed"
        try:
            while not self._stopping:
                ready = dict(self._poller.poll(self._wait_ms()))
                if self._bell_reader.fileno() in ready:
                    self._bell_reader.recv(64)
                    self._rung = False
                while self._work:
                    self._work.popleft()()
                if admission is not None:
                    admission.turn(time.monotonic())
                if self._router in ready:
                    self._inbound.take(ROUTER_BATCH)
                for outbound in list(self._outbound.values()):
                    outbound.turn(ready, time.monotonic())
                self._ready.turn(ready, time.monotonic())
                self._inbound.send_credits()
        except Exception as error:
            log.exception("the I/O thread of %s failed", self.address)
            reason = f"the data endpoint {self.address} failed: {error!r}"
        finally:
            for transport in list(self._outbound):
                transport.abort(reason)
                self._outbound.pop(transport).close(0.0)
            self._ready.close()
            self._router.close(0)
            if admission is not None:
                admission.close()
