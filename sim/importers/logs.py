"""Logs of one's own: plain `ping` (Linux, macOS, BusyBox) and `iperf3 --json`, a file for each directed link.

A file is named for its link: `oregon-to-tokyo.txt`, `oregon-to-tokyo.json`. Both kinds go into one trace;
which one a file is shows in its first line. Loss is the share of pings without an answer, over the whole log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler.trace import About, Trace, TraceError
from scheduler.trace_text import shifted
from sim.importers.readings import Readings, read_text

_ANSWER = re.compile(
    r"^(?:\[(?P<at>\d+\.\d+)\] )?\d+ bytes from .*?(?:icmp_)?seq=(?P<seq>\d+).* time=(?P<ms>[\d.]+) ?ms"
)
_SUMMARY = re.compile(r"(\d+) packets transmitted, (\d+) (?:packets )?received")


@dataclass(frozen=True, slots=True)
class _Log:
    """What one file says: moments count from its start, or are times of day (`dated`)."""

    dated: bool
    rtt: tuple[tuple[float, float], ...] = ()
    bandwidth: tuple[tuple[float, float], ...] = ()
    loss: float | None = None
    streams: int = 0
    backwards: bool = False


def read(paths: Sequence[Path], name: str, step_s: float | None) -> Trace:
    """A trace of ping and iperf3 logs; `step_s` is the interval of pings without a time, 1 s if not given."""
    logs = [(_link(path), _log(path, step_s or 1.0)) for path in paths]
    first_s = min((t for _, log in logs if log.dated for t, _ in (*log.rtt, *log.bandwidth)), default=0.0)
    readings = Readings()
    for (src, dst), log in logs:
        start_s = first_s if log.dated else 0.0
        a, b = (dst, src) if log.backwards else (src, dst)
        for t_s, rtt_s in log.rtt:
            readings.add(t_s - start_s, a, b, rtt_s=rtt_s, loss=log.loss)
        for t_s, rate in log.bandwidth:
            readings.add(t_s - start_s, a, b, bandwidth_Bps=rate or None)
    mirrored = readings.mirror_round_trips()
    streams = sorted({log.streams for _, log in logs if log.streams})
    has_rtt = any(log.rtt for _, log in logs)
    about = About(
        one_way_factor=0.5 if has_rtt else None,
        latency_kind="rtt, ping" if has_rtt else "",
        bw_kind=f"iperf3, {' and '.join(map(str, streams))} TCP streams" if streams else "",
        source=f"own measurement: {len(paths)} log{'s' if len(paths) > 1 else ''} of ping and iperf3",
        licence="the measurer's",
        caveats=f"{mirrored} round trips taken from the other direction." if mirrored else "",
    )
    return readings.trace(name, about)


def _link(path: Path) -> tuple[str, str]:
    src, to, dst = path.stem.partition("-to-")
    if not (src and to and dst):
        raise TraceError(
            f"{path}: found the name {path.name!r}, required SOURCE-to-DESTINATION, as in a-to-b.txt"
        )
    return src, dst


def _log(path: Path, interval_s: float) -> _Log:
    text = read_text(path)
    return _iperf3(path, text) if text.lstrip().startswith("{") else _ping(path, text, interval_s)


def _ping(path: Path, text: str, interval_s: float) -> _Log:
    answers: dict[int, tuple[float, float]] = {}
    dated, sent, wraps, before = False, None, 0, -1
    for line in text.splitlines():
        if (m := _ANSWER.match(line)) and "DUP" not in line:
            dated = m["at"] is not None
            seq = int(m["seq"])
            wraps += seq < before - 32768  # the counter has 16 bits
            before = seq
            number = seq + wraps * 65536
            at_s = float(m["at"]) if m["at"] else number * interval_s
            answers.setdefault(number, (at_s, shifted(m["ms"], -3)))
        elif m := _SUMMARY.search(line):
            sent = int(m[1])
    if not answers:
        raise TraceError(
            f"{path}: found no answer to a ping, required lines like '64 bytes from ...: time=12.3 ms'"
        )
    expected = max(sent or 0, max(answers) - min(answers) + 1)
    first_s = 0.0 if dated else min(t for t, _ in answers.values())
    rtt = tuple(sorted((t - first_s, rtt_s) for t, rtt_s in answers.values()))
    return _Log(dated, rtt=rtt, loss=max(0, expected - len(answers)) / expected)


def _iperf3(path: Path, text: str) -> _Log:
    try:
        said: Any = json.loads(text)
        if error := said.get("error"):
            raise TraceError(f"{path}: found iperf3's error {error!r}, required a finished test")
        start_s = float(said["start"]["timestamp"]["timesecs"])
        test = said["start"]["test_start"]
        sums = [i["sum"] for i in said["intervals"] if not i["sum"].get("omitted", False)]
        bandwidth = tuple((start_s + float(s["start"]), float(s["bits_per_second"]) / 8) for s in sums)
        ends = [s.get("sender", {}).get("min_rtt", 0) for s in said["end"].get("streams", [])]
        floor_s = min((float(us) / 1e6 for us in ends if us), default=None)
        streams, backwards = int(test["num_streams"]), bool(test.get("reverse", 0))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise TraceError(f"{path}: found {type(e).__name__} {e}, required the output of iperf3 --json") from e
    if not bandwidth:
        raise TraceError(f"{path}: found no interval, required one or more")
    # The smallest round trip of the kernel: the others have waited in the test's own queue.
    rtt = ((bandwidth[0][0], floor_s),) if floor_s is not None else ()
    return _Log(True, rtt, bandwidth, streams=streams, backwards=backwards)
