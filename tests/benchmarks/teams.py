"""Processes in namespaces that obey one parent: started, asked, and ended whatever happens.

The lines to them are Unix sockets, which network namespaces do not cut. Knows not what they are asked.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.switched import Space

ANSWER_S = 150.0
"""Whoever has not answered by then has failed."""


class Failed(Exception):
    """A contender could not do it: the reason in its words."""


@dataclass
class Team:
    """Four processes, a namespace each, and the lines to them."""

    spaces: Sequence[Space]
    pipes: Sequence[Connection]

    def ask(self, *order: Any) -> list[Any]:
        """Give all the same order, wait for all. Raises Failed."""
        for pipe in self.pipes:
            pipe.send(order)
        return [self.answer(pipe) for pipe in self.pipes]

    def answer(self, pipe: Connection) -> Any:
        try:
            if not pipe.poll(ANSWER_S):
                raise Failed(f"no answer within {ANSWER_S:g} s")
            said = pipe.recv()
        except (EOFError, OSError) as error:
            raise Failed(f"its process ended ({error!r})") from error
        if isinstance(said, Exception):
            raise Failed(str(said))
        return said


@contextmanager
def team(python: str, module: str, spaces: Sequence[Space], log: Path) -> Iterator[Team]:
    """Start `python -m module SOCKET RANK` in each namespace, end them all at last.

    Raises Failed if one does not come to the socket and say its rank.
    """
    with TemporaryDirectory(prefix="isthmus-peers-") as folder, ExitStack() as exit_stack:
        listener = exit_stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(f"{folder}/line")
        listener.listen(len(spaces))
        listener.settimeout(ANSWER_S)
        lines = exit_stack.enter_context(log.open("a"))
        for rank, space in enumerate(spaces):
            argv = [*space.enter, python, "-m", module, f"{folder}/line", str(rank)]
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=lines, stderr=lines, start_new_session=True
            )
            exit_stack.callback(_end, process)
        pipes: dict[int, Connection] = {}
        while len(pipes) < len(spaces):
            pipe = exit_stack.enter_context(_accept(listener, log))
            pipes[pipe.recv()] = pipe
        try:
            yield Team(spaces, [pipes[rank] for rank in range(len(spaces))])
        finally:
            for pipe in pipes.values():
                with suppress(OSError):  # it has ended already
                    pipe.send(("stop",))


def _accept(listener: socket.socket, log: Path) -> Connection:
    try:
        accepted, _ = listener.accept()
    except TimeoutError:
        raise Failed(
            f"a process did not begin within {ANSWER_S:g} s; what it said is in --log {log}"
        ) from None
    return Connection(accepted.detach())


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with what it may have started itself
    process.wait()
