"""Listens: the gRPC server around the service, in the clear or over TLS, and its health check.

Knows nothing of what the service answers.
"""

from __future__ import annotations

import socket

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from protos import orchestrator_pb2_grpc
from protos.address import split_host_port
from protos.version import MAX_MESSAGE_BYTES
from scheduler.reasons import reason_of

from .certs import ServerTls
from .driver import Driver
from .service import Service
from .tokens import Tokens

SERVICE = "isthmus.v1.Orchestrator"
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # Without this two coordinators could share a port, and workers would meet either.
    ("grpc.so_reuseport", 0),
)


class PortInUse(Exception):
    """The address cannot be listened on: names it."""


async def serve(
    driver: Driver, token: str, tokens: Tokens, bind: str, tls: ServerTls | None = None, relay: str = ""
) -> tuple[aio.Server, int]:
    """Start to listen, over TLS or in the clear; returns the server and its port. Raises PortInUse.

    `relay`: host:port that workers are told of.
    """
    server = aio.server(options=SERVER_OPTIONS)
    orchestrator_pb2_grpc.add_OrchestratorServicer_to_server(Service(driver, token, tokens, relay), server)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    for name in ("", SERVICE):
        await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        if tls is None:
            port = server.add_insecure_port(bind)
        else:
            shown = grpc.ssl_server_credentials([(tls.key, tls.certificate)])
            port = server.add_secure_port(bind, shown)
    except RuntimeError as error:
        await server.stop(None)
        raise PortInUse(
            f"{bind}: the address cannot be listened on ({_why_not(bind) or error}); another process has the "
            "port, or the host is not this machine's; stop it or give another --bind"
        ) from error
    await server.start()
    return server, port


def _why_not(bind: str) -> str:
    """What the system says to who listens at `bind`, which gRPC keeps to itself; '' if it could be."""
    host, port = split_host_port(bind)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host.strip("[]"), port), family=family).close()
    except OSError as error:
        return reason_of(error)
    return ""
