"""NetLatency (uofa-rzhu3/NetLatency-Data, MIT): round trips between personal devices, slice by slice.

Takes the repository's own files (`SeattleData_1` ...: seconds, commas; `PlanetLabData_1` ...: milliseconds,
tabs; one n x n matrix each), or an npz with `rtt_10ms`: uint16 [slice, source, destination] in 10 ms.
A whole row is refreshed at once and held, so only changes become rows.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scheduler.reasons import reason_of
from scheduler.trace import About, LinkSeries, Node, Trace, TraceError, Vector
from scheduler.trace_text import MAX_ROWS
from sim.importers.readings import check_size, read_text

STEP_S = {"seattle": 15.7, "planetlab": 9 * 3600.0}
MAX_CELLS = 64_000_000
"""Of all slices together; 128 MB as uint16."""

Slices = NDArray[np.float64]
"""[slice, source, destination] in s; NaN unknown."""


def read(paths: Sequence[Path], name: str, step_s: float | None) -> Trace:
    """A trace of the npz, or of the slices in the order of the number that ends their names."""
    planetlab = "planetlab" in paths[0].name.lower()
    if paths[0].suffix == ".npz":
        if len(paths) > 1:
            raise TraceError(f"found {len(paths)} files, required one npz, or the text files of the slices")
        slices_s = _npz(paths[0])
    else:
        slices_s = np.stack(_texts(sorted(paths, key=_number)))
    step = step_s or STEP_S["planetlab" if planetlab else "seattle"]
    about = About(
        one_way_factor=0.5,
        latency_kind="rtt, application level",
        step_s=step,
        source="NetLatency (Zhu et al., IEEE/ACM Transactions on Networking), uofa-rzhu3/NetLatency-Data",
        licence="MIT",
        caveats="Personal devices: the tail is stalled hosts, not distance. "
        + ("" if step_s else f"The length of a slice is not in the data; {step:g} s is assumed."),
    )
    n = slices_s.shape[1]
    names = [f"n{i}" for i in range(n)]
    links = {
        (names[i], names[j]): link
        for i in range(n)
        for j in range(n)
        if i != j and (link := _changes(slices_s[:, i, j], step)) is not None
    }
    if not links:
        raise TraceError(f"{paths[0]}: found no round trip, required some above 0")
    if sum(len(link) for link in links.values()) > MAX_ROWS:
        raise TraceError(f"found more than {MAX_ROWS} changes, required at most that: choose fewer slices")
    return Trace(name, {k: Node(k, "planetlab" if planetlab else "seattle") for k in names}, links, about)


def _changes(rtt_s: NDArray[np.float64], step_s: float) -> LinkSeries | None:
    """The link of one pair, or None if nothing is known of it."""
    if np.isnan(rtt_s).all():
        return None
    same = (rtt_s[1:] == rtt_s[:-1]) | (np.isnan(rtt_s[1:]) & np.isnan(rtt_s[:-1]))
    at = np.flatnonzero(np.append(True, ~same))
    times_s: Vector = at.astype(np.float64) * step_s
    unknown = np.full(len(at), np.nan)
    return LinkSeries(times_s, rtt_s[at], unknown, unknown, unknown)


def _npz(path: Path) -> Slices:
    check_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(i.file_size for i in archive.infolist())
        if size > 2 * MAX_CELLS + 4096:
            raise TraceError(f"{path}: found {size} bytes unpacked, required at most {2 * MAX_CELLS}")
        with np.load(path, allow_pickle=False) as arrays:
            found = arrays["rtt_10ms"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
        raise TraceError(f"{path}: found {reason_of(e)}, required an npz with the array rtt_10ms") from e
    if found.dtype != np.uint16 or found.ndim != 3 or found.shape[1] != found.shape[2] or not found.size:
        raise TraceError(
            f"{path}: rtt_10ms: found {found.dtype} {list(found.shape)}, required uint16 [slice, n, n]"
        )
    return np.where(found == 0, 0.005, found / 100.0)  # below half of the resolution


def _number(path: Path) -> int:
    digits = re.search(r"(\d+)$", path.stem)
    if digits is None:
        raise TraceError(f"{path}: found no number at the end of the name, required one: the slice's")
    return int(digits[1])


def _texts(paths: Sequence[Path]) -> list[NDArray[np.float64]]:
    slices: list[NDArray[np.float64]] = []
    for path in paths:
        lines = read_text(path).strip().splitlines()
        comma = "," in (lines[0] if lines else "")
        n = len(lines)
        if n * n * len(paths) > MAX_CELLS or (slices and n != len(slices[0])):
            other = f"{len(slices[0])} rows as before" if slices else f"at most {MAX_CELLS} cells in all"
            raise TraceError(f"{path}: found {n} rows in {len(paths)} files, required {other}")
        matrix = np.empty((n, n))
        for i, line in enumerate(lines):
            cells = line.split("," if comma else None)
            try:
                row = np.array(cells, dtype=np.float64)
            except ValueError as e:
                raise TraceError(f"{path}:{i + 1}: found {e}, required numbers") from e
            if len(row) != n or not np.isfinite(row).all() or (row < 0).any():
                raise TraceError(
                    f"{path}:{i + 1}: found {len(row)} cells from {row.min():g} to {row.max():g}; "
                    f"required {n}, as many as rows, finite and 0 or more"
                )
            matrix[i] = row
        # Seattle's are whole hundredths of a second, so 0 is below half of one; elsewhere 0 is not measured.
        slices.append(
            np.where(matrix == 0, 0.005, matrix) if comma else np.where(matrix == 0, np.nan, matrix / 1e3)
        )
    return slices
