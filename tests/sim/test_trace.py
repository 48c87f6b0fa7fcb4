"""Traces are read strictly, and a link is what its last row says."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.trace import TraceError, load, shipped

ROWS = "t_s,src,dst,rtt_ms,bw_mbps\n0,a,b,100,80\n10,a,b,50,\n0,b,a,100,160\n"
NODES = "node,provider,region,latitude,longitude,n_devices\na,x,r,51.5,-0.1,2\nb,x,s,,,\n"
META = '{"format": "link-trace/1", "one_way_factor": 0.5, "source": "us", "licence": "MIT"}'


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
    assert (later.rtt_s, later.bandwidth_Bps) == (0.05, None)
    assert trace.at(1e9, "a", "b") == later
    assert trace.at(-5.0, "b", "a").bandwidth_Bps == 20e6
    assert trace.duration_s == 10
    assert trace.nodes["a"].n_devices == 2
    assert trace.nodes["b"].latitude is None


@pytest.mark.parametrize("name", shipped())
def test_shipped_traces_are_whole_and_say_where_they_are_from(name: str) -> None:
    trace = load(name)
    assert set(trace.links) == {(a, b) for a in trace.nodes for b in trace.nodes if a != b}
    assert "DT-FM" in trace.source
    assert trace.licence == "MIT"
    assert all(n.latitude is not None for n in trace.nodes.values())


def test_the_four_cities_have_dtfms_figures() -> None:
    link = load("four_cities").at(0, "Tokyo", "London")
    assert link.rtt_s == 0.21
    assert link.bandwidth_Bps == pytest.approx(366e6 / 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": ROWS.replace("10,a,b,50,", "10,a,c,50,")}, r"t.csv:3: dst: found 'c'"),
        ({"rows": ROWS.replace("100,80", "-1,80")}, r"t.csv:2: rtt_ms: found '-1'"),
        ({"rows": ROWS.replace("100,80", "nan,80")}, r"t.csv:2: rtt_ms: found 'nan'"),
        ({"rows": ROWS.replace("100,80", "100,0")}, r"t.csv:2: bw_mbps: found 0"),
        ({"rows": ROWS.replace("10,a", "0,a")}, r"t.csv:3: t_s: .*backwards"),
        ({"rows": ROWS.replace("0,b,a", "0,b,b")}, r"t.csv:4: found a link from b to itself"),
        ({"rows": ROWS.replace("0,a,b,100,80", "0,a,b,100")}, r"t.csv:2: .*number of cells"),
        ({"rows": ROWS.replace("rtt_ms", "rtt")}, r"found no column rtt_ms"),
        ({"rows": ROWS.splitlines()[0] + "\n"}, r"found no link"),
        ({"nodes": NODES.replace("51.5", "151.5")}, r"latitude: found '151.5'"),
        ({"meta": META.replace("0.5", "null")}, r"one_way_factor: found none"),
        ({"meta": META.replace("trace/1", "trace/9")}, r"format: found 'link-trace/9'"),
        ({"meta": "{"}, r"t.json: found"),
    ],
)
def test_bad_traces_are_named_by_file_and_line(tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        load(write(tmp_path, **change))


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(TraceError, match="four_cities"):
        load("five_cities")
