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
    typer.echo(f"{summary(trace)}\nsource: {trace.about.source}\nlicence: {trace.about.licence}")
    for src, dst in trace.links:
        link = trace.at(0.0, src, dst)
        rtt = "unknown" if link.rtt_s is None else f"{link.rtt_s * 1e3:6g} ms round trip"
        rate = "unknown" if link.bandwidth_Bps is None else f"{link.bandwidth_Bps * 8 / 1e6:g} Mbit/s"
        typer.echo(f"{src:>12} -> {dst:<12} {rtt}  {rate}")


@app.command()
def validate(name: Name) -> None:
    """Read a trace strictly; the exit code says whether it is one."""
    typer.echo(f"ok: {summary(_load(name))}")
