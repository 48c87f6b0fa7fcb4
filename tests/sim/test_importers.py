"""Importers take their sources' formats, here in samples written by hand, and name what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from scheduler.trace import Trace, TraceError
from sim.commands.traces import app
from sim.importers.kinds import KINDS, import_trace
from sim.importers.readings import place
from sim.trace import load, save

MBIT = 1e6 / 8


def imported(folder: Path, kind: str, files: dict[str, str], step_s: float | None = None) -> Trace:
    """Write `files`, import them, and read back what was written: the two are the same."""
    for name, text in files.items():
        (folder / name).write_text(text)
    trace = import_trace(kind, [folder / name for name in files], "t", step_s)
    assert load(save(trace, folder / "t")) == trace
    return trace


# ---- NetLatency


def test_netlatency_seattle_is_seconds_held_until_a_row_is_refreshed(tmp_path: Path) -> None:
    slices = {f"SeattleData_{k}": "0,0.17,0\n0.3,0,0.2\n0.1,0.1,0\n" for k in (1, 2, 10)}
    slices["SeattleData_10"] = "0,0.17,0\n0.3,0,1.25\n0.1,0.1,0\n"
    trace = imported(tmp_path, "netlatency", slices, step_s=10)
    assert list(trace.nodes) == ["n0", "n1", "n2"]
    assert trace.n_rows == 7  # one change: slice 10 comes last, not between 1 and 2
    assert trace.at(19, "n1", "n2").rtt_s == 0.2
    assert trace.at(20, "n1", "n2").rtt_s == 1.25
    assert trace.at(0, "n0", "n2").rtt_s == 0.005  # a zero is below half of a hundredth
    assert trace.at(0, "n0", "n1").one_way_s == 0.085


def test_netlatency_planetlab_is_milliseconds_and_zero_is_unknown(tmp_path: Path) -> None:
    trace = imported(tmp_path, "netlatency", {"PlanetLabData_1": "0\t208.72\n0\t0\n"})
    assert trace.at(0, "n0", "n1").rtt_s == pytest.approx(0.20872)
    assert ("n1", "n0") not in trace.links


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_netlatency_npz_is_in_hundredths(tmp_path: Path) -> None:
    rtt = np.array([[[0, 32], [2, 0]], [[0, 32], [7, 0]]], dtype=np.uint16)
    trace = import_trace("netlatency", [npz(tmp_path / "seattle.npz", rtt_10ms=rtt)], "t")
    assert trace.at(0, "n0", "n1").rtt_s == 0.32
    assert trace.at(15.7, "n1", "n0").rtt_s == 0.07
    assert trace.n_rows == 3


def test_netlatency_refuses_arrays_of_another_shape_and_never_unpickles(tmp_path: Path) -> None:
    for bad in (np.zeros((2, 3, 4), np.uint16), np.zeros((2, 3, 3)), np.array([[["x"]]], dtype=object)):
        with pytest.raises(TraceError, match="rtt_10ms"):
            import_trace("netlatency", [npz(tmp_path / "bad.npz", rtt_10ms=bad)], "t")


# ---- clouds


LATENCY = """src_region,src_tier,dst_region,dst_tier,min_rtt,avg_rtt,mdev_rtt
aws:us-west-2,PREMIUM,aws:eu-west-2,PREMIUM,133.415,133.46,0.467
gcp:us-east1-b,PREMIUM,aws:eu-west-2,PREMIUM,2,2.5,0.1
aws:us-west-2,STANDARD,gcp:us-east1-b,PREMIUM,1,1,0.1
gcp:us-east1-b,PREMIUM,aws:us-west-2,PREMIUM,,,
"""
THROUGHPUT = """src_region,src_tier,dst_region,dst_tier,iperf3_connections,throughput_sent
aws:us-west-2,PREMIUM,aws:eu-west-2,PREMIUM,64,4814179087.5
gcp:us-east1-b,PREMIUM,aws:eu-west-2,PREMIUM,64,
"""


def test_skyplane_profiles_give_round_trips_rates_and_places(tmp_path: Path) -> None:
    trace = imported(tmp_path, "skyplane", {"latency.csv": LATENCY, "throughput.csv": THROUGHPUT})
    assert list(trace.links) == [("aws:us-west-2", "aws:eu-west-2")]
    link = trace.at(0, "aws:us-west-2", "aws:eu-west-2")
    assert (link.rtt_s, link.jitter_s) == (0.13346, 0.000467)
    assert link.bandwidth_Bps == 4814179087.5 / 8
    assert trace.about.caveats.startswith("1 round trips that beat light")
    assert trace.nodes["aws:eu-west-2"].latitude == pytest.approx(51.5, abs=0.1)


def test_skyplane_table_takes_each_links_newest_rate(tmp_path: Path) -> None:
    text = (
        "src,dst,rtt_ms,rtt_quality,gbps_64conn_2022-01-17,gbps_64conn_2022-11-28\n"
        "aws:a,aws:b,248.778,mean_of_both,1.5,2.5\naws:b,aws:a,248.778,gcp_both_suspect,1.5,\n"
    )
    trace = imported(tmp_path, "skyplane", {"links.csv": text})
    assert trace.at(0, "aws:a", "aws:b").bandwidth_Bps == 2.5e9 / 8
    assert trace.at(0, "aws:b", "aws:a").bandwidth_Bps == 1.5e9 / 8
    assert trace.at(0, "aws:b", "aws:a").rtt_s is None


def test_azure_is_a_matrix_with_empty_cells(tmp_path: Path) -> None:
    text = "Source,UK South,West US\nUK South,,150\nWest US,147,\n"
    trace = imported(tmp_path, "azure", {"azure.csv": text})
    assert trace.at(0, "UK South", "West US").rtt_s == 0.15
    assert len(trace.links) == 2
    assert trace.nodes["UK South"].region == "uksouth"


def test_ibm_holds_from_each_windows_start(tmp_path: Path) -> None:
    head = "window_start,window_end,src_region,dst_region,rtt_avg_ms\n"
    rows = "2023-01-28,2023-02-26,Dallas,London,113\n2023-02-04,2023-03-05,Dallas,London,115\n"
    trace = imported(tmp_path, "ibm", {"ibm.csv": head + rows})
    assert trace.duration_s == 7 * 86400
    assert trace.at(7 * 86400, "Dallas", "London").rtt_s == 0.115
    assert trace.nodes["Dallas"].latitude == pytest.approx(32.78)


def wanify(mbps: str) -> str:
    reading = {"src": "1.2.3.4", "dest": "5.6.7.8", "srcRegion": "eu-west-1", "destRegion": "sa-east-1"}
    return json.dumps({"numDCs": "2", "readings": [{**reading, "sent_mbps": "70", "received_mbps": mbps}]})


def test_wanify_is_a_sample_a_file_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    files = {
        "dynamic10_20.json": wanify("50"),
        "dynamic9_20.json": wanify("63"),
        "dynamic11_20.json": wanify("0"),
    }
    trace = imported(tmp_path, "wanify", files)
    link = [trace.at(t, "eu-west-1", "sa-east-1").bandwidth_Bps for t in (0, 20, 40)]
    assert link == [63 * MBIT, 50 * MBIT, None]
    assert trace.about.one_way_factor is None


def test_hivemind_keeps_experiments_apart_and_few_streams(tmp_path: Path) -> None:
    text = (
        "experiment,timestamp,src_host,dst_host,tcp_streams,bandwidth_gbps,rtt_avg_ms\n"
        "e1,2023-04-08_20-27-10,a,b,1,0.21,103\ne1,2023-04-08_20-28-10,a,b,10,2.1,104\n"
        "e2,2023-04-08_20-27-10,a,b,5,6.89,0.8\n"
    )
    trace = imported(tmp_path, "hivemind", {"h.csv": text})
    later = trace.at(60, "e1/a", "e1/b")
    assert (later.rtt_s, later.bandwidth_Bps) == (0.104, 210 * MBIT)
    assert trace.at(0, "e2/a", "e2/b").bandwidth_Bps == pytest.approx(6890 * MBIT)
    assert trace.at(0, "e1/b", "e1/a").rtt_s == 0.103  # seen from the other end
    assert trace.at(0, "e1/b", "e1/a").bandwidth_Bps is None


# ---- logs


LINUX = """PING tokyo (10.0.0.2) 56(84) bytes of data.
64 bytes from tokyo (10.0.0.2): icmp_seq=1 ttl=50 time=97.1 ms
64 bytes from tokyo (10.0.0.2): icmp_seq=2 ttl=50 time=98.0 ms
64 bytes from tokyo (10.0.0.2): icmp_seq=2 ttl=50 time=99.0 ms (DUP!)
64 bytes from tokyo (10.0.0.2): icmp_seq=4 ttl=50 time=97.5 ms

--- tokyo ping statistics ---
5 packets transmitted, 3 received, +1 duplicates, 40% packet loss, time 4005ms
"""
MACOS = """PING 10.0.0.2 (10.0.0.2): 56 data bytes
64 bytes from 10.0.0.2: icmp_seq=0 ttl=50 time=97.123 ms
Request timeout for icmp_seq 1
64 bytes from 10.0.0.2: icmp_seq=2 ttl=50 time=97.223 ms
"""


def test_ping_on_linux_macos_and_busybox(tmp_path: Path) -> None:
    busybox = "64 bytes from 10.0.0.2: seq=0 ttl=64 time=0.412 ms\n"
    files = {"a-to-b.txt": LINUX, "b-to-c.log": MACOS, "c-to-a.txt": busybox}
    trace = imported(tmp_path, "ping", files)
    first, last = trace.at(0, "a", "b"), trace.at(3, "a", "b")
    assert (first.rtt_s, first.loss) == (0.0971, 0.4)
    assert last.rtt_s == 0.0975
    assert trace.at(1, "a", "b").rtt_s == 0.098
    assert trace.at(2, "b", "c").loss == pytest.approx(1 / 3)
    assert trace.at(0, "a", "c").rtt_s == pytest.approx(0.000412)
    assert trace.about.caveats.startswith("3 round trips taken from the other direction")


def iperf3(start_s: int, rates: list[float], reverse: int = 0, min_rtt_us: int = 96000) -> str:
    sums = [
        {"sum": {"start": i, "end": i + 1, "bits_per_second": r, "omitted": i == 0}}
        for i, r in enumerate(rates)
    ]
    said = {
        "start": {"timestamp": {"timesecs": start_s}, "test_start": {"num_streams": 4, "reverse": reverse}},
        "intervals": sums,
        "end": {"streams": [{"sender": {"min_rtt": min_rtt_us}}]},
    }
    return json.dumps(said)


def test_iperf3_gives_rates_over_time_and_the_unloaded_round_trip(tmp_path: Path) -> None:
    files = {
        "a-to-b.json": iperf3(1000, [9e9, 8e8, 4e8]),
        "a-to-c.json": iperf3(1010, [9e9, 1.6e9], reverse=1),
    }
    trace = imported(tmp_path, "iperf3", files)
    assert [trace.at(t, "a", "b").bandwidth_Bps for t in (0, 1)] == [1e8, 5e7]
    assert trace.at(0, "a", "b").rtt_s == 0.096
    assert trace.at(10, "c", "a").bandwidth_Bps == 2e8  # -R: the server sends
    assert trace.at(10, "a", "c").bandwidth_Bps is None
    assert "4 TCP streams" in trace.about.bw_kind


def test_ping_with_times_of_day_and_iperf3_share_a_clock(tmp_path: Path) -> None:
    dated = "".join(
        f"[{1000 + 5 * k}.25] 64 bytes from 10.0.0.2: icmp_seq={k + 1} ttl=50 time={90 + k} ms\n"
        for k in range(3)
    )
    trace = imported(tmp_path, "ping", {"a-to-b.txt": dated, "a-to-b.json": iperf3(1004, [1, 8e8], 0, 0)})
    assert trace.at(0, "a", "b").bandwidth_Bps is None
    assert trace.at(4.75, "a", "b").bandwidth_Bps == 1e8
    assert trace.at(5, "a", "b").rtt_s == 0.091
    assert trace.at(10, "a", "b").bandwidth_Bps == 1e8  # held


# ---- what is wrong


@pytest.mark.parametrize(
    ("kind", "name", "text", "says"),
    [
        ("netlatency", "SeattleData_1", "0,1\n", r"SeattleData_1:1: found 2 cells"),
        ("netlatency", "SeattleData_1", "0,-1\n1,0\n", r"SeattleData_1:1: .* from -1"),
        ("netlatency", "SeattleData_1", "0,x\n1,0\n", r"SeattleData_1:1: found .*required numbers"),
        ("netlatency", "Seattle", "0,1\n1,0\n", "no number at the end"),
        ("netlatency", "s.npz", "no zip", "required an npz"),
        ("netlatency", "PlanetLabData_1", "0\t0\n0\t0\n", "found no round trip"),
        ("skyplane", "x.csv", "a,b\n", r"x.csv:1: found the columns a,b; required also src"),
        ("skyplane", "x.csv", "src,dst,rtt_ms\na,b,soon\n", r"x.csv:2: rtt_ms: found 'soon'"),
        ("skyplane", "x.csv", "src,dst,rtt_ms\na,b\n", r"x.csv:2: found another number of cells"),
        ("skyplane", "x.csv", "src,dst,rtt_ms\na,b,\n", "found no reading"),
        ("azure", "x.csv", "Source,A\nB,-3\n", r"x.csv:2: A: found '-3'"),
        (
            "ibm",
            "x.csv",
            "window_start,window_end,src_region,dst_region,rtt_avg_ms\nsoon,,a,b,1\n",
            r"x.csv:2: found 'soon', required a time",
        ),
        ("wanify", "dynamic1_20.json", "{}", "required WANify's JSON"),
        ("wanify", "dynamic1_20.json", "[", "required WANify's JSON"),
        ("wanify", "dynamic1_20.json", wanify("-5"), "bandwidth_Bps: found -"),
        ("ping", "ab.txt", LINUX, "required SOURCE-to-DESTINATION"),
        ("ping", "a-to-b.txt", "100% packet loss", "no answer to a ping"),
        ("iperf3", "a-to-b.json", '{"error": "unable to connect"}', "iperf3's error 'unable to connect'"),
        ("iperf3", "a-to-b.json", "{}", "required the output of iperf3 --json"),
        ("iperf3", "a-to-b.json", iperf3(0, [1.0]), "found no interval"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, kind: str, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(TraceError, match=says):
        import_trace(kind, [tmp_path / name], "t")


def test_a_file_that_is_not_there_and_a_kind_that_is_none(tmp_path: Path) -> None:
    for kind in KINDS:
        with pytest.raises(TraceError, match=r"a-to-b1.txt: cannot be read"):
            import_trace(kind, [tmp_path / "a-to-b1.txt"], "t")
    with pytest.raises(TraceError, match="required one of netlatency, skyplane"):
        import_trace("weather", [tmp_path], "t")
    with pytest.raises(TraceError, match="found no file"):
        import_trace("ping", [], "t")
    with pytest.raises(TraceError, match="--step"):
        import_trace("ping", [tmp_path], "t", 0)


def test_places_of_clouds_are_known() -> None:
    assert place("gcp:us-east1-b").region == "us-east1"
    assert place("us-west-2").provider == "aws"
    assert place("Tokyo", "ibm").latitude == pytest.approx(35.7, abs=0.1)
    assert place("atlantis").latitude is None
    there_and_back_s = place("us-east-1").light_s(place("ap-northeast-1"))
    assert 0.09 < there_and_back_s < 0.13


# ---- the commands

runner = CliRunner()


def test_import_show_list_and_validate(tmp_path: Path) -> None:
    (tmp_path / "a-to-b.txt").write_text(LINUX)
    out = str(tmp_path / "mine")
    made = runner.invoke(app, ["import", "ping", str(tmp_path / "a-to-b.txt"), "-o", out])
    assert made.exit_code == 0, made.output
    assert f"{out}.csv: mine: 2 nodes, 2 links" in made.stdout
    assert "ok: mine: 2 nodes" in runner.invoke(app, ["validate", out]).stdout
    shown = runner.invoke(app, ["show", out, "--at", "3"]).stdout
    assert "a -> b" in shown
    assert "97.5 ms" in shown
    assert "40.00% lost" in shown
    assert "four_cities: 4 nodes, 12 links, 67 to 210 ms" in runner.invoke(app, ["list"]).stdout


def test_import_keeps_some_nodes_and_some_moments(tmp_path: Path) -> None:
    (tmp_path / "a-to-b.txt").write_text(LINUX)
    (tmp_path / "a-to-c.txt").write_text(MACOS)
    files = [str(tmp_path / f"a-to-{x}.txt") for x in "bc"]
    args = ["import", "ping", *files, "-o", str(tmp_path / "m.csv"), "--nodes", "b,a", "--resample", "10"]
    assert runner.invoke(app, args).exit_code == 0
    trace = load(tmp_path / "m")
    assert list(trace.nodes) == ["b", "a"]
    assert trace.links["a", "b"].times_s.tolist() == [0, 10]


@pytest.mark.parametrize(("name", "drawn"), [("four_cities", "a row a source"), ("seattle6", "over time")])
def test_show_draws_a_matrix_or_what_changes(tmp_path: Path, name: str, drawn: str) -> None:
    path = tmp_path / "t.svg"
    result = runner.invoke(app, ["show", name, "--plot", str(path)])
    assert result.exit_code == 0, result.output
    assert drawn.lower() in path.read_text().lower()
    wrong = runner.invoke(app, ["show", name, "--plot", str(tmp_path / "t.wav")])
    assert wrong.exit_code == 2
    assert "t.wav" in wrong.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["import", "weather", "x", "-o", "y"],
        ["validate", "nothing"],
        ["show", "nothing"],
        ["import", "ping", "x", "-o", "y"],
    ],
)
def test_bad_input_ends_with_usage(args: list[str]) -> None:
    result = runner.invoke(app, args)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
