"""The `sim` command: each of its commands is a module of `sim.commands`. Needs no torch."""

from __future__ import annotations

import typer

from sim.commands.compare import compare
from sim.commands.plan import plan
from sim.commands.run import run
from sim.commands.shape import shape
from sim.commands.sweep import sweep
from sim.commands.switch import switch
from sim.commands.traces import app as traces

app = typer.Typer(
    help="Plan runs on recorded networks, and shape links like them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(plan)
app.command()(compare)
app.command()(run)
app.command()(shape)
app.command()(sweep)
app.command()(switch)
app.add_typer(traces, name="traces")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
