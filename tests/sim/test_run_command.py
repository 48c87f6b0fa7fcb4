"""`sim run`: what it prints, the plans it takes, the files it writes, and what it says to bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sim.cli import app
from sim.plan_file import read_plan

runner = CliRunner()
SMALL = ("--scenario", "regional", "--devices", "8", "--model", "gpt2", "--sequence-length", "512",
         "--global-batch", "16", "--stages", "4", "--replicas", "2")  # fmt: skip
TRACED = ("--trace", "four_cities", "--model", "gpt2", "--sequence-length", "512", "--global-batch", "8",
          "--stages", "4", "--replicas", "1")  # fmt: skip


def run_json(*args: str) -> dict[str, Any]:
    result = runner.invoke(app, ["run", *args, "--json"])
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_steps_on_a_scenario_add_up() -> None:
    found = run_json(*SMALL, "--steps", "3")
    assert found["total_s"] == pytest.approx(3 * found["median_step_s"])
    assert found["median_step_s"] == pytest.approx(found["plan"]["predicted_step_s"])
    assert found["tokens"] == 3 * 16 * 512
    assert set(found["device_s"]) == {d for row in found["plan"]["placement"] for d in row}
    assert (found["code"], found["restarts"]) == (0, 0)


def test_the_same_command_prints_the_same_bytes() -> None:
    one, two = (runner.invoke(app, ["run", *TRACED, "--steps", "2", "--seed", "4", "--json"]) for _ in "ab")
    assert one.exit_code == 0
    assert one.stdout == two.stdout


def test_a_plan_that_was_printed_can_be_replayed_elsewhere(tmp_path: Path) -> None:
    found = run_json(*TRACED)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(found))
    again = run_json(*TRACED, "--plan", str(path))
    assert again["plan"] == found["plan"]
    assert again["total_s"] == found["total_s"]
    other = run_json(*TRACED, "--plan", str(path), "--delay", "paper", "--card-mbps", "100")
    assert other["total_s"] > found["total_s"]
    slow = run_json(*TRACED, "--plan", str(path), "--egress-mbps", "10")
    assert slow["total_s"] > 10 * found["total_s"]


def test_codecs_streams_and_schedules_reach_the_engine() -> None:
    plain = run_json(*TRACED)["total_s"]
    shape = (*TRACED, "--stages", "2", "--replicas", "2")
    found = run_json(*shape, "--codec", "kbit:bits=4", "--gradient-codec", "kbit")
    assert found["total_s"] < run_json(*shape)["total_s"]
    across = [["kbit:bits=4"]] * 2
    assert found["plan"]["codecs"] == {"activation": across, "gradient": across, "reduce": ["kbit", "kbit"]}
    assert run_json(*TRACED, "--cap-mbps", "5000", "--streams", "8")["total_s"] < plain
    assert run_json(*TRACED, "--schedule", "gpipe")["plan"]["schedule"] == "gpipe"


def test_dtfm_s_objective_places_what_is_then_priced_by_the_step() -> None:
    theirs, ours = run_json(*SMALL, "--objective", "dtfm"), run_json(*SMALL)
    assert theirs["plan"]["reasons"][0].startswith("Placed by DT-FM's objective and search")
    assert ours["total_s"] <= theirs["total_s"]


def test_faults_and_prices_are_told(tmp_path: Path) -> None:
    faults, prices = tmp_path / "faults.yaml", tmp_path / "prices.yaml"
    faults.write_text("faults:\n  - {fail: 0, step: 1}\n")
    prices.write_text("device_hour: {default: 3.6}\negress_gb: {default: 0.1}\nwatts: {default: 300}\n")
    args = [*TRACED, "--steps", "3", "--faults", str(faults), "--prices", str(prices), "--restart-s", "10"]
    found = run_json(*args)
    assert (found["restarts"], found["steps_lost"]) == (1, 1)
    assert found["money"] == pytest.approx(
        sum(found["device_s"].values()) / 1000 + sum(found["egress_bytes"].values()) / 1e10
    )
    assert found["energy_J"] == pytest.approx(300 * sum(found["device_s"].values()))
    shown = runner.invoke(app, ["run", *args])
    assert "is lost: its connection ended (crashed)" in shown.stdout
    assert "back to the beginning, 1 step again; ready in 10.0 s" in shown.stdout
    assert "cost: " in shown.stdout
    assert "energy: " in shown.stdout


def test_who_comes_later_is_not_planned_with_at_first_and_taken_in_when_it_pays(tmp_path: Path) -> None:
    faults = tmp_path / "faults.yaml"
    absent = ["Oregon-0", "Ohio-0"]
    faults.write_text("faults:\n" + "".join(f"  - {{join: {name}, at_s: 20}}\n" for name in absent))
    model = ("--model", "gpt2", "--sequence-length", "512", "--global-batch", "32", "--micro-batch", "4")
    network = ("--scenario", "regional", "--devices", "4", "--gpu", "cpu", "--precision", "fp32")
    args = (*network, *model, "--steps", "60", "--faults", str(faults), "--measure-s", "5")
    found = run_json(*args)
    ends = found["plans"][0], found["plans"][-1]
    first, last = ({d for row in p["placement"] for d in row} for p in ends)
    assert not first & set(absent)
    assert first < last
    assert (found["moves"], found["restarts"]) == (1, 0)
    assert found["events"][0]["text"].startswith("Oregon-0, Ohio-0 came: The other plan would take")
    assert found["events"][0]["at_s"] > 25
    assert "moved to a better plan: 1 time" in runner.invoke(app, ["run", *args]).stdout


def test_a_report_is_one_page_and_a_trace(tmp_path: Path) -> None:
    run_json(*TRACED, "--report", str(tmp_path / "r"))
    page = (tmp_path / "r" / "index.html").read_text()
    assert "Simulated on four_cities" in page
    assert "<svg" in page
    assert json.loads((tmp_path / "r" / "timeline-predicted.trace.json").read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "gpt2"], "found 0 of --scenario, --trace, --topology; required exactly one"),
        (["--trace", "four_cities"], "required exactly one of --job FILE and --model PRESET"),
        (["--trace", "nowhere", "--model", "gpt2"], "found no trace 'nowhere'"),
        (["--trace", "four_cities", "--model", "gtp2"], "gtp2"),
        ([*TRACED, "--gpu", "a1000"], "found the accelerator 'a1000'"),
        (
            [*TRACED, "--precision", "fp8"],
            "--precision: found 'fp8', required one of: fp32, tf32, fp16, bf16",
        ),
        ([*TRACED, "--delay", "half"], "--delay: found 'half', required paper or physical"),
        ([*TRACED[:-2]], "found one of --stages and --replicas"),
        ([*TRACED, "--codec", "zip"], "zip"),
        ([*TRACED, "--objective", "best"], "--objective: found 'best', required step or dtfm"),
        ([*TRACED, "--plan", "/nonexistent.json"], "cannot be read as a plan"),
    ],
)
def test_bad_input_is_named(args: list[str], message: str) -> None:
    result = runner.invoke(app, ["run", *args])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"placement": [["x", "y", "z", "w"]]}, r"a plan for other devices \(w, x, y, z\)"),
        ({"placement": [["Oregon", "Oregon", "London", "Tokyo"]]}, "required stages x replicas of different"),
        ({"partition": [[0, 1], [2, 14]]}, "partition: found"),
        ({"micro_batches": [0]}, "micro_batches: found"),
        ({"colour": "red"}, "found an unknown key 'colour', required some of: version, placement"),
    ],
)
def test_plans_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    plan = run_json(*TRACED, "--stages", "4", "--replicas", "1")["plan"] | change
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    result = runner.invoke(app, ["run", *TRACED, "--plan", str(path)])
    assert result.exit_code == 2
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(result.stderr)


def test_a_plan_file_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(run_json(*SMALL)["plan"]))
    assert read_plan(path).n_ranks == 8


@pytest.mark.parametrize(
    "job", sorted((Path(__file__).parents[2] / "jobs" / "families").glob("*.yaml")), ids=lambda p: p.stem
)
def test_a_job_of_every_family_is_simulated_from_its_costs_alone(job: Path) -> None:
    shape = ("--stages", "2", "--replicas", "2", "--scenario", "regional", "--devices", "4")
    found = run_json("--job", str(job), *shape, "--steps", "2")
    assert found["tokens"] == 2 * 8 * 128
    assert found["total_s"] > 0
    assert len(found["device_s"]) == 4
