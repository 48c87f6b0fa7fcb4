"""The kinds of files that `sim traces import` takes, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scheduler.trace import Trace, TraceError
from sim.importers import clouds, logs, netlatency


@dataclass(frozen=True, slots=True)
class Kind:
    """`read(files, name, step_s)`; `step_s` None: what the source says or is known for."""

    read: Callable[[Sequence[Path], str, float | None], Trace]
    takes: str


KINDS: dict[str, Kind] = {
    "netlatency": Kind(
        netlatency.read, "NetLatency's SeattleData_N or PlanetLabData_N, or an npz of rtt_10ms"
    ),
    "skyplane": Kind(
        clouds.read_skyplane, "Skyplane's latency.csv and throughput.csv, or a table of its links"
    ),
    "wanify": Kind(clouds.read_wanify, "WANify's dynamicN_20.json"),
    "ibm": Kind(clouds.read_ibm, "a csv of IBM's 30-day means"),
    "azure": Kind(clouds.read_azure, "a csv of Microsoft's matrix of medians"),
    "hivemind": Kind(clouds.read_hivemind, "a csv of hivemind's iperf and ping logs"),
    "ping": Kind(
        logs.read, "ping's output, SOURCE-to-DESTINATION.txt for each link; iperf3's may be among it"
    ),
    "iperf3": Kind(
        logs.read, "iperf3 --json, SOURCE-to-DESTINATION.json for each link; ping's may be among it"
    ),
}


def import_trace(kind: str, paths: Sequence[Path], name: str, step_s: float | None = None) -> Trace:
    """The trace in `paths`, which are of `kind`. Raises TraceError."""
    if kind not in KINDS:
        raise TraceError(f"found the kind {kind!r}, required one of {', '.join(KINDS)}")
    if not paths:
        raise TraceError(f"found no file, required {KINDS[kind].takes}")
    if step_s is not None and not step_s > 0:
        raise TraceError(f"--step: found {step_s}, required more than 0 seconds")
    return KINDS[kind].read(paths, name, step_s)
