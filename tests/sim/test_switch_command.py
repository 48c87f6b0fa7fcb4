"""`sim switch` as a person has it: real namespaces, real TCP, and nothing left when it ends.

Needs TUN devices and the right to make namespaces; says so where it is skipped.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scheduler.exit_codes import ExitCode
from sim import namespaces
from sim.namespaces import Namespaces, SwitchUnavailable

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    try:
        Namespaces(1).close()
    except SwitchUnavailable as reason:
        pytest.skip(str(reason))


ABOUT = {"format": "link-trace/1", "latency_kind": "rtt", "one_way_factor": 0.5, "bw_kind": "cap"}
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), timeout=60) as s:
    s.sendall(b"".join(i.to_bytes(4, "big") for i in range(500_000)))
    s.shutdown(socket.SHUT_WR)
    print(s.recv(100).decode())
"""
RECEIVE = """
import socket, sys
with socket.create_server(("0.0.0.0", 7000)) as server:
    print("listening", flush=True)
    s, _ = server.accept()
    data = bytearray()
    while piece := s.recv(1 << 20):
        data += piece
    same = data == b"".join(i.to_bytes(4, "big") for i in range(500_000))
    s.sendall(b"whole" if same else b"not what was sent")
"""


def gone(pidfd: int) -> bool:
    """Whether the process ends; waits for it."""
    with os.fdopen(pidfd):
        return bool(select.select([pidfd], [], [], 60)[0])


@dataclass
class Running:
    process: subprocess.Popen[str]
    spaces: dict[str, dict[str, Any]]

    def start(self, name: str, code: str, *arguments: str) -> subprocess.Popen[str]:
        argv = [*self.spaces[name]["enter"], sys.executable, "-c", code, *arguments]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    @property
    def holder_pid(self) -> int:
        """The process that the namespaces live in."""
        word = next(w for w in self.spaces["x"]["enter"] if w.startswith("--net="))
        return int(word.split("/")[2])

    def stop(self) -> dict[str, Any]:
        """End it by SIGTERM, whereupon nothing may be left; what it said last."""
        pidfd = os.pidfd_open(self.holder_pid)
        self.process.terminate()
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        assert gone(pidfd), "the namespaces' holder ends with the switch, and with it they and their devices"
        last: dict[str, Any] = json.loads(out.splitlines()[-1])
        return last


def write_trace(folder: Path, rtt_ms: float, mbps: float, loss: float) -> Path:
    (folder / "t.csv").write_text(
        "t_s,src,dst,rtt_ms,bw_mbps,jitter_ms,loss\n"
        f"0,A,B,{rtt_ms},{mbps},,{loss}\n0,B,A,{rtt_ms},{mbps},,{loss}\n"
    )
    (folder / "t.nodes.csv").write_text(
        "node,provider,region,latitude,longitude,n_devices\nA,,,,,1\nB,,,,,1\n"
    )
    (folder / "t.json").write_text(json.dumps(ABOUT))
    return folder / "t.csv"


def argv(trace: Path, folder: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "sim.cli", "switch", "--trace", str(trace),
        "--map-file", str(folder / "map.json"), "--node", "x=A", "--node", "y=B", "--json", *more,
    ]  # fmt: skip


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the command and waits until it is ready; ends at last what a test left running."""
    started: list[subprocess.Popen[str]] = []

    def run(folder: Path, *more: str, before: Sequence[str] = (), loss: float = 0.0) -> Running:
        command = [*before, *argv(write_trace(folder, 4, 200, loss), folder, *more)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "it ended before it was ready"
        assert json.loads(line)["event"] == "ready"
        return Running(process, json.loads((folder / "map.json").read_text()))

    yield run
    for process in started:
        process.kill()
        if process.stdout is not None and not process.stdout.closed:
            process.communicate()


def transfer(running: Running) -> None:
    """2 MB from x to y, compared byte by byte at the end."""
    receiver = running.start("y", RECEIVE)
    assert receiver.stdout is not None
    assert receiver.stdout.readline() == "listening\n"
    sender = running.start("x", SEND, running.spaces["y"]["address"])
    out, _ = sender.communicate(timeout=120)
    receiver.communicate(timeout=60)
    assert out == "whole\n"


def accounted(last: dict[str, Any]) -> None:
    links = last["links"]
    taken = sum(link["taken"] for link in links.values())
    told = sum(link["delivered"] + link["lost"] + link["overflowed"] for link in links.values())
    assert taken == told + last["on_the_way"] + last["not_accepted"]


@pytest.mark.parametrize(
    "more", [(), ("--no-offload", "--mtu", "9000")], ids=["joined", "large and one by one"]
)
def test_a_stream_crosses_whole_and_every_packet_is_accounted_for(
    start: Start, tmp_path: Path, more: tuple[str, ...]
) -> None:
    running = start(tmp_path, *more)
    transfer(running)
    last = running.stop()
    accounted(last)
    there = last["links"]["x -> y"]
    assert there["delivered_bytes"] >= 2_000_000
    largest = 9000 if more else 1500
    assert there["taken_bytes"] / there["taken"] <= largest


def test_tcp_repairs_what_is_lost(start: Start, tmp_path: Path) -> None:
    running = start(tmp_path, loss=0.02)
    transfer(running)
    last = running.stop()
    accounted(last)
    assert last["links"]["x -> y"]["lost"] > 0


def test_two_run_side_by_side_and_do_not_meet(start: Start, tmp_path: Path) -> None:
    folders = [tmp_path / "1", tmp_path / "2"]
    for each in folders:
        each.mkdir()
    first, second = (start(each) for each in folders)
    transfer(first)
    transfer(second)
    assert first.stop()["links"]["x -> y"]["delivered_bytes"] >= 2_000_000
    assert second.stop()["links"]["x -> y"]["delivered_bytes"] >= 2_000_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name)
def test_nothing_is_left_however_it_ends(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    running = start(tmp_path)
    pidfd = os.pidfd_open(running.holder_pid)
    running.process.send_signal(number)
    running.process.communicate(timeout=60)
    assert gone(pidfd)


def test_a_door_leads_to_this_machine_and_nothing_else_does(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as shut:
        port = server.getsockname()[1]
        running = start(tmp_path, "--door", str(port))
        code = (
            "import socket, sys; print(socket.create_connection(('127.0.0.1', int(sys.argv[1])), 20).recv(9))"
        )
        inside = running.start("x", code, str(port))
        server.settimeout(60)
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"welcome")
        assert inside.communicate(timeout=60)[0] == "b'welcome'\n"
        walled = subprocess.run(
            [*running.spaces["x"]["enter"], sys.executable, "-c", code, str(shut.getsockname()[1])],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "ConnectionRefusedError" in walled.stderr
        running.stop()


WAYS_WITHOUT_PRIVILEGE = {
    "in a user namespace": ["unshare", "--user", "--map-root-user", "--net"],
    # Root in name only: it must make a user namespace of its own.
    "by itself": ["setpriv", "--bounding-set=-all,+setfcap", "--inh-caps=-all"],
}


@pytest.mark.parametrize("way", WAYS_WITHOUT_PRIVILEGE)
def test_it_needs_no_privilege_of_the_machine(start: Start, tmp_path: Path, way: str) -> None:
    before = WAYS_WITHOUT_PRIVILEGE[way]
    if os.geteuid() != 0 and way == "by itself":
        before = []  # this is how it ran all along
    if before and (
        shutil.which(before[0]) is None or subprocess.run([*before, "true"], check=False).returncode
    ):
        pytest.skip(f"found that `{' '.join(before)} true` fails, required it to try this")
    running = start(tmp_path, before=before)
    if way == "by itself":
        transfer(running)
    else:  # from outside one enters as the user that made it
        enter = ["nsenter", f"--user=/proc/{running.process.pid}/ns/user", "--preserve-credentials"]
        for space in running.spaces.values():
            space["enter"] = [*enter, *space["enter"][1:]]
        transfer(running)
    accounted(running.stop())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--node", "x=A"), "different"),
        (("--node", "z=Atlantis"), "Atlantis"),
        (("--node", "z"), "NAME=PLACE"),
        (("--mtu", "70000"), "MTU of 70000"),
    ],
    ids=["a name twice", "an unknown place", "no place", "too large a packet"],
)
def test_what_cannot_be_is_refused_in_words(tmp_path: Path, more: tuple[str, ...], words: str) -> None:
    done = subprocess.run(
        argv(write_trace(tmp_path, 1, 1, 0), tmp_path, *more), capture_output=True, text=True, check=False
    )
    assert done.returncode == ExitCode.USAGE
    assert words in done.stderr
    assert not (tmp_path / "map.json").exists()


def test_a_machine_without_tun_devices_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(namespaces, "TUN_DEVICE", tmp_path / "tun")
    with pytest.raises(SwitchUnavailable, match=r"does not exist, required .*modprobe tun.*relay"):
        Namespaces(1)


def test_another_system_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SwitchUnavailable, match=r"found darwin, required Linux .*relay"):
        Namespaces(1)


def test_a_kernel_that_refuses_is_explained_with_the_commands_that_allow_it() -> None:
    no_user_namespaces = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    script = (
        'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all "$@"'
    )
    code = "from sim.namespaces import Namespaces; Namespaces(1)"
    done = subprocess.run(
        [*no_user_namespaces, script, "-", sys.executable, "-c", code],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if "SwitchUnavailable" not in done.stderr and "Namespaces" not in done.stderr:
        pytest.skip(f"found that user namespaces cannot be forbidden here: {done.stderr[-200:]}")
    assert "the kernel refuses namespaces" in done.stderr
    assert "unprivileged_userns_clone" in done.stderr
