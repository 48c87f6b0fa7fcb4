"""The `sim` command: each of its commands is a module of `sim.commands`. Needs no torch.

A module is imported when its command is asked for, or the help of all: to shape a link nobody waits for the
planner. Other packages add commands by an entry point of the group `isthmus.sim_commands`: what starts real
processes is not the simulator's to know.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

COMMANDS = ("plan", "compare", "run", "shape", "sweep", "switch", "traces")
ADDED = "isthmus.sim_commands"


def added() -> dict[str, EntryPoint]:
    """Commands of other packages, by name."""
    return {entry.name: entry for entry in entry_points(group=ADDED) if entry.name not in COMMANDS}


class _Commands(TyperGroup):
    """COMMANDS, each looked up in the module of its name: a group `app`, or a function; then those added."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return [*COMMANDS, *added()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name in COMMANDS:
            module = import_module(f"sim.commands.{cmd_name}")
            found = getattr(module, "app", None) or getattr(module, cmd_name)
        elif entry := added().get(cmd_name):
            found = entry.load()
        else:
            return None
        if not isinstance(found, typer.Typer):
            group = typer.Typer(add_completion=False)
            group.command(cmd_name)(found)
            found = group
        command = get_command(found)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=_Commands,
    help="Plan runs on recorded networks, and shape links like them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _sim() -> None:
    """Plan runs on recorded networks, and shape links like them."""


def main() -> None:
    app()


if __name__ == "__main__":
    main()
