"""Reads a topology from a file: `link-trace/1` (csv, nodes.csv, json) at t = 0, or plain JSON.

Every fault is a TopologyError that names file, what was found and what is required. Knows nothing
of plans.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse.csgraph import connected_components

from scheduler.reasons import reason_of
from scheduler.topology import Device, Matrix, Topology, TopologyError
from scheduler.trace import TraceError
from sim.network import TraceNetwork
from sim.trace import load

MAX_FILE_BYTES = 512 * 1024 * 1024
"""A matrix of 4,096 devices as JSON is about 300 MB; nothing larger is taken into memory."""
MAX_DEVICES = 8192

Positions = dict[str, tuple[float, float]]
"""region -> (latitude, longitude) in degrees."""


@dataclass(frozen=True, slots=True)
class TopologyFile:
    topology: Topology
    positions: Positions


def read_topology(path: Path) -> TopologyFile:
    """The topology in `path`: *.csv or its *.json of `link-trace/1`, or plain JSON. Raises TopologyError."""
    if path.suffix == ".csv":
        return _trace(path)
    document = _json(path)
    if isinstance(document, dict) and "format" in document:
        return _trace(path.with_suffix(".csv"))
    return _plain(path, document)


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TopologyError(f"{path}: found {size} bytes, required at most {MAX_FILE_BYTES}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TopologyError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as e:
        raise TopologyError(f"{path}: cannot be read: {reason_of(e)}") from e


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as e:
        raise TopologyError(f"{path}:{e.lineno}: not JSON: {e.msg}") from e


def _plain(path: Path, document: Any) -> TopologyFile:
    if not isinstance(document, dict):
        raise TopologyError(f"{path}: found {type(document).__name__}, required an object")
    missing = {"devices", "latency_s", "bandwidth_Bps"} - document.keys()
    if missing:
        raise TopologyError(
            f"{path}: missing {', '.join(sorted(missing))}; required devices, latency_s, bandwidth_Bps"
        )
    entries = document["devices"]
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "name" in e for e in entries):
        raise TopologyError(f"{path}: devices: required a list of objects, each with a name")
    if len(entries) > MAX_DEVICES:
        raise TopologyError(f"{path}: found {len(entries)} devices, required at most {MAX_DEVICES}")
    positions: Positions = {}
    devices = []
    for at, e in enumerate(entries):
        try:
            device = Device(
                str(e["name"]),
                str(e.get("region", "")),
                str(e.get("host", "")),
                int(e.get("memory_bytes", 0)),
                float(e.get("flops", 0.0)),
                int(e.get("host_cores", 0)),
                float(e.get("uplink_Bps", 0.0)),
                float(e.get("downlink_Bps", 0.0)),
            )
            if "latitude" in e and "longitude" in e:
                positions[device.region or device.name] = (float(e["latitude"]), float(e["longitude"]))
        except (TypeError, ValueError) as error:
            raise TopologyError(f"{path}: devices[{at}]: {error}") from error
        devices.append(device)
    names = [d.name for d in devices]
    latency_s = _matrix(path, document, "latency_s", names)
    bandwidth_Bps = _matrix(path, document, "bandwidth_Bps", names)
    _require_links(path, names, latency_s, bandwidth_Bps)
    flow_Bps = _matrix(path, document, "flow_Bps", names) if "flow_Bps" in document else None
    egress_Bps = _egress(path, document.get("egress_Bps", {}), {d.region for d in devices})
    topology = _checked(path, tuple(devices), latency_s, bandwidth_Bps, flow_Bps, egress_Bps)
    return TopologyFile(topology, positions)


def _egress(path: Path, given: Any, regions: set[str]) -> dict[str, float]:
    """What each region sends to others at most, for those that have a limit."""
    if not isinstance(given, dict) or not set(given) <= regions:
        raise TopologyError(
            f"{path}: egress_Bps: found {given!r}, required bytes a second by region, of: "
            + ", ".join(sorted(regions))
        )
    for region, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TopologyError(f"{path}: egress_Bps.{region}: found {value!r}, required a number")
    return {region: float(value) for region, value in given.items()}


def _matrix(path: Path, document: dict[str, Any], key: str, names: list[str]) -> Matrix:
    """null: unknown (inf here, judged by `_require_links`); anything else must be a number."""
    rows, n = document[key], len(names)
    widths = {len(r) if isinstance(r, list) else -1 for r in rows} if isinstance(rows, list) else {-1}
    if not isinstance(rows, list) or len(rows) != n or widths != {n}:
        found = (
            f"{len(rows)} rows of {sorted(widths)}"
            if isinstance(rows, list) and -1 not in widths
            else "no matrix"
        )
        raise TopologyError(f"{path}: {key}: found {found}, required {n} x {n} for {n} devices")
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise TopologyError(
                    f"{path}: {key}[{names[i]}, {names[j]}]: found {value!r}, required a number"
                )
    return np.array([[np.inf if v is None else float(v) for v in row] for row in rows], dtype=np.float64)


def _require_links(path: Path, names: list[str], latency_s: Matrix, bandwidth_Bps: Matrix) -> None:
    """Every pair needs a figure: says which parts cannot reach each other, or else what is unknown."""
    usable = np.isfinite(latency_s) & np.isfinite(bandwidth_Bps) & (bandwidth_Bps > 0)
    known = usable | np.isnan(latency_s) | np.isnan(bandwidth_Bps)
    np.fill_diagonal(known, True)
    n_parts, part = connected_components(known, directed=True, connection="strong")
    if n_parts > 1:
        parts = [", ".join(np.array(names)[part == k][:4]) for k in range(min(n_parts, 3))]
        raise TopologyError(
            f"{path}: the topology is disconnected: found {n_parts} parts that cannot reach each other ("
            + " | ".join(parts)
            + "); required links both ways between all devices: leave out the devices that cannot be reached"
        )
    unknown = np.isinf(latency_s) | np.isinf(bandwidth_Bps)
    np.fill_diagonal(unknown, False)
    if unknown.any():
        i, j = np.argwhere(unknown)[0]
        raise TopologyError(
            f"{path}: found no figures for {int(unknown.sum())} links, the first {names[i]} -> {names[j]}; "
            "required latency and bandwidth of every link: measure it or leave a device out"
        )


def _checked(
    path: Path,
    devices: tuple[Device, ...],
    latency_s: Matrix,
    bandwidth_Bps: Matrix,
    flow_Bps: Matrix | None = None,
    egress_Bps: Mapping[str, float] | None = None,
) -> Topology:
    try:
        return Topology(devices, latency_s, bandwidth_Bps, flow_Bps, egress_Bps or {})
    except TopologyError as e:
        raise TopologyError(f"{path}: {e}") from e


def _trace(path: Path) -> TopologyFile:
    """The links at t = 0; each node becomes its n_devices devices. Raises TopologyError."""
    try:
        trace = load(path)
        total = sum(n.n_devices for n in trace.nodes.values())
        if total > MAX_DEVICES:
            raise TopologyError(f"{path}: n_devices: found {total} in all, required at most {MAX_DEVICES}")
        topology = TraceNetwork(trace).topology(0.0)
    except TraceError as e:
        raise TopologyError(str(e)) from e
    return TopologyFile(topology, trace.positions)
