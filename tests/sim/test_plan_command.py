"""`sim plan`: its JSON, its files, its picture, and what it says to bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from scheduler.exit_codes import ExitCode
from scheduler.scenarios import scenario
from scheduler.topology import Topology, TopologyError
from sim.commands.plan import plan, shape_of
from sim.topology_file import read_topology
from tests.scheduler.placements import network, price

app = typer.Typer()
app.command()(plan)
runner = CliRunner()


def run_json(*args: str) -> dict[str, Any]:
    result = runner.invoke(app, [*args, "--json"])
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def as_document(topology: Topology) -> dict[str, Any]:
    return {
        "devices": [
            {"name": d.name, "flops": 1e12, "memory_bytes": 1, "region": d.region} for d in topology.devices
        ],
        "latency_s": topology.latency_s.tolist(),
        "bandwidth_Bps": topology.bandwidth_Bps.tolist(),
    }


def write(path: Path, document: object) -> str:
    path.write_text(json.dumps(document))
    return str(path)


def test_the_cost_follows_from_the_stages_and_matrices_alone() -> None:
    found = run_json("--scenario", "worldwide", "--evaluations", "6000")
    figures = {"cost_s", "lower_bound_s", "elapsed_s", "evaluations"}
    assert set(found) == figures | {"objective", "stages", "layers_per_stage", "explain"}
    assert found["cost_s"] == pytest.approx(
        price(scenario("worldwide"), found["stages"], 0.65e9, 0.4712492e9)
    )
    assert found["cost_s"] <= 49.219
    assert found["lower_bound_s"] <= found["cost_s"]
    assert found["explain"]


def test_a_json_topology_with_directed_links_and_own_volumes(tmp_path: Path) -> None:
    topology = network("asymmetric", 12, np.random.default_rng(0))
    path = write(tmp_path / "t.json", as_document(topology))
    found = run_json(
        "--topology", path, "--stages", "4", "--c-pp-bytes", "2e8", "--c-dp-bytes", "1e8", "--seed", "3"
    )
    assert [len(s) for s in found["stages"]] == [3] * 4
    assert found["cost_s"] == pytest.approx(price(topology, found["stages"], 1e8, 2e8))
    again = run_json(
        "--topology", path, "--replicas", "3", "--c-pp-bytes", "2e8", "--c-dp-bytes", "1e8", "--seed", "3"
    )
    assert again["stages"] == found["stages"]


def test_two_processes_find_the_plan_of_one(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", as_document(network("asymmetric", 24, np.random.default_rng(0))))
    args = ("--topology", path, "--evaluations", "4000")
    assert run_json(*args)["stages"] == run_json(*args, "--processes", "2")["stages"]


META = {
    "format": "link-trace/1",
    "latency_kind": "rtt",
    "one_way_factor": 0.5,
    "bw_kind": "one flow",
    "intra_node": {"delay_ms": 2, "bw_mbps": 8000},
}


def trace(folder: Path) -> Path:
    """Two nodes of 2 and 1 devices; the second row of a link comes later and is not read."""
    (folder / "two.csv").write_text("t_s,src,dst,rtt_ms,bw_mbps\n0,a,b,100,800\n5,a,b,1,1\n0,b,a,60,400\n")
    (folder / "two.nodes.csv").write_text(
        "node,provider,region,latitude,longitude,n_devices\na,x,r1,10,20,2\nb,x,r2,30,40,1\n"
    )
    (folder / "two.json").write_text(json.dumps(META))
    return folder / "two.csv"


def test_a_link_trace_is_read_at_its_beginning(tmp_path: Path) -> None:
    path = trace(tmp_path)
    for given in (path, path.with_suffix(".json")):
        read = read_topology(given)
        assert [d.name for d in read.topology.devices] == ["a-0", "a-1", "b"]
        assert [d.region for d in read.topology.devices] == ["a", "a", "b"]
        assert read.topology.latency_s[0, 2] == pytest.approx(0.05)
        assert read.topology.latency_s[2, 1] == pytest.approx(0.03)
        assert read.topology.latency_s[0, 1] == pytest.approx(0.001)
        assert read.topology.bandwidth_Bps[1, 2] == pytest.approx(1e8)
        assert read.topology.bandwidth_Bps[0, 1] == pytest.approx(1e9)
        assert read.positions == {"a": (10, 20), "b": (30, 40)}
    assert len(run_json("--topology", str(path), "--stages", "3")["stages"]) == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["latency_s"].pop(), "3 rows"),
        (lambda d: d["latency_s"][0].pop(), "required 4 x 4"),
        (lambda d: d["latency_s"][0].__setitem__(1, -1.0), "0 or more"),
        (lambda d: d["latency_s"][0].__setitem__(1, float("nan")), "nan"),
        (lambda d: d["latency_s"][0].__setitem__(1, "fast"), "required a number"),
        (lambda d: d["bandwidth_Bps"][2].__setitem__(1, 0), "required more than 0"),
        (lambda d: d["bandwidth_Bps"][2].__setitem__(1, -5), "required more than 0"),
        (lambda d: d["bandwidth_Bps"][2].__setitem__(1, None), "no figures for 1 links"),
        (lambda d: d["bandwidth_Bps"].__setitem__(2, [None] * 4), "disconnected"),
        (lambda d: d.pop("bandwidth_Bps"), "missing bandwidth_Bps"),
        (lambda d: d["devices"][1].__setitem__("name", "d0"), "used twice"),
        (lambda d: d["devices"][1].__setitem__("flops", "many"), r"devices\[1\]"),
        (lambda d: d.__setitem__("devices", "four"), "list of objects"),
    ],
)
def test_a_bad_topology_is_refused_with_its_reason(tmp_path: Path, change: Any, says: str) -> None:
    document = as_document(network("random", 4, np.random.default_rng(0)))
    change(document)
    path = write(tmp_path / "t.json", document)
    with pytest.raises(TopologyError, match=says):
        read_topology(Path(path))
    result = runner.invoke(app, ["--topology", path])
    assert result.exit_code == 2
    assert "t.json" in result.stderr


def test_bad_traces_and_files_are_refused(tmp_path: Path) -> None:
    path = trace(tmp_path)
    for name, text, says in (
        ("two.csv", "t_s,src,dst,rtt_ms,bw_mbps\n0,a,b,100,800\n", "no link b -> a, required"),
        ("two.csv", "t_s,src,dst,rtt_ms,bw_mbps\n0,a,b,soon,800\n", "required a number"),
        ("two.json", json.dumps({k: v for k, v in META.items() if k != "intra_node"}), "intra_node"),
        ("two.json", "{", "required .* JSON"),
    ):
        trace(tmp_path)
        (tmp_path / name).write_text(text)
        with pytest.raises(TopologyError, match=says):
            read_topology(path)
    with pytest.raises(TopologyError, match=r"none.json: no such file"):
        read_topology(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "exactly one"),
        (("--scenario", "mars"), "mars"),
        (("--scenario", "5", "--topology", "x.json"), "exactly one"),
        (("--scenario", "5", "--stages", "7"), "divisor of 64"),
        (("--scenario", "5", "--stages", "8", "--replicas", "9"), "required stages x replicas = 64"),
        (("--scenario", "5", "--replicas", "0"), "1 or more"),
        (("--scenario", "5", "--c-pp-bytes", "-1"), "c_pp_bytes"),
        (("--scenario", "5", "--c-dp-bytes", "nan"), "c_dp_bytes"),
        (("--scenario", "5", "--objective", "hope"), "hope"),
        (("--scenario", "5", "--budget", "0"), "more than 0"),
        (("--scenario", "5", "--evaluations", "0"), "at least 1"),
        (("--scenario", "5", "--model", "gpt3-xl-24", "--evaluations", "0"), "at least 1"),
        (("--scenario", "5", "--devices", "63"), "multiple of 8"),
        (("--scenario", "5", "--objective", "step_time"), "exactly one of --job FILE and --model"),
        (("--scenario", "5", "--objective", "dtfm", "--model", "gpt2"), "knows volumes, no model"),
        (("--scenario", "5", "--model", "gpt9"), "gpt9"),
        (("--scenario", "5", "--model", "gpt2", "--gpu", "abacus"), "abacus"),
        (("--scenario", "5", "--model", "gpt3-xl-24", "--stages", "27", "--replicas", "1"), "at most 26"),
        (("--scenario", "5", "--model", "gpt3-xl-24", "--stages", "9", "--replicas", "9"), "required 81"),
        (("--scenario", "5", "--model", "gpt2", "--batch", "3", "--micro-batch", "2"), "micro_batch"),
    ],
)
def test_bad_arguments_are_refused_with_their_reason(args: tuple[str, ...], says: str) -> None:
    result = runner.invoke(app, list(args))
    assert result.exit_code == 2
    assert says in result.stderr


def test_the_shape_defaults_to_the_squarest() -> None:
    assert shape_of(64, None, None) == (8, 8)
    assert shape_of(12, None, None) == (4, 3)
    assert shape_of(7, None, None) == (7, 1)
    assert shape_of(12, None, 2) == (6, 2)


@pytest.mark.parametrize("name", ["worldwide", "datacenter"])
def test_the_picture_is_drawn_with_and_without_a_map(tmp_path: Path, name: str) -> None:
    path = tmp_path / "plan.svg"
    result = runner.invoke(app, ["--scenario", name, "--evaluations", "3000", "--plot", str(path)])
    assert result.exit_code == 0, result.output
    drawn = path.read_text()
    assert "</svg>" in drawn
    assert ("Coastlines" in drawn) == (name == "worldwide")
    assert "stage 7" in drawn
    assert "rep 0" in result.stdout
    assert "can cost less than" in result.stdout


def test_a_picture_of_an_unknown_format_is_refused(tmp_path: Path) -> None:
    args = ["--scenario", "datacenter", "--evaluations", "3000", "--plot", str(tmp_path / "plan.wav")]
    result = runner.invoke(app, args)
    assert result.exit_code == 2
    assert "plan.wav" in result.stderr


MODEL = ("--model", "gpt2", "--batch", "16", "--sequence", "128", "--evaluations", "6000")


def test_a_job_is_planned_by_its_step_time(tmp_path: Path) -> None:
    """Unequal devices come from the file; devices left free are no worse than devices forced."""
    topology = network("clustered", 6, np.random.default_rng(0))
    document = as_document(topology)
    for k, d in enumerate(document["devices"]):
        d |= {"flops": (2e11, 1e11, 4e10)[k % 3], "memory_bytes": 16 * 2**30}
    path = write(tmp_path / "t.json", document)
    found = run_json("--topology", path, *MODEL, "--stages", "3", "--replicas", "2")
    assert found["objective"] == "step_time"
    keys = "objective cost_s lower_bound_s stages layers_per_stage elapsed_s evaluations explain"
    assert set(found) == set(keys.split())
    assert sorted(d for stage in found["stages"] for d in stage) == list(range(6))
    assert sum(found["layers_per_stage"]) == 14
    assert found["lower_bound_s"] <= found["cost_s"]
    for d in document["devices"]:
        d["flops"] = 4e10
    slow = run_json(
        "--topology", write(tmp_path / "s.json", document), *MODEL, "--stages", "3", "--replicas", "2"
    )
    assert slow["cost_s"] > 1.2 * found["cost_s"]
    free = run_json("--topology", path, *MODEL)
    assert free["cost_s"] <= found["cost_s"]
    assert free["stages"] == run_json("--topology", path, *MODEL, "--processes", "2")["stages"]


def test_a_plan_by_step_time_is_told_and_drawn(tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    args = ["--scenario", "worldwide", "--devices", "8", *MODEL, "--plot", str(path), "--budget", "30"]
    result = runner.invoke(app, args)
    assert result.exit_code == 0, result.output
    assert "</svg>" in path.read_text()
    assert "a step predicted" in result.stdout
    assert "layouts judged" in result.stdout


def test_a_model_that_fits_nowhere_says_what_lacks_and_where(tmp_path: Path) -> None:
    document = as_document(network("uniform", 3, np.random.default_rng(0)))
    for d in document["devices"]:
        d["memory_bytes"] = 10**9
    path = write(tmp_path / "t.json", document)
    result = runner.invoke(app, ["--topology", path, "--model", "gpt3-xl-24", "--batch", "4"])
    assert result.exit_code == ExitCode.NO_PLAN
    assert "are missing" in result.stderr
    assert " on d" in result.stderr
    assert "a device with more memory" in result.stderr


def test_a_topology_file_says_what_cards_flows_and_regions_carry(tmp_path: Path) -> None:
    document = as_document(scenario("regional", n_devices=4))
    for entry in document["devices"]:
        entry |= {"uplink_Bps": 5e7, "downlink_Bps": 6e7, "host_cores": 2}
    flows = [[1e7] * 4] * 4
    known = read_topology(
        Path(write(tmp_path / "t.json", document | {"flow_Bps": flows, "egress_Bps": {"Ohio": 1e8}}))
    )
    topology = known.topology
    assert {(d.uplink_Bps, d.downlink_Bps, d.host_cores) for d in topology.devices} == {(5e7, 6e7, 2)}
    assert topology.striped(2).bandwidth_Bps[0, 1] == 2e7
    assert topology.egress_Bps == {"Ohio": 1e8}
    for bad, message in (({"Mars": 1.0}, "found {'Mars': 1.0}, required"), ({"Ohio": 0}, "above 0"),
                         ({"Ohio": "fast"}, "egress_Bps.Ohio: found 'fast', required a number")):  # fmt: skip
        with pytest.raises(TopologyError, match=message):
            read_topology(Path(write(tmp_path / "t.json", document | {"egress_Bps": bad})))
