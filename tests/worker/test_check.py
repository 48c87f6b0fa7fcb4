"""`worker check` against a coordinator that says who is there, and data endpoints that echo."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from protos import orchestrator_pb2 as pb
from protos import orchestrator_pb2_grpc
from scheduler.exit_codes import ExitCode
from sim.trace import load
from worker import check
from worker.addresses import CurveKeys
from worker.check import CheckFailed, check_all, write_trace
from worker.cli import app
from worker.endpoint import DataEndpoint

endpoints: dict[str, DataEndpoint] = {}
"""Of the workers that are there, by name."""


class Says(orchestrator_pb2_grpc.OrchestratorServicer):  # type: ignore[misc]  # generated
    """A coordinator of one answer."""

    def __init__(self, workers: list[pb.WorkerStatus]) -> None:
        self._workers = workers

    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802
        if request.token != "secret":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "found a token that is not the coordinator's")
        for endpoint in endpoints.values():
            endpoint.admit([request.curve_public_key])
        return pb.StatusReply(run="r", phase="gathering", workers=self._workers)


@contextmanager
def coordinator(*workers: pb.WorkerStatus) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    orchestrator_pb2_grpc.add_OrchestratorServicer_to_server(Says(list(workers)), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def worker(name: str, keys: CurveKeys | None = None) -> Iterator[pb.WorkerStatus]:
    endpoint = endpoints[name] = DataEndpoint("127.0.0.1:0", keys=keys)
    try:
        yield pb.WorkerStatus(
            name=name,
            state="connected",
            data_address=endpoint.address,
            device=pb.DeviceInfo(region=f"region of {name}"),
            curve_public_key=keys.public if keys else b"",
        )
    finally:
        endpoints.pop(name).close()


def test_every_worker_that_is_there_answers_with_and_without_encryption() -> None:
    with worker("w0") as w0, worker("w1", CurveKeys.new()) as w1:
        gone = pb.WorkerStatus(name="w2", state="gone")
        with coordinator(w0, w1, gone) as address:
            checked = check_all(address, "secret", "127.0.0.1:0", "here")
    assert checked.trace is None
    assert "run r, gathering, 3 workers" in checked.found[0]
    assert checked.found[2].startswith(f"worker w0 at {w0.data_address} answers in ")
    assert checked.found[3].startswith(f"worker w1 at {w1.data_address} answers in ")
    assert len(checked.found) == 4


def test_the_links_from_here_are_recorded_as_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PROBE_BYTES", 1 << 20)
    with worker("w0") as w0, worker("here") as same, coordinator(w0, same) as address:
        checked = check_all(address, "secret", "127.0.0.1:0", "here", record=True)
    assert checked.trace is not None
    trace = load(write_trace(tmp_path / "mine.csv", checked.trace))
    assert trace.name == "mine"
    assert set(trace.nodes) == {"here (here)", "w0", "here"}
    there, back = trace.at(0, "here (here)", "w0"), trace.at(0, "w0", "here (here)")
    assert there.rtt_s is not None
    assert there.rtt_s == back.rtt_s
    assert there.bandwidth_Bps is not None
    assert back.bandwidth_Bps is None
    assert trace.nodes["w0"].region == "region of w0"


def test_a_worker_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "TIMEOUT_S", 0.3)
    silent = pb.WorkerStatus(name="w9", state="connected", data_address="127.0.0.1:9")
    with (
        coordinator(silent) as address,
        pytest.raises(CheckFailed, match=r"worker w9: .*127.0.0.1:9") as found,
    ):
        check_all(address, "secret", "127.0.0.1:0", "here")
    assert found.value.code is ExitCode.PEER_UNREACHABLE


def test_the_command_records_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PROBE_BYTES", 1 << 20)
    (tmp_path / "token").write_text("secret")
    args = ["--token-file", str(tmp_path / "token"), "--record", str(tmp_path / "t")]
    with worker("w0") as w0, coordinator(w0) as address:
        result = CliRunner().invoke(app, ["check", address, *args, "--name", "laptop"])
        assert result.exit_code == 0, result.output
        assert f"the links from laptop are in {tmp_path / 't.csv'}" in result.stdout.replace("\n", "")
        wrong = CliRunner().invoke(app, ["check", address, *args[:2], "--record", str(tmp_path / "no" / "t")])
        assert wrong.exit_code == ExitCode.USAGE
    assert list(load(tmp_path / "t").nodes) == ["laptop", "w0"]
    with coordinator() as address:
        nobody = CliRunner().invoke(app, ["check", address, *args])
        assert nobody.exit_code == ExitCode.USAGE
        assert "no worker" in nobody.output


def test_a_wrong_token_and_an_absent_coordinator_have_their_codes() -> None:
    with coordinator() as address:
        with pytest.raises(CheckFailed) as wrong:
            check_all(address, "guess", "127.0.0.1:0", "here")
        assert wrong.value.code is ExitCode.TOKEN
    with pytest.raises(CheckFailed) as absent:
        check_all("127.0.0.1:9", "secret", "127.0.0.1:0", "here")
    assert absent.value.code is ExitCode.UNREACHABLE
