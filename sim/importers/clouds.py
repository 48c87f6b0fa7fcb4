"""Measurements between clouds: Skyplane's profiles, Azure's matrix, IBM's means, WANify's and hivemind's."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scheduler.trace import About, Trace, TraceError
from scheduler.trace_text import shifted
from sim.importers.readings import Readings, bits, number, place, read_text, table

WANIFY_STEP_S = 20.0
_GBPS = re.compile(r"gbps_\d+conn_(\d{4}-\d{2}-\d{2})")
_SUSPECT = "gcp_both_suspect"


def read_skyplane(paths: Sequence[Path], name: str, step_s: float | None) -> Trace:  # noqa: ARG001
    """Skyplane's `profiles/latency.csv` and `profiles/throughput.csv` (either or both), or a table
    `src,dst,rtt_ms,rtt_quality,gbps_64conn_DATE...` of them; of the dates each link's newest counts."""
    readings = Readings()
    refused = 0
    for path in paths:
        text = read_text(path)
        header = text.partition("\n")[0]
        if "avg_rtt" in header:
            refused += _latency(path, text, readings)
        elif "throughput_sent" in header:
            for where, row in table(path, text, ("src_region", "src_tier", "dst_region", "dst_tier")):
                if row["src_tier"] == row["dst_tier"] == "PREMIUM":
                    rate = bits(row, "throughput_sent", where)
                    readings.add(0, row["src_region"], row["dst_region"], bandwidth_Bps=rate)
        else:
            _links_table(path, text, readings)
    about = About(
        one_way_factor=0.5,
        latency_kind="rtt, ping",
        bw_kind="aggregate of 64 TCP connections between large instances, under the provider's egress cap",
        source="Skyplane (Jain et al., NSDI 2023), skyplane-project/skyplane, profiles/",
        licence="Apache-2.0",
        date="2022",
        caveats=f"{refused} round trips that beat light in fibre were left out." if refused else "",
    )
    return readings.trace(name, about)


def _latency(path: Path, text: str, readings: Readings) -> int:
    """Reads `latency.csv`; returns how many round trips were refused as faster than light in fibre."""
    refused = 0
    for where, row in table(path, text, ("src_region", "src_tier", "dst_region", "dst_tier", "mdev_rtt")):
        rtt_s = number(row, "avg_rtt", where, -3)
        if row["src_tier"] != "PREMIUM" or row["dst_tier"] != "PREMIUM" or rtt_s is None:
            continue
        src, dst = row["src_region"], row["dst_region"]
        if rtt_s < place(src).light_s(place(dst)):
            refused += 1
            continue
        readings.add(0, src, dst, rtt_s=rtt_s, jitter_s=number(row, "mdev_rtt", where, -3))
    return refused


def _links_table(path: Path, text: str, readings: Readings) -> None:
    for where, row in table(path, text, ("src", "dst", "rtt_ms")):
        dates = sorted((m[1], column) for column in row if (m := _GBPS.fullmatch(column)))
        newest = next((v for _, c in reversed(dates) if (v := bits(row, c, where, 9))), None)
        rtt_s = None if row.get("rtt_quality") == _SUSPECT else number(row, "rtt_ms", where, -3)
        readings.add(0, row["src"], row["dst"], rtt_s=rtt_s, bandwidth_Bps=newest)


def read_azure(paths: Sequence[Path], name: str, step_s: float | None) -> Trace:  # noqa: ARG001
    """Microsoft's table of median round trips: `Source,REGION,...`, a row a region, ms."""
    readings = Readings()
    for path in paths:
        for where, row in table(path, read_text(path), ("Source",)):
            for dst in row:
                if dst != "Source":
                    readings.add(0, row["Source"], dst, rtt_s=number(row, dst, where, -3))
    about = About(
        one_way_factor=0.5,
        latency_kind="rtt, median of a month",
        source="Microsoft Azure, network round-trip latency statistics (the published table)",
        licence="the page's own terms",
    )
    return readings.trace(name, about, {n: place(n, "azure") for p in readings.pairs() for n in p})


def read_ibm(paths: Sequence[Path], name: str, step_s: float | None) -> Trace:  # noqa: ARG001
    """IBM's 30-day means: `window_start,window_end,src_region,dst_region,rtt_avg_ms`; each holds from its
    window's start."""
    readings = Readings()
    columns = ("window_start", "window_end", "src_region", "dst_region", "rtt_avg_ms")
    for path in paths:
        for where, row in table(path, read_text(path), columns):
            t_s = _moment(row["window_start"], "%Y-%m-%d", where)
            rtt_s = number(row, "rtt_avg_ms", where, -3)
            readings.add(t_s, row["src_region"], row["dst_region"], rtt_s=rtt_s)
    about = About(
        one_way_factor=0.5,
        latency_kind="rtt, mean of 30 days",
        source="IBM Cloud, published inter-region latency",
        licence="none stated: cite, do not redistribute",
    )
    return readings.trace(name, about, {n: place(n, "ibm") for p in readings.pairs() for n in p})


def _moment(text: str, form: str, where: str) -> float:
    try:
        return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
    except ValueError as e:
        raise TraceError(f"{where}: found {text!r}, required a time like {form}") from e


def read_wanify(paths: Sequence[Path], name: str, step_s: float | None) -> Trace:
    """WANify's `datasets/dynamicN_20.json`, a sample each, in the order of N. They carry no times."""
    readings = Readings()
    step = step_s or WANIFY_STEP_S
    for k, path in enumerate(sorted(paths, key=_sample_number)):
        try:
            sample: Any = json.loads(read_text(path))
            taken = [
                (str(r["srcRegion"]), str(r["destRegion"]), shifted(str(r["received_mbps"]), 6) / 8)
                for r in sample["readings"]
            ]
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise TraceError(
                f"{path}: found {type(e).__name__} {e}, required WANify's JSON: "
                "readings, each with srcRegion, destRegion, received_mbps"
            ) from e
        for src, dst, rate in taken:
            readings.add(k * step, src, dst, bandwidth_Bps=rate)
    about = About(
        bw_kind="iPerf 20 s, small instances, all pairs of regions at once (contended)",
        step_s=step,
        source="WANify, mc2lab/WANify, datasets/",
        licence="MIT",
        caveats="The samples carry no times: their spacing is assumed. No round trips.",
    )
    return readings.trace(name, about)


def _sample_number(path: Path) -> tuple[int, str]:
    digits = re.search(r"\d+", path.stem)
    return (int(digits[0]) if digits else 0, path.name)


def read_hivemind(paths: Sequence[Path], name: str, step_s: float | None) -> Trace:  # noqa: ARG001
    """iperf and ping between GPU machines of several clouds: `experiment,timestamp,src_host,dst_host,
    tcp_streams,bandwidth_gbps,rtt_avg_ms`. A place is `EXPERIMENT/HOST`, as names were used again elsewhere.
    Of a link's bandwidths those with the fewest streams count, mostly one."""
    readings = Readings()
    columns = (
        "experiment",
        "timestamp",
        "src_host",
        "dst_host",
        "tcp_streams",
        "bandwidth_gbps",
        "rtt_avg_ms",
    )
    rows = [
        (number(row, "tcp_streams", where) or 0, where, row)
        for path in paths
        for where, row in table(path, read_text(path), columns)
    ]
    fewest: dict[tuple[str, str, str], float] = {}
    for streams, _, row in rows:
        key = row["experiment"], row["src_host"], row["dst_host"]
        fewest[key] = min(streams, fewest.get(key, streams))
    for streams, where, row in rows:
        experiment, src, dst = row["experiment"], row["src_host"], row["dst_host"]
        rate = bits(row, "bandwidth_gbps", where, 9) if streams == fewest[experiment, src, dst] else None
        t_s = _moment(row["timestamp"], "%Y-%m-%d_%H-%M-%S", where)
        readings.add(
            t_s, f"{experiment}/{src}", f"{experiment}/{dst}",
            rtt_s=number(row, "rtt_avg_ms", where, -3), bandwidth_Bps=rate,
        )  # fmt: skip
    mirrored = readings.mirror_round_trips()
    about = About(
        one_way_factor=0.5,
        latency_kind="rtt, ping",
        bw_kind="iperf, one TCP stream where there is such a figure",
        source="hivemind on several clouds (iperf and ping logs of 2023)",
        licence="MIT",
        date="2023",
        caveats=f"{mirrored} round trips taken from the other direction." if mirrored else "",
    )
    return readings.trace(name, about)
