"""How commands of `sim` end that cannot do what they were asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from scheduler.exit_codes import ExitCode
from sim.cli import app

RUN = ("run", "--scenario", "worldwide", "--model", "gpt2", "--sequence-length", "512", "--steps", "1")


def refused(*words: str, code: ExitCode) -> str:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, result.output
    return result.stderr.strip()


@pytest.mark.parametrize(
    "words",
    [
        RUN,
        ("compare", "--scenario", "worldwide", "--model", "gpt2", "--sequence-length", "512"),
        ("sweep", "spec.yaml"),
    ],
)
def test_a_report_that_cannot_be_written_is_known_before_anything_is_computed(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    said = refused(*words, "--report", str(tmp_path / "file" / "page"), code=ExitCode.USAGE)
    assert said == (
        f"sim {words[0]}: --report {tmp_path / 'file' / 'page'}: found that it cannot be written "
        "(Not a directory); name another directory"
    )


def test_a_wrong_job_and_one_that_is_not_there_have_their_codes(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    words = ("run", "--trace", "four_cities", "--job", str(job))
    assert f"--job {job}: cannot be read: No such file" in refused(*words, code=ExitCode.USAGE)
    job.write_text("name: j\nmodle: {preset: gpt2}\n")
    assert "did you mean 'model'?" in refused(*words, code=ExitCode.JOB_INVALID)


@pytest.mark.parametrize("name", ["fault_script", "prices", "sweep"])
def test_files_that_are_not_there_are_named_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / "no.yaml"
    words = {
        "fault_script": (*RUN, "--faults", str(path)),
        "prices": (*RUN, "--prices", str(path)),
        "sweep": ("sweep", str(path)),
    }[name]
    said = refused(*words, code=ExitCode.USAGE)
    assert said.endswith(f"{path}: cannot be read: No such file or directory")


def test_a_map_that_cannot_be_written_ends_the_shaper(tmp_path: Path) -> None:
    path = tmp_path / "no" / "map.json"
    words = ("--trace", "four_cities", "--node", "a=London=127.0.0.1:0", "--map-file", str(path))
    assert refused("shape", *words, code=ExitCode.USAGE) == f"error: {path}: No such file or directory"
