"""`worker check`: what stands between this machine and a run, found beforehand. Needs no torch."""

from __future__ import annotations

import grpc
import zmq

from protos import orchestrator_pb2 as pb
from protos.orchestrator_pb2_grpc import OrchestratorStub
from scheduler.exit_codes import ExitCode

TIMEOUT_S = 10.0


class CheckFailed(Exception):
    """The first thing that would keep this machine from joining; `code` is its exit code."""

    def __init__(self, code: ExitCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def check_all(address: str, token: str, bind: str) -> list[str]:
    """What was found to be right, a line each. Raises CheckFailed at the first thing that is not."""
    return [_coordinator(address, token), _data_port(bind)]


def _coordinator(address: str, token: str) -> str:
    with grpc.insecure_channel(address) as channel:
        try:
            status = OrchestratorStub(channel).Status(pb.StatusRequest(token=token), timeout=TIMEOUT_S)
        except grpc.RpcError as e:
            if e.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise CheckFailed(ExitCode.TOKEN, f"{address}: {e.details()}") from None
            raise CheckFailed(
                ExitCode.UNREACHABLE,
                f"{address}: found no coordinator ({e.details()}); check that it runs and that port is open",
            ) from None
    members = f"{len(status.workers)} workers"
    return f"the coordinator at {address} answers: run {status.run}, {status.phase}, {members}"


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
