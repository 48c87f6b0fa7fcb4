"""Recorded links: the format `link-trace/1`, read strictly, and asked for a link at a moment.

    NAME.csv         t_s,src,dst,rtt_ms,bw_mbps   a row for each change of a directed link
    NAME.nodes.csv   node,provider,region,latitude,longitude,n_devices
    NAME.json        format, one_way_factor, units, source, licence

An empty cell is unknown, never 0. Milliseconds and Mbit/s end here: what is given is seconds and
bytes a second. Knows nothing of plans or processes.
"""

from __future__ import annotations

import csv
import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

FORMAT = "link-trace/1"
SHIPPED = Path(__file__).parent / "traces"
MAX_ROWS = 5_000_000
COLUMNS = ("t_s", "src", "dst", "rtt_ms", "bw_mbps")
NODE_COLUMNS = ("node", "provider", "region", "latitude", "longitude", "n_devices")


class TraceError(ValueError):
    """A trace that cannot be read: names file and line, what was found and what is required."""


@dataclass(frozen=True, slots=True)
class Node:
    """A place of a trace; positions in degrees, None if unknown."""

    name: str
    provider: str
    region: str
    latitude: float | None
    longitude: float | None
    n_devices: int


@dataclass(frozen=True, slots=True)
class LinkState:
    """A directed link at a moment. `one_way_s` is the round trip times the trace's factor."""

    rtt_s: float
    one_way_s: float
    bandwidth_Bps: float | None
    """None: the trace does not say."""


Series = tuple[tuple[float, ...], tuple[LinkState, ...]]
"""Times in s, ascending; the state from each time on."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Links between nodes over time, sample-and-hold."""

    name: str
    nodes: dict[str, Node]
    links: dict[tuple[str, str], Series]
    """(src, dst) -> what that directed link was."""
    one_way_factor: float
    source: str
    licence: str

    @property
    def duration_s(self) -> float:
        """The time of the last change."""
        return max((times[-1] for times, _ in self.links.values()), default=0.0)

    def at(self, t_s: float, src: str, dst: str) -> LinkState:
        """The link at `t_s`; before its first row, as in its first. KeyError for a pair it does not have."""
        times, states = self.links[src, dst]
        return states[max(bisect_right(times, t_s) - 1, 0)]


def shipped() -> list[str]:
    """Names of the traces that come with Isthmus."""
    return sorted(p.stem for p in SHIPPED.glob("*.json"))


def load(name_or_path: str) -> Trace:
    """A shipped trace by name, or one of `link-trace/1` by the path of its csv. Raises TraceError."""
    path = SHIPPED / f"{name_or_path}.csv" if name_or_path in shipped() else Path(name_or_path)
    if path.suffix != ".csv":
        path = path.with_suffix(".csv")
    if not path.exists():
        raise TraceError(
            f"found no trace {name_or_path!r}; required a file, or one of: {', '.join(shipped())}"
        )
    meta = _metadata(path.with_suffix(".json"))
    nodes = {n.name: n for n in _nodes(path.with_suffix(".nodes.csv"))}
    factor = _number(meta.get("one_way_factor"), f"{path.with_suffix('.json')}: one_way_factor")
    assert factor is not None
    links = _links(path, nodes, factor)
    return Trace(path.stem, nodes, links, factor, str(meta.get("source", "")), str(meta.get("licence", "")))


def _metadata(path: Path) -> dict[str, object]:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise TraceError(f"{path}: found {e}, required the trace's description as JSON") from e
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise TraceError(f"{path}: format: found {found!r}, required {FORMAT!r}")
    if meta.get("one_way_factor") is None:
        raise TraceError(f"{path}: one_way_factor: found none, required 0.5 (round trips) or 1.0 (one way)")
    return meta


def _rows(path: Path, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8", newline="") as f:
            reader = csv.DictReader(f)
            missing = [c for c in required if c not in (reader.fieldnames or ())]
            if missing:
                raise TraceError(
                    f"{path}:1: found no column {', '.join(missing)}; required {','.join(required)}"
                )
            for i, row in enumerate(reader, start=2):
                if i > MAX_ROWS:
                    raise TraceError(f"{path}: found more than {MAX_ROWS} rows; required at most that")
                if None in row.values() or None in row:
                    raise TraceError(f"{path}:{i}: found another number of cells than the header has")
                yield i, row
    except (OSError, UnicodeDecodeError) as e:
        raise TraceError(f"{path}: cannot be read: {e}") from e


def _number(text: object, where: str) -> float | None:
    """The cell as a number; None if it is empty. Raises TraceError for one that is negative or none."""
    if text in ("", None):
        return None
    try:
        value = float(str(text))
    except ValueError:
        value = float("nan")
    if not isfinite(value) or value < 0:
        raise TraceError(f"{where}: found {text!r}, required a number, 0 or more")
    return value


def _nodes(path: Path) -> Iterator[Node]:
    for line, row in _rows(path, NODE_COLUMNS):
        degrees = []
        for column, bound in (("latitude", 90.0), ("longitude", 180.0)):
            try:
                value = float(row[column]) if row[column] else None
            except ValueError:
                value = float("nan")
            if value is not None and not abs(value) <= bound:
                raise TraceError(f"{path}:{line}: {column}: found {row[column]!r}, required degrees")
            degrees.append(value)
        count = _number(row["n_devices"], f"{path}:{line}: n_devices")
        yield Node(row["node"], row["provider"], row["region"], degrees[0], degrees[1], int(count or 1))


def _links(path: Path, nodes: dict[str, Node], factor: float) -> dict[tuple[str, str], Series]:
    rows: dict[tuple[str, str], list[tuple[float, LinkState]]] = {}
    for line, row in _rows(path, COLUMNS):
        where = f"{path}:{line}"
        for end in ("src", "dst"):
            if row[end] not in nodes:
                raise TraceError(
                    f"{where}: {end}: found {row[end]!r}, which {path.stem}.nodes.csv does not name"
                )
        if row["src"] == row["dst"]:
            raise TraceError(f"{where}: found a link from {row['src']} to itself")
        t_s = _number(row["t_s"], f"{where}: t_s")
        rtt_ms = _number(row["rtt_ms"], f"{where}: rtt_ms")
        mbps = _number(row["bw_mbps"], f"{where}: bw_mbps")
        if t_s is None:
            raise TraceError(f"{where}: t_s: found nothing, required seconds since the start")
        if mbps == 0:
            raise TraceError(f"{where}: bw_mbps: found 0; leave the cell empty for unknown")
        link = rows.setdefault((row["src"], row["dst"]), [])
        if link and t_s <= link[-1][0]:
            raise TraceError(
                f"{where}: t_s: found {t_s:g} after {link[-1][0]:g}; time must not run backwards"
            )
        rtt_s = (rtt_ms or 0.0) / 1e3
        link.append((t_s, LinkState(rtt_s, rtt_s * factor, None if mbps is None else mbps * 1e6 / 8)))
    if not rows:
        raise TraceError(f"{path}: found no link, required one or more")
    return {pair: (tuple(t for t, _ in link), tuple(s for _, s in link)) for pair, link in rows.items()}
