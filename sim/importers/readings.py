"""What every importer collects: readings of links at moments, and where the places are.

A reading changes only what it measured; the rest of its link stays as it was. Several readings of one
figure at one moment become their median.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from math import isfinite
from pathlib import Path
from statistics import median

from scheduler.reasons import reason_of
from scheduler.trace import About, Node, Pair, Row, Trace, TraceError, series
from scheduler.trace_text import MAX_FILE_BYTES, MAX_NODES, MAX_ROWS, shifted

FIGURES = ("rtt_s", "bandwidth_Bps", "jitter_s", "loss")


class Readings:
    """Figures of directed links at moments, as they are found."""

    def __init__(self) -> None:
        self._links: dict[Pair, dict[float, dict[str, list[float]]]] = defaultdict(dict)
        self._count = 0

    def add(self, t_s: float, src: str, dst: str, **figures: float | None) -> None:
        """Figures as in FIGURES; None: not measured. A link to itself is left out. Raises TraceError."""
        known = {k: v for k, v in figures.items() if v is not None}
        if src == dst or not known:
            return
        for name, value in known.items():
            if not isfinite(value) or value < 0:
                raise TraceError(f"{src} -> {dst}: {name}: found {value}, required a number, 0 or more")
        self._count += 1
        if self._count > MAX_ROWS:
            raise TraceError(
                f"found more than {MAX_ROWS} readings; required at most that: choose nodes or files"
            )
        at = self._links[src, dst].setdefault(t_s, {})
        for name, value in known.items():
            at.setdefault(name, []).append(value)

    def pairs(self) -> tuple[Pair, ...]:
        return tuple(self._links)

    def has(self, pair: Pair, figure: str) -> bool:
        """Whether `figure` of the link was ever read."""
        return any(figure in at for at in self._links.get(pair, {}).values())

    def mirror_round_trips(self) -> int:
        """A round trip is the same seen from the other end: fill it in where that end measured none."""
        lacking = [
            (s, d) for s, d in self._links if self.has((s, d), "rtt_s") and not self.has((d, s), "rtt_s")
        ]
        for src, dst in lacking:
            for t_s, at in list(self._links[src, dst].items()):
                if "rtt_s" in at:
                    self.add(t_s, dst, src, rtt_s=median(at["rtt_s"]))
        return len(lacking)

    def trace(self, name: str, about: About, node_of: Mapping[str, Node] | None = None) -> Trace:
        """The trace of everything read; nodes are placed by `node_of`, or by the names of cloud regions."""
        names = sorted({end for pair in self._links for end in pair})
        if not names:
            raise TraceError("found no reading of a link between two places, required one or more")
        if len(names) > MAX_NODES:
            raise TraceError(f"found {len(names)} places, required at most {MAX_NODES}")
        nodes = {n: (node_of or {}).get(n) or place(n) for n in names}
        start = min(min(moments) for moments in self._links.values())
        links = {pair: series(_rows(moments, start)) for pair, moments in sorted(self._links.items())}
        return Trace(name, nodes, links, about)


def _rows(moments: Mapping[float, Mapping[str, Sequence[float]]], start_s: float) -> Iterator[Row]:
    held: dict[str, float | None] = dict.fromkeys(FIGURES)
    last: tuple[float | None, ...] | None = None
    for t_s in sorted(moments):
        held |= {name: median(values) for name, values in moments[t_s].items()}
        state = (held["rtt_s"], held["bandwidth_Bps"] or None, held["jitter_s"], held["loss"])
        if state != last:
            yield (t_s - start_s, *state)
        last = state


# ---- where places are


@cache
def _regions() -> dict[tuple[str, str], Node]:
    found: dict[tuple[str, str], Node] = {}
    text = files("sim").joinpath("importers/regions.csv").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    for row in csv.DictReader(lines):
        node = Node("", row["provider"], row["region"], float(row["latitude"]), float(row["longitude"]))
        found[row["provider"], row["region"]] = found[row["provider"], row["name"]] = node
    return found


def place(name: str, provider: str = "") -> Node:
    """The node called `name`, positioned if it is a cloud's region: `aws:us-east-1`, `gcp:us-east1-b`,
    `us-east-1` or, with its provider, the region's public name (`Dallas`)."""
    cloud, _, region = name.rpartition(":")
    region = region or name
    zone = region[:-2] if len(region) > 2 and region[-2] == "-" and region[-1].isalpha() else region
    for key in ((cloud or provider or "aws", r) for r in (region, zone)):
        if found := _regions().get(key):
            return Node(name, found.provider, found.region, found.latitude, found.longitude)
    return Node(name, cloud or provider)


# ---- reading files


def read_text(path: Path) -> str:
    """The file as text, under the size cap. Raises TraceError."""
    check_size(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise TraceError(f"{path}: cannot be read: {reason_of(e)}") from e


def check_size(path: Path) -> None:
    """TraceError for a file that is not there or too large."""
    try:
        size = path.stat().st_size
    except OSError as e:
        raise TraceError(f"{path}: cannot be read: {reason_of(e)}") from e
    if size > MAX_FILE_BYTES:
        raise TraceError(f"{path}: found {size} bytes, required at most {MAX_FILE_BYTES}")


def table(path: Path, text: str, columns: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """("FILE:LINE", row) of a csv that has at least these columns. Raises TraceError."""
    reader = csv.DictReader(text.splitlines(), strict=True)
    missing = [c for c in columns if c not in (reader.fieldnames or ())]
    if missing:
        found = ",".join(reader.fieldnames or ()) or "none"
        raise TraceError(f"{path}:1: found the columns {found[:200]}; required also {','.join(missing)}")
    try:
        for row in reader:
            if None in row or None in row.values():
                raise TraceError(
                    f"{path}:{reader.line_num}: found another number of cells than the header has"
                )
            yield f"{path}:{reader.line_num}", row
    except csv.Error as e:
        raise TraceError(f"{path}:{reader.line_num}: found no csv: {e}") from e


def number(row: Mapping[str, str], column: str, where: str, power: int = 0) -> float | None:
    """The cell x 10^power, None if it is empty. TraceError unless it is a finite number, 0 or more."""
    text = row[column].strip()
    if not text:
        return None
    try:
        value = shifted(text, power)
    except ValueError:
        value = -1.0
    if not (isfinite(value) and value >= 0):
        raise TraceError(f"{where}: {column}: found {text!r}, required a number, 0 or more, or nothing")
    return value


def bits(row: Mapping[str, str], column: str, where: str, power: int = 0) -> float | None:
    """The cell's bits a second x 10^power, in bytes a second."""
    rate = number(row, column, where, power)
    return None if rate is None else rate / 8
