"""What a long benchmark has found, a line each, so that it can be broken off and go on from there.

A cell is found for a setting, a dataclass of plain values that holds all that the cell depends on; a setting
that was never run is run, another is read.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sim.spread import MapTasks

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ROOT = Path(__file__).parents[2]
S = TypeVar("S", bound="DataclassInstance")
C = TypeVar("C", bound="DataclassInstance")


def kept(path: Path | None, settings: Sequence[S], read: Callable[[dict[str, Any]], C]) -> dict[S, C]:
    """What `path` holds of `settings`, made by `read` of its fields."""
    known = {_key(x["setting"]): x["cell"] for x in _lines(path)}
    return {s: read(known[_key(asdict(s))]) for s in settings if _key(asdict(s)) in known}


def filled(
    path: Path | None,
    settings: Sequence[S],
    work: Callable[[S], C],
    read: Callable[[dict[str, Any]], C],
    map_settings: MapTasks = map,
) -> Iterator[tuple[S, C]]:
    """Each setting with its cell: first those that are `kept`, then the others, worked out by `work` and
    written to `path` as they come."""
    known = kept(path, settings, read)
    yield from known.items()
    new = [s for s in settings if s not in known]
    for setting, found in zip(new, map_settings(work, new), strict=True):
        if path is not None:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"setting": asdict(setting), "cell": asdict(found)}) + "\n")
        yield setting, found


def sources(*patterns: str) -> str:
    """A short hash of the modules, as code: what a setting says of the program that its cell hangs on.
    Comments and the layout of lines do not count."""
    digest = hashlib.sha256()
    for path in sorted({p for pattern in patterns for p in ROOT.glob(pattern)}):
        digest.update(ast.dump(ast.parse(path.read_text(encoding="utf-8"))).encode())
    return digest.hexdigest()[:12]


def _lines(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _key(setting: dict[str, Any]) -> str:
    return json.dumps(setting, sort_keys=True)
