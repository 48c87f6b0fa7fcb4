"""Child processes that are never left over: start, follow their JSON lines, end them by pid.

Knows nothing of coordinators or workers; a child is a command, a log file and lines of JSON.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scheduler.exit_codes import ExitCode

Event = dict[str, Any]


class ProcessFailed(RuntimeError):
    """A child ended when it should not have; the message carries the end of its log.

    `code` is the child's exit code where it chose one, for whoever started us.
    """

    def __init__(self, reason: str, code: int = ExitCode.INTERNAL) -> None:
        super().__init__(reason)
        self.code = int(code)


class Child:
    """One command with stdout read as JSON lines and stderr in `log`.

    A line that is not a JSON object goes to the log too, so nothing a program says is lost.
    """

    def __init__(self, name: str, argv: Sequence[str], log: Path, cwd: Path | None = None) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log_file = log.open("a", encoding="utf-8")
        self.process = subprocess.Popen(
            list(argv),
            stdout=subprocess.PIPE,
            stderr=self._log_file,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=cwd,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then drains in order
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name=f"read-{name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._log_file.write(line)
                self._log_file.flush()
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(event, dict):
                    self._events.put(event)
        self._events.put(None)

    def events(self) -> Iterator[Event]:
        """The child's events as they come; ends when the child closes its output."""
        while (event := self._events.get()) is not None:
            yield event

    def wait_for(self, kind: str, timeout_s: float, or_kind: str = "") -> Event:
        """The next event whose `event` is `kind` or `or_kind`. Raises ProcessFailed if the child ends or is
        silent."""
        error = ""
        while True:
            try:
                event = self._events.get(timeout=timeout_s)
            except queue.Empty:
                raise ProcessFailed(
                    f"{self.name} said no {kind!r} within {timeout_s:g} s; its log ends:\n{self.tail()}"
                ) from None
            if event is None:
                code = self.process.wait()
                log = f"ended with exit code {code} before {kind!r}; its log ends:\n{self.tail()}"
                reason = f"{self.name}: {error}" if error else f"{self.name} {log}"
                raise ProcessFailed(reason, code if code > 0 else ExitCode.INTERNAL)
            if event.get("event") in (kind, or_kind):
                return event
            if event.get("event") == "error":
                error = str(event.get("reason", ""))

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def interrupt(self) -> None:
        """Ask it to drain, as a person's first Ctrl-C does."""
        if self.running:
            self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it at once, as a machine that loses power does."""
        if self.running:
            os.killpg(self.process.pid, signal.SIGKILL)

    def stop(self, grace_s: float = 10.0) -> int:
        """SIGTERM, and SIGKILL after `grace_s`. Returns the exit code; idempotent."""
        if self.running:
            self.process.terminate()
        try:
            code = self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            code = self.process.wait()
        self._reader.join(timeout=5)
        if not self._log_file.closed:
            self._log_file.close()
        return code

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def command(module: str, *arguments: str) -> list[str]:
    """The argv of one of our own commands under this interpreter, installed scripts or not."""
    return [sys.executable, "-m", f"{module}.cli", *arguments]


def free_port() -> int:
    """A TCP port of this machine's loopback that nobody has at this moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
