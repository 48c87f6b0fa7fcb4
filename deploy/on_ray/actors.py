"""What runs on the nodes of a Ray cluster: an actor that keeps the coordinator, actors that keep a worker.

Each holds one of our own commands as a child process, starts it again when it fails, and ends it with
itself. Plain classes, so that nothing but `launch.py` needs Ray's decorators; training is no business of
theirs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.metrics import Gauge

from coordinator.certs import CA
from deploy.processes import Child, Event, command
from deploy.supervise import Supervisor

NAMESPACE = "isthmus"
KEPT_EVENTS = 10_000
_GAUGES = {
    "step": ("isthmus_step", "Steps committed."),
    "loss": ("isthmus_loss", "Training loss of the last step."),
    "tokens_per_s": ("isthmus_tokens_per_second", "Over the last steps."),
}


def coordinator_name(run: str) -> str:
    """The actor's name on the cluster."""
    return f"{run}-coordinator"


def _kept(argv: list[str]) -> list[str]:
    return [sys.executable, "-m", "deploy.with_parent", str(os.getpid()), *argv]


def _say(name: str) -> Callable[[str], None]:
    return lambda words: print(f"{name}: {words}", flush=True)  # an actor's output is in Ray's log


class Keeper:
    """A command kept running in a thread of the actor."""

    def __init__(self, name: str, start: Callable[[int], Child]) -> None:
        self._name = name
        self._supervisor = Supervisor(lambda starts: start(starts).process, _say(name))
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run, name=f"keep-{name}", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        self.code = self._supervisor.run()

    def end(self, timeout_s: float) -> int | None:
        """Ask it to end and wait for it; its exit code, None if it is still there."""
        threading.Thread(target=self._supervisor.stop, daemon=True).start()
        self._thread.join(timeout_s)
        return self.code

    @property
    def starts(self) -> int:
        return self._supervisor.starts


class CoordinatorActor:
    """`coordinator start` on this node; its events are read by whoever asks."""

    def __init__(self, run: str, job: str, min_workers: int, state_dir: str) -> None:
        self._run = run
        self._state_dir = Path(state_dir)
        self._listening: Event | None = None
        self._events: deque[tuple[int, Event]] = deque(maxlen=KEPT_EVENTS)
        self._seen = 0
        self._changed = threading.Condition()
        self._gauges = {key: Gauge(name, text, tag_keys=("run",)) for key, (name, text) in _GAUGES.items()}
        host = ray.util.get_node_ip_address()
        self._state_dir.mkdir(parents=True, exist_ok=True)
        job_file = self._state_dir.with_name(f"{self._state_dir.name}-job.yaml")
        job_file.write_text(job, encoding="utf-8")
        self._bind = f"{host}:0"
        self._argv = command(
            "coordinator", "start", str(job_file), "--min-workers", str(min_workers),
            "--state-dir", str(self._state_dir), "--json",
        )  # fmt: skip
        certify = command("coordinator", "certs", "--host", host, "--state-dir", str(self._state_dir))
        subprocess.run(certify, check=True)
        self._keeper = Keeper("coordinator", lambda _: self._start())
        self._keeper.begin()

    def _start(self) -> Child:
        if self._listening is not None:  # workers that wait for it know this address
            self._bind = str(self._listening["address"])
        again = ["--resume"] if (self._state_dir / "run.sqlite").exists() else []
        argv = [*self._argv, "--bind", self._bind, *again]
        self._listening = None
        child = Child("coordinator", _kept(argv), self._state_dir / "logs" / "coordinator.log")
        self._child = child
        threading.Thread(target=self._read, args=(child,), daemon=True).start()
        return child

    def _read(self, child: Child) -> None:
        for event in child.events():
            with self._changed:
                if event.get("event") == "listening":
                    self._listening = event
                self._seen += 1
                self._events.append((self._seen, event))
                self._changed.notify_all()
            if event.get("event") == "step":
                for key, gauge in self._gauges.items():
                    gauge.set(float(event[key]), tags={"run": self._run})
            else:
                print(event, flush=True)

    def door(self, timeout_s: float) -> tuple[str, str, str]:
        """(address, token, CA as PEM) once it listens. TimeoutError with its log's end if it does not."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._listening is not None, timeout_s):
                raise TimeoutError(f"the coordinator does not listen; its log ends:\n{self._child.tail()}")
            assert self._listening is not None
            token = Path(self._listening["token_file"]).read_text(encoding="utf-8").strip()
            ca = (self._state_dir / "tls" / CA).read_text(encoding="utf-8")
            return str(self._listening["address"]), token, ca

    def events(self, after: int, timeout_s: float) -> tuple[list[tuple[int, Event]], int | None]:
        """What happened after the numbered event (waiting for it), and the exit code once all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._seen > after or self._keeper.code is not None, timeout_s)
            new = [(n, event) for n, event in self._events if n > after]
            return new, None if new else self._keeper.code

    def drain(self, timeout_s: float) -> int | None:
        """Finish the step, save, end."""
        return self._keeper.end(timeout_s)

    def report(self) -> dict[str, Any]:
        """For `deploy ray status`."""
        steps = [event for _, event in self._events if event.get("event") == "step"]
        phases = [event for _, event in self._events if event.get("event") == "phase"]
        last = {**(phases[-1] if phases else {}), **(steps[-1] if steps else {})}
        last.pop("event", None)
        return {"starts": self._keeper.starts, "code": self._keeper.code, "last": last}


class WorkerActor:
    """`worker join` on this node; finds the run's coordinator by its name, also after a restart of either."""

    def __init__(self, run: str, name: str, options: Mapping[str, str], gpus: float) -> None:
        self._run = run
        self._name = name
        self._dir = Path.home() / ".cache" / "isthmus" / "ray" / name
        self._options = dict(options) | {"--device": "cuda" if gpus else "cpu"}
        self._keeper = Keeper(name, lambda _: self._start())
        self._keeper.begin()

    def _start(self) -> Child:
        coordinator = ray.get_actor(coordinator_name(self._run), namespace=NAMESPACE)
        address, token, ca = ray.get(coordinator.door.remote(300.0))
        self._dir.mkdir(parents=True, exist_ok=True)
        token_file, ca_file = self._dir / "token", self._dir / CA
        token_file.touch(mode=0o600)
        token_file.write_text(token, encoding="utf-8")
        ca_file.write_text(ca, encoding="utf-8")
        host = ray.util.get_node_ip_address()
        argv = command(
            "worker", "join", address, "--token-file", str(token_file), "--name", self._name, "--json",
            "--ca", str(ca_file), "--bind", f"{host}:0", "--join-timeout", "60",
            *(word for option in self._options.items() for word in option),
        )  # fmt: skip
        return Child(self._name, _kept(argv), self._dir / "worker.log")

    def end(self, timeout_s: float) -> int | None:
        """Finish the step, hand over, leave."""
        return self._keeper.end(timeout_s)

    def report(self) -> dict[str, Any]:
        """For `deploy ray status`; `pid`: of the actor, for whoever looks at the node."""
        return {"starts": self._keeper.starts, "code": self._keeper.code, "pid": os.getpid()}
