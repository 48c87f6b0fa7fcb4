"""The format `link-trace/1`, and how it is read; `scheduler.trace_write` is the way back, without loss.

    NAME.csv         t_s,src,dst,rtt_ms,bw_mbps[,jitter_ms,loss]   a row for each change of a directed link
    NAME.nodes.csv   node,provider,region,latitude,longitude,n_devices
    NAME.json        format, latency_kind, one_way_factor, bw_kind, intra_node, step_s, source, licence, ...

An empty cell is unknown, never 0. Milliseconds and Mbit/s exist only in these two modules: numbers are
shifted by powers of ten in their decimal form, so that writing what was read gives the same text
(in the json, up to 15 digits). Takes lines; opens nothing.
"""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from math import isfinite, nan
from typing import Any

import numpy as np

from scheduler.trace import About, LinkSeries, Node, Pair, Trace, TraceError

FORMAT = "link-trace/1"
MAX_ROWS = 5_000_000
"""Of a trace; 40 bytes each once read."""
MAX_NODES = 8192
MAX_FILE_BYTES = 512 << 20
"""Of each of the three files: nothing larger is opened."""

CSV, NODES_CSV, JSON = ".csv", ".nodes.csv", ".json"
"""What the three files' names end with."""

COLUMNS = ("t_s", "src", "dst", "rtt_ms", "bw_mbps")
OPTIONAL = ("jitter_ms", "loss")
NODE_COLUMNS = ("node", "provider", "region", "latitude", "longitude", "n_devices")
TEXTS = ("latency_kind", "bw_kind", "start", "source", "licence", "date", "caveats")
_KEYS = ("format", "name", *TEXTS[:1], "one_way_factor", *TEXTS[1:2], "intra_node", "step_s", *TEXTS[2:])
_WITHIN = ("delay_ms", "bw_mbps")


def parse_trace(name: str, path: str, rows: Iterable[str], nodes: Iterable[str], about: str) -> Trace:
    """The trace whose files hold these lines; `path`, without suffix, names them. Raises TraceError."""
    known = parse_nodes(nodes, path + NODES_CSV)
    links = _links(rows, path + CSV, known, path + NODES_CSV)
    has_rtt, has_bandwidth = (
        any(not np.isnan(getattr(link, c)).all() for link in links.values())
        for c in ("rtt_s", "bandwidth_Bps")
    )
    return Trace(name, known, links, parse_about(about, path + JSON, has_rtt, has_bandwidth))


# ---- reading


def _records(
    lines: Iterable[str], where: str, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, list[str]]]:
    """(line, cells in the order required + optional; '' for a column that is not there)."""
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        missing = [c for c in required if c not in header]
        strange = [c for c in header if c not in (*required, *optional)]
        if missing or strange or len(set(header)) != len(header):
            also = f" and if known {','.join(optional)}" if optional else ""
            raise TraceError(
                f"{where}:1: found the columns {','.join(header) or 'none'}; required {','.join(required)}"
                f"{also}, each once, the unit being part of the name"
            )
        at = [header.index(c) if c in header else -1 for c in (*required, *optional)]
        for cells in reader:
            if len(cells) != len(header):
                raise TraceError(
                    f"{where}:{reader.line_num}: found {len(cells)} cells, "
                    f"required {len(header)} as in the header"
                )
            yield reader.line_num, [cells[i] if i >= 0 else "" for i in at]
    except csv.Error as e:
        raise TraceError(f"{where}:{reader.line_num}: found no csv: {e}") from e
    except UnicodeDecodeError as e:
        raise TraceError(f"{where}:{reader.line_num + 1}: found bytes that are no UTF-8: {e.reason}") from e


def shifted(text: str, power: int) -> float:
    """The decimal number `text` x 10^power, rounded once. ValueError for anything else."""
    if "_" in text:
        raise ValueError(text)
    if "e" in text.lower():
        return float(Decimal(text).scaleb(power)) if isfinite(float(text)) else nan
    return float(f"{text}e{power}") + 0.0  # which makes -0 a 0


def _number(text: str, column: str, power: int = 0, required: str = "a number, 0 or more") -> float:
    """The cell x 10^power; NaN if it is empty. TraceError with `required` unless finite and >= 0."""
    if not text:
        return nan
    try:
        value = shifted(text, power)
    except ValueError:
        value = -1.0
    if not (isfinite(value) and value >= 0):
        raise TraceError(f"{column}: found {text!r}, required {required}, or nothing for unknown")
    return value


def parse_nodes(lines: Iterable[str], where: str) -> dict[str, Node]:
    """The nodes of a trace's second file, in its order. Raises TraceError."""
    found: dict[str, Node] = {}
    for line, (name, provider, region, latitude, longitude, n_devices) in _records(
        lines, where, NODE_COLUMNS
    ):
        at = f"{where}:{line}"
        if not name or name != name.strip() or not name.isprintable():
            raise TraceError(f"{at}: node: found {name!r}, required a name without space around it")
        if name in found:
            raise TraceError(f"{at}: node: found {name!r} a second time; required different names")
        if len(found) == MAX_NODES:
            raise TraceError(f"{at}: found more than {MAX_NODES} nodes; required at most that")
        if n_devices and not (n_devices.isdecimal() and 1 <= int(n_devices[:9]) <= MAX_NODES):
            raise TraceError(
                f"{at}: n_devices: found {n_devices!r}, required a whole number from 1 to {MAX_NODES}"
            )
        degrees = (_degrees(latitude, at, "latitude", 90), _degrees(longitude, at, "longitude", 180))
        found[name] = Node(name, provider, region, *degrees, int(n_devices or 1))
    if not found:
        raise TraceError(f"{where}: found no node, required one or more")
    return found


def _degrees(text: str, where: str, column: str, bound: int) -> float | None:
    try:
        value = float(text) if text else 0.0
    except ValueError:
        value = nan
    if not abs(value) <= bound:
        raise TraceError(f"{where}: {column}: found {text!r}, required degrees from -{bound} to {bound}")
    return value if text else None


def _links(
    lines: Iterable[str], where: str, nodes: Mapping[str, Node], nodes_file: str
) -> dict[Pair, LinkSeries]:
    links: dict[Pair, tuple[array[float], ...]] = {}
    for count, (line, cells) in enumerate(_records(lines, where, COLUMNS, OPTIONAL)):
        try:
            if count == MAX_ROWS:
                raise TraceError(f"found more than {MAX_ROWS} rows; required at most that")
            pair = _ends(cells, nodes, nodes_file)
            columns = links.get(pair)
            if columns is None:
                columns = links[pair] = tuple(array("d") for _ in range(5))
            values = _figures(cells, columns[0][-1] if columns[0] else -1.0)
        except TraceError as e:
            raise TraceError(f"{where}:{line}: {e}") from None
        for kept, value in zip(columns, values, strict=True):
            kept.append(value)
    if not links:
        raise TraceError(f"{where}: found no link, required one or more rows")
    return {pair: LinkSeries(*(np.array(c) for c in columns)) for pair, columns in links.items()}


def _ends(cells: Sequence[str], nodes: Mapping[str, Node], nodes_file: str) -> Pair:
    src, dst = cells[1], cells[2]
    for column, end in (("src", src), ("dst", dst)):
        if end not in nodes:
            raise TraceError(f"{column}: found {end!r}, required a node that {nodes_file} names")
    if src == dst:
        raise TraceError(f"dst: found {dst!r}, which is also src; required another node")
    return src, dst


def _figures(cells: Sequence[str], before_s: float) -> tuple[float, float, float, float, float]:
    """(t in s, rtt in s, bandwidth in bytes/s, jitter in s, loss) of a row that comes after `before_s`."""
    t, src, dst, rtt, bandwidth, jitter, loss = cells
    if not t:
        raise TraceError("t_s: found nothing, required seconds since the start")
    time_s = _number(t, "t_s")
    if time_s <= before_s:
        raise TraceError(
            f"t_s: found {t}, required more than the {before_s:g} of the row before of {src} -> {dst}: "
            "time does not run backwards"
        )
    bits = _number(bandwidth, "bw_mbps", 6, "more than 0")
    if bits == 0:
        raise TraceError(f"bw_mbps: found {bandwidth!r}, required more than 0, or nothing for unknown")
    lost = _number(loss, "loss", 0, "a share from 0 to below 1")
    if lost >= 1:
        raise TraceError(f"loss: found {loss!r}, required a share from 0 to below 1")
    return time_s, _number(rtt, "rtt_ms", -3), bits / 8, _number(jitter, "jitter_ms", -3), lost


def parse_about(text: str, where: str, has_rtt: bool = True, has_bandwidth: bool = True) -> About:
    """A trace's description; `has_`: what its rows say and it must explain. Raises TraceError."""
    try:
        meta = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise TraceError(f"{where}: found {e}, required the trace's description as JSON") from e
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = repr(meta.get("format")) if isinstance(meta, dict) else type(meta).__name__
        raise TraceError(f"{where}: format: found {found}, required {FORMAT!r}")
    for key, wanted, why in (
        ("one_way_factor", has_rtt, "0.5 (one way is half of a round trip) or 1.0 (the delays are one way)"),
        ("latency_kind", has_rtt, "what rtt_ms is, such as 'rtt'"),
        ("bw_kind", has_bandwidth, "what bw_mbps is of, such as 'single TCP flow'"),
    ):
        if wanted and meta.get(key) in (None, ""):
            raise TraceError(f"{where}: {key}: found none, required {why}")
    texts = {key: meta.get(key, "") for key in TEXTS}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise TraceError(f"{where}: {key}: found {value!r}, required text")
    within = meta.get("intra_node") or {}
    if not isinstance(within, dict) or set(within) - set(_WITHIN):
        raise TraceError(f"{where}: intra_node: found {within!r}, required delay_ms and bw_mbps")
    factor = _optional(meta, "one_way_factor", where)
    if factor is not None and not 0 < factor <= 1:
        raise TraceError(f"{where}: one_way_factor: found {factor}, required more than 0 and at most 1")
    bits = _optional(within, "bw_mbps", f"{where}: intra_node", 6)
    if bits == 0:
        raise TraceError(f"{where}: intra_node: bw_mbps: found 0, required more than 0")
    return About(
        one_way_factor=factor,
        within_rtt_s=_optional(within, "delay_ms", f"{where}: intra_node", -3),
        within_bandwidth_Bps=None if bits is None else bits / 8,
        step_s=_optional(meta, "step_s", where),
        other={k: v for k, v in meta.items() if k not in _KEYS},
        **texts,
    )


def _no_constant(name: str) -> float:
    raise ValueError(f"the number {name}")


def _optional(meta: Mapping[str, Any], key: str, where: str, power: int = 0) -> float | None:
    value = meta.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TraceError(f"{where}: {key}: found {value!r}, required a number, 0 or more")
    try:
        return _number(str(value), key, power)
    except TraceError as e:
        raise TraceError(f"{where}: {e}") from None
