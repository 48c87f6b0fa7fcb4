"""The command line as a whole: every command is there, and one is imported without the others."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sim.cli import COMMANDS, app

runner = CliRunner()


def test_the_help_names_every_command_and_what_it_does() -> None:
    shown = runner.invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in COMMANDS)
    assert "Shape the links between processes of this machine" in " ".join(shown.stdout.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_its_own_help(name: str) -> None:
    shown = runner.invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    assert f" {name} " in shown.stdout


def test_commands_of_other_packages_are_found_by_their_entry_points() -> None:
    """As `sim emulate` is, which starts real processes."""
    assert "emulate" in runner.invoke(app, ["--help"]).stdout
    shown = runner.invoke(app, ["emulate", "--help"])
    assert shown.exit_code == 0
    assert " emulate " in shown.stdout
    assert "Hold the simulator against real runs" in " ".join(shown.stdout.split())


def test_an_unknown_command_is_named() -> None:
    shown = runner.invoke(app, ["replay"])
    assert shown.exit_code == 2
    assert "No such command 'replay'" in shown.output


def test_who_shapes_links_waits_for_no_planner() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from sim.cli import app; "
        "assert CliRunner().invoke(app, ['shape', '--help']).exit_code == 0; "
        "print([m for m in ('scheduler.planner', 'sim.report', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
