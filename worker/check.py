"""`worker check`: what stands between this machine and a run, found beforehand. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import grpc
import zmq

from protos import orchestrator_pb2 as pb
from protos.orchestrator_pb2_grpc import OrchestratorStub
from protos.tls import Authority, channel, explain
from scheduler.exit_codes import ExitCode
from scheduler.trace import About, Node, Trace, steady
from scheduler.trace_text import CSV
from scheduler.trace_write import format_trace
from scheduler.units import duration
from worker.addresses import CurveKeys, PeerAddress
from worker.probe import LinkMeasurement, measure
from worker.transport import PeerUnreachable

TIMEOUT_S = 10.0
PROBE_BYTES = 16 << 20
STREAMS = 4
"""Of a measured link: what a data plane that stripes gets over it."""


class CheckFailed(Exception):
    """The first thing that would keep this machine from joining; `code` is its exit code."""

    def __init__(self, code: ExitCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found to be right, a line each, and the links from here as they were measured."""

    found: tuple[str, ...]
    trace: Trace | None = None
    """Only when it was asked for and there is a peer."""


def check_all(
    address: str,
    token: str,
    bind: str,
    name: str,
    record: bool = False,
    authority: Authority | None = None,
) -> Checked:
    """Ask the coordinator, listen, and ask every worker that is there; `record`: measure the links to them.

    Measuring fills a link for some seconds; `name` is this machine in the trace. Raises CheckFailed at the
    first thing that is not right.
    """
    keys = CurveKeys.new()
    status = _status(address, token, keys, authority)
    members = f"{len(status.workers)} workers"
    found = [f"the coordinator at {address} answers: run {status.run}, {status.phase}, {members}"]
    found.append(_data_port(bind))
    peers = [w for w in status.workers if w.state == "connected" and w.data_address]
    measured = {}
    for peer in peers:
        measured[peer.name] = _measured(peer, keys, record)
        found.append(_said(peer, measured[peer.name], record))
    return Checked(tuple(found), _trace(name, peers, measured) if record and peers else None)


def _status(address: str, token: str, keys: CurveKeys, authority: Authority | None) -> pb.StatusReply:
    """Also asks that workers answer probes of `keys`. Raises CheckFailed."""
    with channel(address, authority) as opened:
        try:
            reply: pb.StatusReply = OrchestratorStub(opened).Status(
                pb.StatusRequest(token=token, curve_public_key=keys.public), timeout=TIMEOUT_S
            )
        except grpc.RpcError as e:
            if e.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise CheckFailed(ExitCode.TOKEN, f"{address}: {e.details()}") from None
            if why := explain(address, authority):
                raise CheckFailed(ExitCode.TLS, why) from None
            raise CheckFailed(
                ExitCode.UNREACHABLE,
                f"{address}: found no coordinator ({e.details()}); check that it runs and that port is open",
            ) from None
    return reply


def _data_port(bind: str) -> str:
    context = zmq.Context()
    try:
        with context.socket(zmq.ROUTER) as s:
            s.bind(f"tcp://{bind}".replace(":0", ":*") if bind.endswith(":0") else f"tcp://{bind}")
    except zmq.ZMQError as e:
        raise CheckFailed(
            ExitCode.PORT_IN_USE, f"--bind {bind}: found {e}, required a free address"
        ) from None
    finally:
        context.destroy(linger=0)
    return f"tensors can be received on {bind}; peers must be able to reach it"


# ---- the workers that are there


def _measured(peer: pb.WorkerStatus, own: CurveKeys, fully: bool) -> LinkMeasurement:
    """The link to the worker: its round trip and, `fully`, its rate. Raises CheckFailed."""
    keys = own if peer.curve_public_key else None
    context = zmq.Context()
    try:
        n_bytes, streams = (PROBE_BYTES, STREAMS) if fully else (1, 1)
        to = PeerAddress(peer.data_address, peer.curve_public_key)
        return measure(context, to, keys, n_bytes, streams, TIMEOUT_S)
    except (PeerUnreachable, ValueError) as e:
        raise CheckFailed(ExitCode.PEER_UNREACHABLE, f"worker {peer.name}: {e}") from None
    finally:
        context.destroy(linger=0)


def _said(peer: pb.WorkerStatus, link: LinkMeasurement, fully: bool) -> str:
    rate = f", {link.bandwidth_striped_Bps * 8 / 1e6:,.0f} Mbit/s over {STREAMS} streams" if fully else ""
    return f"worker {peer.name} at {peer.data_address} answers in {duration(link.rtt_s)}{rate}"


def _trace(name: str, peers: Sequence[pb.WorkerStatus], measured: Mapping[str, LinkMeasurement]) -> Trace:
    """From here to every worker; a round trip is the same seen from the other end."""
    here = f"{name} (here)" if name in measured else name
    links = {}
    for peer, link in measured.items():
        links[here, peer] = steady(link.rtt_s, link.bandwidth_striped_Bps)
        links[peer, here] = steady(link.rtt_s, None)
    about = About(
        one_way_factor=0.5,
        latency_kind="rtt, median of small echoes",
        bw_kind=f"{STREAMS} TCP streams together, one link after the other",
        start=datetime.now(UTC).isoformat(timespec="seconds"),
        source="measured by worker check",
        licence="the measurer's",
        caveats="Bandwidths from here only.",
    )
    nodes = {here: Node(here)} | {p.name: Node(p.name, region=p.device.region) for p in peers}
    return Trace("check", nodes, links, about)


def write_trace(path: Path, trace: Trace) -> Path:
    """Write PATH.csv, PATH.nodes.csv and PATH.json; returns the first. Raises OSError."""
    base = str(path).removesuffix(CSV)
    for suffix, lines in format_trace(replace(trace, name=Path(base).name)).items():
        Path(base + suffix).write_text("".join(lines), encoding="utf-8")
    return Path(base + CSV)
