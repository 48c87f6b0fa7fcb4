"""Many simulations from one specification, a line each, so that a sweep can be broken off and gone on with.

    out: results.jsonl            # beside the specification
    base: {scenario: worldwide, model: gpt3-xl-24, steps: 1}
    grid: {codec: [identity, kbit], schedule: [gpipe, 1f1b]}     # every combination
    points: [{codec: kbit:bits=4, streams: 8}]                   # and these

Keys are the options of `sim run`; paths are relative to the specification. A line is keyed by a hash of its
settings, so that a changed specification computes what is new and keeps what is not. Starts no process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from scheduler.names import nearest
from scheduler.reasons import reason_of
from sim.simulation import Settings, document, simulate

MAX_POINTS = 1_000_000


class SweepError(ValueError):
    """A specification that cannot be: names file and key, what was found and what is required."""


@dataclass(frozen=True, slots=True)
class Point:
    """One simulation: its settings as the specification names them."""

    key: str
    named: Mapping[str, Any]
    settings: Settings


@dataclass(frozen=True, slots=True)
class Sweep:
    points: tuple[Point, ...]
    out: Path


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "str | None": (str,), "int": (int,), "int | None": (int,), "float": (int, float),
    "Path | None": (str,), "tuple[str, ...]": (str, list),
}  # fmt: skip


def read_sweep(path: Path) -> Sweep:
    """Every point of the specification in `path`, in its order, equal ones once. Raises SweepError."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise SweepError(f"{path}: cannot be read: {reason_of(e)}") from e
    known = {"out": str, "base": dict, "grid": dict, "points": list}
    if not isinstance(raw, dict) or not set(raw) <= set(known):
        found = ", ".join(map(str, raw)) if isinstance(raw, dict) else type(raw).__name__
        raise SweepError(f"{path}: found {found}, required a mapping with keys among {', '.join(known)}")
    for key, kind in known.items():
        if key in raw and not isinstance(raw[key], kind):
            raise SweepError(f"{path}: {key}: found {raw[key]!r}, required a {kind.__name__}")
    grid = raw.get("grid", {})
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise SweepError(f"{path}: grid.{key}: found {values!r}, required a list of values")
    cells = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())] if grid else []
    asked = cells + raw.get("points", []) or [{}]
    if len(asked) > MAX_POINTS:
        raise SweepError(f"{path}: found {len(asked)} points, required at most {MAX_POINTS}")
    points: dict[str, Point] = {}
    for extra in asked:
        if not isinstance(extra, dict):
            raise SweepError(f"{path}: points: found {extra!r}, required a mapping of settings")
        point = _point({**raw.get("base", {}), **extra}, path)
        points.setdefault(point.key, point)
    return Sweep(tuple(points.values()), path.parent / raw.get("out", f"{path.stem}.jsonl"))


def _point(named: Mapping[str, Any], path: Path) -> Point:
    known = {f.name: str(f.type) for f in fields(Settings)}
    values: dict[str, Any] = {}
    for key in named:
        value = named[key]
        if key not in known:
            raise SweepError(f"{path}: found the setting {key!r}{nearest(key, list(known))}; "
                             f"required some of: {', '.join(known)}")  # fmt: skip
        kind = known[key]
        if isinstance(value, bool) or not isinstance(value, _TYPES[kind]):
            raise SweepError(f"{path}: {key}: found {value!r}, required {kind}")
        values[key] = value
        if kind == "Path | None":
            values[key] = path.parent / str(value)
        elif kind == "tuple[str, ...]":
            values[key] = (value,) if isinstance(value, str) else tuple(map(str, named[key]))
    settings = Settings(**values)
    text = json.dumps(asdict(settings), sort_keys=True, default=str)
    return Point(hashlib.sha256(text.encode()).hexdigest()[:16], named, settings)


def outcome(point: Point) -> dict[str, Any]:
    """The line of one point: its result, or the error that stood in its way."""
    line: dict[str, Any] = {"key": point.key, "settings": dict(point.named)}
    try:
        return line | {"result": document(simulate(point.settings))}
    except ValueError as e:
        return line | {"error": str(e)}


def done_before(out: Path) -> set[str]:
    """Keys of the results that `out` holds. A last line that was cut off is removed from the file.

    Raises SweepError for a file that holds something else.
    """
    if not out.exists():
        return set()
    text = out.read_text(encoding="utf-8")
    whole, _, rest = text.rpartition("\n")
    if rest:
        out.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
    keys = set()
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            keys.add(json.loads(line)["key"])
        except (ValueError, KeyError, TypeError) as e:
            raise SweepError(
                f"{out}:{number}: found no result of a sweep; required an --out of its own"
            ) from e
    return keys


def results(out: Path) -> list[dict[str, Any]]:
    """Every line of a results file, as `done_before` left it."""
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def append(out: Path, lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Write each line as it comes, and pass it on."""
    with out.open("a", encoding="utf-8") as f:
        for line in lines:
            f.write(json.dumps(line) + "\n")
            f.flush()
            yield line
