"""Sweeps: every point once, whatever breaks in between; what cannot be is a line, not the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scheduler.units import duration
from sim.cli import app
from sim.spread import HERE
from sim.sweep import SweepError, done_before, read_sweep

runner = CliRunner()
SPEC = """
base: {trace: four_cities, model: gpt2, sequence_length: 256, global_batch: 8}
grid: {codec: [identity, fp16], schedule: [gpipe, 1f1b]}
points: [{stages: 4, replicas: 1}, {codec: identity, schedule: 1f1b}]
"""


def write(folder: Path, text: str = SPEC) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text)
    return path


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "spec.jsonl").read_text().splitlines()]


def run(path: Path, *args: str) -> str:
    result = runner.invoke(app, ["sweep", str(path), "--processes", "1", *args])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_grid_is_every_combination_and_equal_points_are_one(tmp_path: Path) -> None:
    points = read_sweep(write(tmp_path)).points
    assert [(p.settings.codec, p.settings.schedule, p.settings.stages) for p in points] == [
        ("identity", "gpipe", None), ("identity", "1f1b", None), ("fp16", "gpipe", None),
        ("fp16", "1f1b", None), ("", "", 4),
    ]  # fmt: skip


def test_what_was_broken_off_is_gone_on_with(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert run(path).startswith("5 computed, 0 known before, 0 without a result")
    whole = {line["key"]: line for line in lines(tmp_path)}
    out = tmp_path / "spec.jsonl"
    kept = out.read_text().splitlines(keepends=True)
    out.write_text("".join(kept[:2]) + kept[2][:40])  # as a crash in the middle of a line leaves it
    assert run(path).startswith("3 computed, 2 known before")
    assert {line["key"]: line for line in lines(tmp_path)} == whole
    assert run(path).startswith("0 computed, 5 known before")
    write(tmp_path, SPEC.replace("[gpipe, 1f1b]", "[gpipe, 1f1b]").replace("fp16", "kbit"))
    assert run(path).startswith("2 computed, 3 known before")


def test_a_report_puts_the_file_s_results_side_by_side(tmp_path: Path) -> None:
    path = write(tmp_path, SPEC.replace("{stages: 4, replicas: 1}", "{stages: 40, replicas: 1}"))
    run(path, "--report", str(tmp_path / "report"))
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Swept: spec" in page
    assert page.count("1f1b") >= 2
    assert "Without a result" in page
    assert "found 40 stages for 14 layers" in page
    done = [x["result"]["median_step_s"] for x in lines(tmp_path) if "result" in x]
    assert duration(min(done)) in page
    assert (tmp_path / "report" / "time.svg").exists()


def test_processes_find_the_same(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, n in ((one, "1"), (two, "2")):
        folder.mkdir()
        run(write(folder), "--processes", n)
    assert lines(one) == lines(two)


def test_a_point_that_cannot_be_is_a_line_with_its_error(tmp_path: Path) -> None:
    path = write(tmp_path, SPEC.replace("{stages: 4, replicas: 1}", "{stages: 40, replicas: 1}"))
    assert "1 without a result" in run(path)
    (bad,) = [x for x in lines(tmp_path) if "error" in x]
    assert bad["settings"]["stages"] == 40
    assert "parallelism.stages: found 40 stages for 14 layers" in bad["error"]


def test_a_cluster_finds_what_cores_find(tmp_path: Path) -> None:
    """In a process of its own: Ray leaves processes to be reaped, which a strict test run takes for leaks."""
    pytest.importorskip("ray", reason="ray is the extra `deploy`")
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    run(write(one))
    command = [sys.executable, "-m", "sim.cli", "sweep", str(write(two)), "--ray", HERE]
    subprocess.run(command, check=True, capture_output=True)
    assert lines(one) == lines(two)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- x", "found list, required a mapping with keys among out, base, grid, points"),
        ("base: {modell: gpt2}", r"found the setting 'modell' \(did you mean 'model'\?\)"),
        ("base: {steps: x}", "steps: found 'x', required int"),
        ("grid: {steps: 3}", "grid.steps: found 3, required a list of values"),
        ("points: [3]", "points: found 3, required a mapping of settings"),
    ],
)
def test_specifications_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SweepError, match=message):
        read_sweep(write(tmp_path, text))


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "spec.jsonl"
    out.write_text('{"a": 1}\n')
    with pytest.raises(SweepError, match=r"spec.jsonl:1: found no result of a sweep"):
        done_before(out)
    assert out.read_text() == '{"a": 1}\n'
