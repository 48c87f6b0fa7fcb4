"""`sim compare`: every contender gets the same job and network, and the table says who has no plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scheduler.gpus import ACHIEVABLE
from sim import inputs as i
from sim.cli import app
from sim.contenders import NAMES, Field, contend

runner = CliRunner()
SMALL = ("--scenario", "regional", "--devices", "8", "--model", "gpt2", "--sequence-length", "512",
         "--global-batch", "16")  # fmt: skip


def rows(*args: str) -> list[dict[str, Any]]:
    result = runner.invoke(app, ["compare", *args, "--json"])
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["rows"]
    return found


def a_field(global_batch: int = 16, model: str = "gpt2", gpu: str = "v100") -> Field:
    gpus = i.read_gpus([gpu], "fp16", ACHIEVABLE)
    network = i.read_network(i.NetworkInput(scenario="regional", devices=8), gpus).network
    job = i.read_job(i.JobInput(None, model, 512, global_batch, 1))
    return Field(job, i.read_work(job, network.devices, gpus), network.topology(0), (4, 2))


def test_everybody_is_compared_and_ours_is_never_beaten_by_a_shape_it_considers() -> None:
    by_name = {r["placement"]: r for r in rows(*SMALL)}
    assert set(by_name) == set(NAMES)
    assert all(r["step_s"] > 0 for r in by_name.values())
    assert by_name["ours"]["step_s"] <= by_name["region"]["step_s"]
    assert by_name["region"]["step_s"] <= by_name["random"]["step_s"]


def test_codecs_and_schedules_multiply_the_rows() -> None:
    found = rows(*SMALL, "--placement", "region", "--placement", "megatron", "--schedule", "gpipe",
                 "--schedule", "1f1b", "--codec", "identity", "--codec", "fp16/kbit:bits=4")  # fmt: skip
    assert len(found) == 8
    assert {(r["schedule"], r["codec"], r["gradient_codec"]) for r in found} == {
        (s, *c) for s in ("gpipe", "1f1b") for c in (("identity", "identity"), ("fp16", "kbit:bits=4"))
    }
    sent = {(r["placement"], r["schedule"], r["codec"]): r["sent_bytes"] for r in found}
    assert sent["region", "1f1b", "fp16"] < sent["region", "1f1b", "identity"]


def test_processes_change_nothing_but_the_time() -> None:
    args = (*SMALL, "--placement", "region", "--placement", "random")
    assert rows(*args) == rows(*args, "--processes", "2")


def test_a_report_shows_everybody_and_where_the_fastest_runs(tmp_path: Path) -> None:
    args = (*SMALL, "--placement", "region", "--placement", "random", "--report", str(tmp_path))
    found = rows(*args)
    page = (tmp_path / "index.html").read_text()
    assert "Compared on regional" in page
    assert all(f">{r['placement']}<" in page for r in found)
    assert "How each came to its plan" in page
    assert "reduction" in (tmp_path / "time.svg").read_text()
    assert {p.suffix for p in tmp_path.iterdir()} == {".html", ".svg", ".png", ".json"}


def test_zero_shards_the_state_and_says_when_parameters_do_not_fit() -> None:
    small = contend("zero", a_field())
    assert small.plan is not None
    assert (small.plan.n_stages, small.plan.n_replicas) == (1, 8)
    whole = sum(a_field().work.profiles[0].optimizer_s)
    assert sum(small.work.profiles[0].optimizer_s) == pytest.approx(whole / 8)
    assert "required 8: one for each device" in contend("zero", a_field(global_batch=4)).why_not
    large = contend("zero", a_field(model="llama-13b"))
    assert large.plan is None
    assert "every device holds all parameters" in large.why_not


def test_megatron_s_grid_shares_layers_where_links_cost_nothing_and_nowhere_else() -> None:
    """With one micro-batch there is one replica, and only tensor groups use all devices without a bubble."""
    slow, fast = a_field(global_batch=1), a_field(global_batch=1)
    links = fast.topology
    free = replace(links, latency_s=links.latency_s * 0, bandwidth_Bps=links.bandwidth_Bps * 1e9)
    assert contend("megatron", slow).tensor == 1
    found = contend("megatron", replace(fast, topology=free))
    assert (found.tensor, found.plan is not None and found.plan.n_ranks) == (4, 2)


def test_tensor_groups_are_replayed_on_their_own_network() -> None:
    few = ("--scenario", "datacenter", "--devices", "8", "--model", "gpt2", "--sequence-length", "512")
    (row,) = rows(*few, "--global-batch", "1", "--placement", "megatron")
    assert row["shape"].endswith("tensor")
    assert "tensor degrees" in row["note"]
    assert row["step_s"] > 0
    assert row["sent_bytes"] > 0


def test_a_contender_without_a_plan_is_a_line_below_the_table() -> None:
    more = ("--global-batch", "4", "--placement", "zero", "--placement", "region", "--stages", "4")
    result = runner.invoke(app, ["compare", *SMALL, *more, "--replicas", "2"])
    assert result.exit_code == 0
    assert "zero (auto): no plan: found 4 micro-batches, required 8" in result.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--placement", "best"], "--placement: found best, required some of: ours, dtfm"),
        (["--stages", "9", "--replicas", "2"], "found 9 stages x 2 replicas, required at most 8 devices"),
        (
            ["--codec", "zip"],
            "compression.activations.zip: found an unknown key; required one of: identity, fp16",
        ),
        (["--schedule", "zigzag"], "zigzag"),
    ],
)
def test_bad_input_is_named_before_anything_is_planned(args: list[str], message: str) -> None:
    result = runner.invoke(app, ["compare", *SMALL, *args])
    assert result.exit_code == 2
    assert message in result.stderr
