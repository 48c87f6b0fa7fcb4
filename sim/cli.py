"""The `sim` command: each of its commands is a module of `sim.commands`. Needs no torch.

A module is imported when its command is asked for, or the help of all: to shape a link nobody waits for the
planner.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

COMMANDS = ("plan", "compare", "run", "shape", "sweep", "switch", "traces")


class _Commands(TyperGroup):
    """COMMANDS, each looked up in the module of its name: a group `app`, or a function."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"sim.commands.{cmd_name}")
        group: typer.Typer | None = getattr(module, "app", None)
        if group is None:
            group = typer.Typer(add_completion=False)
            group.command(cmd_name)(getattr(module, cmd_name))
        command = get_command(group)
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
