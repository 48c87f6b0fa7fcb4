"""Certificates and TLS: what is made holds for the names asked for, and what does not fit is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from typer.testing import CliRunner

from coordinator.certs import CA, CA_KEY, SERVER, SERVER_KEY, TLS_DIR, TlsError, make, server_tls
from coordinator.cli import app
from coordinator.client import CallFailed, Coordinator, status
from protos import orchestrator_pb2 as pb
from protos import orchestrator_pb2_grpc
from protos.tls import Authority, explain, read_authority
from scheduler.exit_codes import ExitCode

NOW = datetime.now(UTC).replace(microsecond=0)


def server(directory: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory / SERVER).read_bytes())


def test_the_certificate_names_what_was_asked_for(tmp_path: Path) -> None:
    new, names = make(tmp_path, ["Train.example.org", "10.0.0.1", "[::1]"], 30, NOW)
    assert new
    assert names == ("train.example.org", "10.0.0.1", "::1", "localhost", "127.0.0.1")
    made = server(tmp_path)
    found = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.get_values_for_type(x509.DNSName) == ["train.example.org", "localhost"]
    assert {str(a) for a in found.get_values_for_type(x509.IPAddress)} == {"10.0.0.1", "::1", "127.0.0.1"}
    assert made.not_valid_after_utc == NOW + timedelta(days=30)
    ca = x509.load_pem_x509_certificate((tmp_path / CA).read_bytes())
    made.verify_directly_issued_by(ca)
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == dict.fromkeys(
        (CA, CA_KEY, SERVER, SERVER_KEY), 0o600
    )


def test_a_new_address_keeps_the_authority(tmp_path: Path) -> None:
    make(tmp_path, ["10.0.0.1"], 30, NOW)
    before = (tmp_path / CA).read_bytes()
    new, names = make(tmp_path, ["10.0.0.2"], 30, NOW)
    assert not new
    assert "10.0.0.1" not in names
    assert (tmp_path / CA).read_bytes() == before


@pytest.mark.parametrize("host", ["", "a b", "https://x", "host:29520", "-x", "1.2.3", "x" * 300, "*.org"])
def test_a_host_that_is_none_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(TlsError, match="--host: found"):
        make(tmp_path, [host], 30, NOW)


def test_half_an_authority_and_one_that_ends_too_soon_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TlsError, match=r"--days: found 0"):
        make(tmp_path, [], 0, NOW)
    make(tmp_path, [], 30, NOW)
    with pytest.raises(TlsError, match="required to outlive 365 days"):
        make(tmp_path, [], 365, NOW + timedelta(days=3500))
    (tmp_path / CA_KEY).unlink()
    with pytest.raises(TlsError, match=rf"found {CA} without {CA_KEY}"):
        make(tmp_path, [], 30, NOW)


def test_the_coordinators_files_are_checked_before_it_listens(tmp_path: Path) -> None:
    assert server_tls(None, None, tmp_path) is None
    ours, other = tmp_path / TLS_DIR, tmp_path / "other"
    make(ours, [], 30, NOW)
    make(other, [], 30, NOW)
    assert server_tls(None, None, tmp_path) == server_tls(ours / SERVER, ours / SERVER_KEY, tmp_path)
    with pytest.raises(TlsError, match=r"found --tls-cert without --tls-key"):
        server_tls(ours / SERVER, None, tmp_path)
    with pytest.raises(TlsError, match="its own key"):
        server_tls(ours / SERVER, other / SERVER_KEY, tmp_path)
    with pytest.raises(TlsError, match="coordinator certs"):
        server_tls(ours / SERVER, tmp_path / "no.pem", tmp_path)
    with pytest.raises(TlsError, match="without a CERTIFICATE"):
        server_tls(ours / SERVER_KEY, ours / SERVER_KEY, tmp_path)
    (ours / SERVER_KEY).chmod(0o604)
    with pytest.raises(TlsError, match="chmod 600"):
        server_tls(None, None, tmp_path)


def test_the_authority_is_checked_when_it_is_read(tmp_path: Path) -> None:
    make(tmp_path, [], 30, NOW)
    assert read_authority(tmp_path / CA).pem == (tmp_path / CA).read_bytes()
    broken = tmp_path / "broken.pem"
    broken.write_bytes((tmp_path / CA).read_bytes().replace(b"M", b"!", 3))
    for path, said in (
        (tmp_path / "no.pem", "No such file"),
        (tmp_path / CA_KEY, "without a CERTIFICATE"),
        (broken, "required certificates as PEM"),
    ):
        with pytest.raises(TlsError, match=said):
            read_authority(path)


class Says(orchestrator_pb2_grpc.OrchestratorServicer):  # type: ignore[misc]  # generated
    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusReply:  # noqa: N802, ARG002
        return pb.StatusReply(run="r")


@contextmanager
def listening(directory: Path | None) -> Iterator[str]:
    """A coordinator of one answer, over TLS with the certificate of `directory`, or in the clear."""
    server = grpc.server(ThreadPoolExecutor(2))
    orchestrator_pb2_grpc.add_OrchestratorServicer_to_server(Says(), server)
    if directory is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        pair = ((directory / SERVER_KEY).read_bytes(), (directory / SERVER).read_bytes())
        port = server.add_secure_port("0.0.0.0:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def asked(address: str, authority: Authority | None) -> str:
    return str(status(Coordinator(address, "t" * 20, authority)).run)


def test_over_tls_an_answer_comes_and_every_misfit_is_explained(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    make(ours, [], 30, NOW)
    make(other, [], 30, NOW)
    fits, wrong = read_authority(ours / CA), read_authority(other / CA)
    with listening(ours) as address:
        assert asked(address, fits) == "r"
        assert asked(address.replace("127.0.0.1", "localhost"), fits) == "r"
        assert explain(address, fits) == ""
        for authority, said in ((None, "speaks TLS; pass --ca"), (wrong, "does not fit")):
            with pytest.raises(CallFailed, match=said) as failed:
                asked(address, authority)
            assert failed.value.code is ExitCode.TLS
        assert "IP address mismatch" in explain(address.replace("127.0.0.1", "127.0.0.2"), fits)
    with listening(None) as address:
        assert asked(address, None) == "r"
        with pytest.raises(CallFailed, match="does not speak TLS") as failed:
            asked(address, fits)
        assert failed.value.code is ExitCode.TLS
    assert explain("127.0.0.1:9", fits) == ""


def test_a_certificate_that_has_ended_is_named_as_such(tmp_path: Path) -> None:
    make(tmp_path, [], 1, NOW - timedelta(days=30))
    with listening(tmp_path) as address:
        assert "expired" in explain(address, read_authority(tmp_path / CA))


def test_the_command_writes_them_and_says_what_to_copy(tmp_path: Path) -> None:
    args = ["certs", "--state-dir", str(tmp_path), "--json"]
    made = json.loads(CliRunner().invoke(app, [*args, "--host", "10.9.8.7"]).stdout)
    assert made["ca"] == str(tmp_path / TLS_DIR / CA)
    assert made["new_authority"]
    assert "10.9.8.7" in made["names"]
    wrong = CliRunner().invoke(app, [*args, "--host", "a b"])
    assert wrong.exit_code == ExitCode.USAGE
    assert json.loads(wrong.stdout)["reason"].startswith("--host: found 'a b'")
