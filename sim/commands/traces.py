"""`sim traces`: what traces there are, what one says, whether a file is one."""

from __future__ import annotations

from typing import Annotated

import typer

from sim.trace import Trace, TraceError, load, shipped

app = typer.Typer(help="Recorded networks.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A shipped trace's name, or the path of one's csv.")]


def _load(name: str) -> Trace:
    try:
        return load(name)
    except TraceError as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(2) from None


def summary(trace: Trace) -> str:
    """`four_cities: 4 nodes, 12 links, over 0 s`."""
    return f"{trace.name}: {len(trace.nodes)} nodes, {len(trace.links)} links, over {trace.duration_s:g} s"


@app.command("list")
def list_all() -> None:
    """The traces that come with Isthmus."""
    for name in shipped():
        typer.echo(summary(_load(name)))


@app.command()
def show(name: Name) -> None:
    """A trace's links at its start."""
    trace = _load(name)
    typer.echo(f"{summary(trace)}\nsource: {trace.source}\nlicence: {trace.licence}")
    for (src, dst), (_, states) in trace.links.items():
        rate = states[0].bandwidth_Bps
        shown = "unknown" if rate is None else f"{rate * 8 / 1e6:g} Mbit/s"
        typer.echo(f"{src:>12} -> {dst:<12} {states[0].rtt_s * 1e3:6g} ms round trip  {shown}")


@app.command()
def validate(name: Name) -> None:
    """Read a trace strictly; the exit code says whether it is one."""
    typer.echo(f"ok: {summary(_load(name))}")
