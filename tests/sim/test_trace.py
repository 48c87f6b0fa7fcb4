"""Traces as files: shipped ones are whole, bad ones are named by file, line and column."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from scheduler.scenarios import NAMES, scenario
from scheduler.trace import TraceError
from sim.network import TraceNetwork
from sim.trace import load, save, shipped

ROWS = "t_s,src,dst,rtt_ms,bw_mbps\n0,a,b,100,80\n10,a,b,50,\n0,b,a,100,160\n"
NODES = "node,provider,region,latitude,longitude,n_devices\na,x,r,51.5,-0.1,2\nb,x,s,,,\n"
META = '{"format": "link-trace/1", "latency_kind": "rtt", "one_way_factor": 0.5, "bw_kind": "one flow"}'


def write(directory: Path, rows: str = ROWS, nodes: str = NODES, meta: str = META) -> str:
    (directory / "t.csv").write_text(rows)
    (directory / "t.nodes.csv").write_text(nodes)
    (directory / "t.json").write_text(meta)
    return str(directory / "t.csv")


def test_units_end_here_and_states_are_held(tmp_path: Path) -> None:
    trace = load(write(tmp_path))
    first = trace.at(9.99, "a", "b")
    assert (first.rtt_s, first.one_way_s, first.bandwidth_Bps) == (0.1, 0.05, 10e6)
    later = trace.at(10.0, "a", "b")
    assert (later.rtt_s, later.bandwidth_Bps, later.loss) == (0.05, None, None)
    assert trace.at(1e9, "a", "b") == later
    assert trace.at(-5.0, "b", "a").bandwidth_Bps == 20e6
    assert trace.duration_s == 10
    assert trace.nodes["a"].n_devices == 2
    assert trace.nodes["b"].latitude is None


def test_any_of_the_three_files_names_the_trace(tmp_path: Path) -> None:
    whole = load(write(tmp_path))
    for name in ("t", "t.json", "t.nodes.csv"):
        assert load(tmp_path / name) == whole


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    for name in shipped():
        saved = save(load(name), tmp_path / name)
        assert saved == tmp_path / f"{name}.csv"
        assert load(saved) == load(name)
    with pytest.raises(TraceError, match="cannot be written"):
        save(load("four_cities"), tmp_path / "no" / "folder")


@pytest.mark.parametrize("name", shipped())
def test_shipped_traces_are_whole_and_say_where_they_are_from(name: str) -> None:
    trace = load(name)
    assert set(trace.links) == {(a, b) for a in trace.nodes for b in trace.nodes if a != b}
    assert trace.about.source
    assert trace.about.licence
    assert trace.about.date
    assert trace.about.caveats
    assert trace.n_rows < 1000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("convention", "factor"), [("paper", 1.0), ("physical", 0.5)])
def test_the_traces_of_dtfms_scenarios_are_its_scenarios(name: str, convention: str, factor: float) -> None:
    trace = load(f"dtfm_{name}").under(convention)
    published = scenario(
        name, n_devices=sum(n.n_devices for n in trace.nodes.values()), one_way_factor=factor
    )
    ours = TraceNetwork(trace).topology(0.0)
    assert [d.region for d in ours.devices] == [d.region for d in published.devices]
    off = ~np.eye(len(ours), dtype=bool)
    np.testing.assert_allclose(ours.latency_s[off], published.latency_s[off])
    np.testing.assert_allclose(ours.bandwidth_Bps[off], published.bandwidth_Bps[off])


def test_the_four_cities_have_dtfms_figures() -> None:
    link = load("four_cities").at(0, "Tokyo", "London")
    assert link.rtt_s == 0.21
    assert link.bandwidth_Bps == pytest.approx(366e6 / 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rows": ROWS.replace("10,a,b,50,", "10,a,c,50,")},
            r"t.csv:3: dst: found 'c', required .*nodes.csv",
        ),
        ({"rows": ROWS.replace("100,80", "-1,80")}, r"t.csv:2: rtt_ms: found '-1', required"),
        ({"rows": ROWS.replace("100,80", "nan,80")}, r"t.csv:2: rtt_ms: found 'nan'"),
        ({"rows": ROWS.replace("100,80", "1e999,80")}, r"t.csv:2: rtt_ms: found '1e999'"),
        ({"rows": ROWS.replace("100,80", "1_0,80")}, r"t.csv:2: rtt_ms: found '1_0'"),
        ({"rows": ROWS.replace("100,80", "100,fast")}, r"t.csv:2: bw_mbps: found 'fast'"),
        ({"rows": ROWS.replace("100,80", "100,0")}, r"t.csv:2: bw_mbps: found '0'"),
        ({"rows": ROWS.replace("10,a", "0,a")}, r"t.csv:3: t_s: .*backwards"),
        ({"rows": ROWS.replace("10,a", ",a")}, r"t.csv:3: t_s: found nothing"),
        ({"rows": ROWS.replace("0,b,a", "0,b,b")}, r"t.csv:4: dst: found 'b', which is also src"),
        ({"rows": ROWS.replace("0,a,b,100,80", "0,a,b,100")}, r"t.csv:2: found 4 cells, required 5"),
        ({"rows": ROWS.replace("rtt_ms", "rtt")}, r"t.csv:1: found the columns .*rtt,.* required .*unit"),
        ({"rows": ROWS.replace("\n", ",q\n")}, r"t.csv:1: found the columns .*,q"),
        ({"rows": ROWS.splitlines()[0] + "\n"}, r"t.csv: found no link"),
        ({"rows": ""}, r"t.csv:1: found the columns none"),
        ({"rows": 't_s,src,dst,rtt_ms,bw_mbps\n0,"a,b,1,1\n'}, r"t.csv:\d: found no csv"),
        (
            {"rows": "t_s,src,dst,rtt_ms,bw_mbps,loss\n0,a,b,1,1,1\n"},
            r"t.csv:2: loss: found '1', required a share",
        ),
        ({"nodes": NODES.replace("51.5", "151.5")}, r"t.nodes.csv:2: latitude: found '151.5'"),
        ({"nodes": NODES.replace("-0.1,2", "-0.1,0")}, r"t.nodes.csv:2: n_devices: found '0'"),
        ({"nodes": NODES.replace("b,x", "a,x")}, r"t.nodes.csv:3: node: found 'a' a second time"),
        ({"nodes": NODES.replace("b,x", " ,x")}, r"t.nodes.csv:3: node: found ' '"),
        ({"nodes": NODES.splitlines()[0] + "\n"}, r"t.nodes.csv: found no node"),
        ({"meta": META.replace("0.5", "null")}, r"t.json: one_way_factor: found none"),
        ({"meta": META.replace("0.5", "-1")}, r"t.json: one_way_factor: found '-1'"),
        ({"meta": META.replace("0.5", "7")}, r"t.json: one_way_factor: found 7"),
        ({"meta": META.replace("0.5", "NaN")}, r"t.json: found the number NaN"),
        ({"meta": META.replace('"rtt"', '""')}, r"t.json: latency_kind: found none"),
        ({"meta": META.replace('"one flow"', "7")}, r"t.json: bw_kind: found 7, required text"),
        ({"meta": META.replace("trace/1", "trace/9")}, r"t.json: format: found 'link-trace/9'"),
        ({"meta": META.replace("format", "form")}, r"t.json: format: found None"),
        ({"meta": "{"}, r"t.json: found"),
        ({"meta": "[]"}, r"t.json: format: found list"),
    ],
)
def test_bad_traces_are_named_by_file_and_line(tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        load(write(tmp_path, **change))


def test_a_file_too_large_is_not_opened(tmp_path: Path) -> None:
    path = write(tmp_path)
    os.truncate(path, (512 << 20) + 1)
    with pytest.raises(TraceError, match=r"t.csv: found 536870913 bytes"):
        load(path)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = Path(write(tmp_path))
    path.write_bytes(ROWS.encode() + b"20,a,b,\xff,1\n")
    with pytest.raises(TraceError, match=r"t.csv:\d+: found bytes that are no UTF-8"):
        load(path)


def test_a_missing_file_and_an_unknown_name_say_what_there_is(tmp_path: Path) -> None:
    path = Path(write(tmp_path))
    path.with_suffix(".json").unlink()
    with pytest.raises(TraceError, match=r"t.json: cannot be read.*beside"):
        load(path)
    with pytest.raises(TraceError, match="four_cities"):
        load("five_cities")
