"""The files that other programs read: each is taken by its reader's own check, where that can be had."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.supervise import FINAL
from scheduler.exit_codes import ExitCode
from tests.docs.commands import options_of

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").iterdir())
MANIFESTS = sorted(p for p in (DEPLOY / "kubernetes").glob("*.yaml") if p.name != "kustomization.yaml")
SCRIPTS = [DEPLOY / "on_ray" / "start-workers.sh", DEPLOY / "slurm" / "isthmus.sbatch"]


def tool(name: str) -> str:
    """The program, from this environment or the system; skips where there is none on this machine."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}")
    return found


def accepted(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.name)
def test_a_unit_is_not_restarted_where_that_cannot_help(unit: Path) -> None:
    [words] = re.findall(r"^RestartPreventExitStatus=(.*)$", unit.read_text(), re.MULTILINE)
    # Ends that systemd counts as good anyway: done, and drained by a signal.
    assert {int(word) for word in words.split()} == FINAL - {ExitCode.OK, ExitCode.INTERRUPTED}


@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.name)
def test_systemd_takes_the_unit(unit: Path, tmp_path: Path) -> None:
    here = tmp_path / unit.name.replace("@", "@0")
    # Its program is not installed here; everything else is as it will be.
    here.write_text(re.sub(r"/opt/isthmus/bin/worker", "/bin/true", unit.read_text()))
    accepted(tool("systemd-analyze"), "verify", "--man=no", str(here))


def test_hadolint_takes_the_container_file() -> None:
    accepted(tool("hadolint"), "--failure-threshold", "info", str(DEPLOY / "containers" / "Dockerfile"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_takes_the_script(script: Path) -> None:
    accepted(tool("shellcheck"), "--shell=bash", str(script))


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda p: p.name)
def test_kubernetes_takes_every_object(file: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    documents = list(yaml.safe_load_all(file.read_text()))
    assert documents
    for document in documents:
        validate.validate(document, "1.30", strict=True)


def test_the_kustomization_names_every_manifest() -> None:
    found = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    assert sorted(found["resources"]) == [file.name for file in MANIFESTS]


def command_lines(value: Any) -> list[str]:
    """Every text in a YAML document that calls one of our commands, shell's line ends taken out."""
    if isinstance(value, str):
        return (
            [value.replace("\\\n", " ")] if re.search(r"\b(worker join|coordinator start)\b", value) else []
        )
    if isinstance(value, dict):
        return [line for entry in value.values() for line in command_lines(entry)]
    if isinstance(value, list):
        whole = " ".join(x for x in value if isinstance(x, str))
        return command_lines(whole) or [line for entry in value for line in command_lines(entry)]
    return []


def spoken() -> list[tuple[str, str]]:
    """(file, command line) of every call of ours in the deployed files."""
    found = []
    for file in [*MANIFESTS, DEPLOY / "containers" / "compose.yaml"]:
        for document in yaml.safe_load_all(file.read_text()):
            found += [(file.name, line) for line in command_lines(document)]
    for file in [*SCRIPTS, *UNITS]:
        text = file.read_text().replace("\\\n", " ")
        found += [
            (file.name, line)
            for line in text.splitlines()
            if re.search(r"(worker\"?|coordinator) (join|start) ", line)
        ]
    return found


@pytest.mark.parametrize(("file", "line"), spoken(), ids=lambda x: x if len(x) < 30 else "")
def test_every_option_that_a_file_says_is_one_of_the_command(file: str, line: str) -> None:
    for program, words in re.findall(r"(worker|coordinator)\"? (?:join|start)\b([^;&|\n]*)", line):
        verb = "join" if program == "worker" else "start"
        known = options_of(program, verb)
        said = set(re.findall(r"--[a-z][a-z-]+", words))
        assert said <= known, f"{file}: {program} {verb} knows no {', '.join(sorted(said - known))}"


def test_the_files_speak_of_our_commands() -> None:
    assert {file for file, _ in spoken()} >= {
        "coordinator.yaml", "worker.yaml", "compose.yaml", "start-workers.sh", "isthmus.sbatch",
        "isthmus-coordinator.service", "isthmus-worker@.service",
    }  # fmt: skip
