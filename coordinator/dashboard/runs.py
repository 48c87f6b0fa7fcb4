"""The other runs that a page can open: found below a directory, read from their state directories.

A run is asked for by its place below the directory, and only what was found there is opened, whatever a
request says. Boards of a few are kept, until their history is written to again. Reads files; knows no web.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from ..history import read_job
from ..run_list import RunSummary, state_dirs, summary_of
from ..state_dir import DATABASE, StoreError
from .board import Board
from .compare import differing
from .links import LinksByRegion
from .replay import board_of

MAX_RUNS = 1000
"""Listed, the newest first."""
MAX_COMPARED = 8
KEPT_BOARDS = 4

Stamp = tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Shown:
    """A run that a page shows."""

    board: Board
    state_dir: Path
    measured: LinksByRegion


@dataclass(frozen=True, slots=True)
class Below:
    """Where to look for other runs. `levels`: how deep; None: everywhere below."""

    directory: Path
    levels: int | None = None


class Runs:
    """The run that is served, `own`, and those below a directory; of its own it reads nothing."""

    def __init__(self, own: Path, below: Below | None) -> None:
        self._own = own
        self._below = below
        self._known: dict[Path, tuple[Stamp, RunSummary]] = {}
        self._boards: OrderedDict[Path, tuple[Stamp, Shown]] = OrderedDict()
        self._lock = Lock()
        """Threads ask; a history is read once, not by each."""

    def rows(self) -> list[dict[str, Any]]:
        """Every run in a few numbers, the last begun first; those that cannot be read have an `error`."""
        with self._lock:
            found = [self._row(name, path) for name, path in self._places().items()]
        found.sort(key=lambda row: -row["began_s"])
        return found[:MAX_RUNS]

    def shown(self, name: str) -> Shown | None:
        """The run of that place; None if there is none. Raises StoreError if it cannot be read."""
        with self._lock:
            path = self._places().get(name)
            return None if path is None else self._shown(path)

    def settings(self, names: Sequence[str]) -> list[dict[str, Any]] | None:
        """Where their jobs differ; None if one is not there. Raises StoreError."""
        places = self._places()
        if not all(name in places for name in names):
            return None
        return differing([read_job(places[name]) for name in names])

    def has_own(self) -> bool:
        """Whether there is a run in the state directory that is served."""
        return bool(state_dirs(self._own, 0))

    def _places(self) -> dict[str, Path]:
        """State directories by what they are called in requests."""
        found = {}
        if self._below is not None:
            for path in state_dirs(self._below.directory, self._below.levels):
                found[path.relative_to(self._below.directory).as_posix()] = path
        if self.has_own() and not any(self._same(p, self._own) for p in found.values()):
            found[os.path.relpath(self._own, self._below.directory if self._below else self._own)] = self._own
        return found

    def _row(self, name: str, path: Path) -> dict[str, Any]:
        own = self._same(path, self._own)
        try:
            return {"id": name, "own": own, "error": "", **asdict(self._summary(path))}
        except StoreError as error:
            nothing = dict.fromkeys(RunSummary.__slots__)
            return {"id": name, "own": own, "error": str(error), **nothing, "began_s": 0.0}

    def _summary(self, path: Path) -> RunSummary:
        stamp, known = stamp_of(path), self._known.get(path)
        if known is None or stamp is None or known[0] != stamp:
            known = self._known[path] = stamp, summary_of(path)
        return known[1]

    def _shown(self, path: Path) -> Shown:
        stamp, kept = stamp_of(path), self._boards.get(path)
        if kept is None or stamp is None or kept[0] != stamp:
            kept = self._boards[path] = stamp, Shown(board_of(path), path, LinksByRegion(path))
            while len(self._boards) > KEPT_BOARDS:
                self._boards.popitem(last=False)
        self._boards.move_to_end(path)
        return kept[1]

    @staticmethod
    def _same(a: Path, b: Path) -> bool:
        return a.absolute() == b.absolute()


def stamp_of(state_dir: Path) -> Stamp:
    """Another one when the run's history was written to; None if that cannot be known."""
    found: list[int] = []
    for name in (DATABASE, f"{DATABASE}-wal"):
        try:
            status = (state_dir / name).stat()
        except OSError:
            continue
        if status.st_size:  # reading alone leaves an empty log
            found += [status.st_mtime_ns, status.st_size]
    return tuple(found) or None
