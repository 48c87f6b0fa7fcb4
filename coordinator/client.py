"""Asking a running coordinator: status, drain, stop. One call each, with a deadline.

Every failure becomes a CallFailed with an exit code and what to do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from protos import orchestrator_pb2 as pb
from protos import orchestrator_pb2_grpc
from protos.tls import Authority, channel, explain
from scheduler.exit_codes import ExitCode

DEADLINE_S = 10.0


class CallFailed(Exception):
    """The coordinator did not do what it was asked; `code` is what the command exits with."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Coordinator:
    """Whom to ask, and how to be let in. `authority` None: in the clear."""

    address: str
    token: str
    authority: Authority | None = None


def _call(asked: Coordinator, method: str, request: Any) -> Any:
    address = asked.address
    with channel(address, asked.authority) as opened:
        try:
            stub = orchestrator_pb2_grpc.OrchestratorStub(opened)
            return getattr(stub, method)(request, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            status, details = error.code(), error.details()
            if status is grpc.StatusCode.UNAUTHENTICATED:
                raise CallFailed(ExitCode.TOKEN, str(details)) from error
            if status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                if why := explain(address, asked.authority):
                    raise CallFailed(ExitCode.TLS, why) from error
                raise CallFailed(
                    ExitCode.UNREACHABLE, f"{address}: found no coordinator ({details}); check that it runs"
                ) from error
            raise CallFailed(ExitCode.INTERNAL, f"{address}: {status.name}: {details}") from error


def status(asked: Coordinator) -> pb.StatusReply:
    """What the coordinator knows. Raises CallFailed."""
    reply: pb.StatusReply = _call(asked, "Status", pb.StatusRequest(token=asked.token))
    return reply


def drain(asked: Coordinator, *, now: bool, reason: str) -> str:
    """End the run, after the step or `now`; returns the phase it is in. Raises CallFailed."""
    reply: pb.DrainReply = _call(asked, "Drain", pb.DrainRequest(token=asked.token, now=now, reason=reason))
    return str(reply.phase)


def status_json(reply: pb.StatusReply) -> str:
    """The reply as one line of JSON; what there is not yet (a loss, a plan) is null."""
    absent = {field.name: None for field in reply.DESCRIPTOR.fields if field.has_presence}
    body = MessageToDict(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return json.dumps({"event": "status", **absent, **_numbers(body)})


def _numbers(value: Any, key: str = "") -> Any:
    """protobuf's JSON writes 64-bit integers as strings; undo that."""
    if isinstance(value, dict):
        return {k: _numbers(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v, key) for v in value]
    return (
        int(value)
        if isinstance(value, str) and key in ("step", "steps", "version", "memory_bytes")
        else value
    )
