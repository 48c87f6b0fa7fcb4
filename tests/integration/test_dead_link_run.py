"""A link that dies for good while both its ends live is planned around, and no step and no bit is lost."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from pathlib import Path

from deploy.processes import free_port
from scheduler.departures import Departure
from scheduler.exit_codes import ExitCode
from tests.survival import cluster_of, ledger_defect, left_over, steps_of, weights

STEPS, DIES_AFTER = 10, 3


class Cable:
    """TCP connections to a port, passed on to another, until it is pulled."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._pulled = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._server.accept()
                there = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                if self._pulled:
                    return
                continue  # nobody listens there yet: ZeroMQ tries again
            self._ends += [here, there]
            for a, b in ((here, there), (there, here)):
                threading.Thread(target=self._pass_on, args=(a, b), daemon=True).start()

    @staticmethod
    def _pass_on(a: socket.socket, b: socket.socket) -> None:
        with suppress(OSError):
            while data := a.recv(1 << 16):
                b.sendall(data)
        for s in (a, b):
            s.close()

    def pull(self) -> None:
        self._pulled = True
        for s in (self._server, *self._ends):
            with suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()


def test_a_dead_link_is_planned_around(tmp_path: Path) -> None:
    with cluster_of(tmp_path, "undisturbed", 2, STEPS, 0) as cluster:
        assert cluster.wait() == ExitCode.OK
    port = free_port()
    cable = Cable(port)
    routes = tmp_path / "routes.json"
    routes.write_text(json.dumps({"w1": f"127.0.0.1:{cable.port}"}))
    options_of = {"w0": ("--peer-map", str(routes)), "w1": ("--bind", f"127.0.0.1:{port}")}
    events = []
    with cluster_of(tmp_path, "cut", 2, STEPS, 1, options_of, wait_for_workers_s=120.0) as cluster:
        for event in cluster.events():
            events.append(event)
            if event["event"] == "step" and event["step"] == DIES_AFTER:
                cable.pull()
        assert cluster.wait() == ExitCode.OK, events[-1]
    said = [e["reason"] for e in events if e["event"] == "warning"]
    assert any("w1" in text and "it is taken for dead, and planned around" in text for text in said)
    gone = next(e for e in events if e["event"] == "left")
    assert (gone["name"], gone["departure"]) == ("w1", Departure.FAILED)
    assert "its link to w0 is dead" in gone["reason"]
    placement = [e for e in events if e["event"] == "plan"][-1]["placement"]
    assert placement == [["w0", "w4"], ["w2", "w3"]]
    assert steps_of(events) == list(range(1, STEPS + 1))
    assert weights(tmp_path, "cut", STEPS) == weights(tmp_path, "undisturbed", STEPS)
    assert ledger_defect(tmp_path, "cut", STEPS) == ""
    assert left_over(tmp_path) == []
