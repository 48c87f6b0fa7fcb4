"""`sim traces`: what traces there are, what one says, whether a file is one; others' files made into one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from scheduler.reasons import reason_of
from scheduler.trace import Sampler, Trace, TraceError
from sim.importers.kinds import KINDS, import_trace
from sim.refusing import refuse
from sim.svg import save as save_picture
from sim.trace import load, save, shipped
from sim.weather import link_matrix, weather

app = typer.Typer(help="Recorded networks.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A shipped trace's name, or the path of one's csv.")]
MAX_SHOWN = 60
"""Links that `show` prints one by one."""


def _load(name: str) -> Trace:
    try:
        return load(name)
    except TraceError as e:
        refuse("error", e)


def summary(trace: Trace) -> str:
    """`four_cities: 4 nodes, 12 links, 35 to 210 ms, 366 to 1160 Mbit/s, does not change`."""
    links = Sampler(trace).at(0.0)
    off = ~np.eye(len(trace.nodes), dtype=bool)
    ranges = (
        _range(links.rtt_s[off] * 1e3, "ms round trip"),
        _range(links.bandwidth_Bps[off] * 8 / 1e6, "Mbit/s"),
    )
    steady = trace.n_rows == len(trace.links)
    change = "does not change" if steady else f"{trace.n_rows} rows over {trace.duration_s:g} s"
    return ", ".join(
        [
            f"{trace.name}: {len(trace.nodes)} nodes",
            f"{len(trace.links)} links",
            *filter(None, ranges),
            change,
        ]
    )


def _range(values: np.ndarray[tuple[int], np.dtype[np.float64]], unit: str) -> str:
    known = values[~np.isnan(values)]
    return f"{known.min():.4g} to {known.max():.4g} {unit}" if known.size else ""


@app.command("list")
def list_all() -> None:
    """The traces that come with Isthmus."""
    for name in shipped():
        typer.echo(summary(_load(name)))


@app.command()
def show(
    name: Name,
    at: Annotated[float, typer.Option(min=0, help="Seconds since the trace's start.")] = 0.0,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the links, at that moment or over time, into this file (svg, png, pdf)."),
    ] = None,
) -> None:
    """Where a trace is from, and its links at a moment."""
    trace = _load(name)
    about = trace.about
    typer.echo(summary(trace))
    for label, text in (
        ("source", about.source),
        ("date", about.date or about.start),
        ("licence", about.licence),
        ("round trips", about.latency_kind),
        ("one way", "" if about.one_way_factor is None else f"{about.one_way_factor:g} x round trip"),
        ("bandwidths", about.bw_kind),
        ("caveats", about.caveats),
    ):
        if text:
            typer.echo(f"{label}: {text}")
    for src, dst in list(trace.links)[:MAX_SHOWN]:
        typer.echo(_line(trace, at, src, dst))
    if len(trace.links) > MAX_SHOWN:
        typer.echo(f"... and {len(trace.links) - MAX_SHOWN} links more")
    if plot is not None:
        try:
            save_picture(plot, weather(trace) if trace.duration_s else link_matrix(trace, at))
        except (OSError, ValueError) as e:
            refuse("error", TraceError(f"--plot {plot}: {reason_of(e)}"))
        typer.echo(f"drawn: {plot}")


def _line(trace: Trace, at_s: float, src: str, dst: str) -> str:
    link = trace.at(at_s, src, dst)
    width = max(map(len, trace.nodes))
    rtt = "" if link.rtt_s is None else f"{link.rtt_s * 1e3:.4g} ms"
    rate = "" if link.bandwidth_Bps is None else f"{link.bandwidth_Bps * 8 / 1e6:.5g} Mbit/s"
    more = "" if link.jitter_s is None else f"  ± {link.jitter_s * 1e3:.3g} ms"
    more += f"  {link.loss:.2%} lost" if link.loss else ""
    return f"{src:>{width}} -> {dst:<{width}}  {rtt or 'unknown':>10}  {rate or 'unknown':>13}{more}"


@app.command()
def validate(name: Name) -> None:
    """Read a trace strictly; the exit code says whether it is one."""
    typer.echo(f"ok: {summary(_load(name))}")


@app.command("import")
def import_files(
    kind: Annotated[str, typer.Argument(help=f"Whose files they are: {', '.join(KINDS)}.")],
    files: Annotated[list[Path], typer.Argument(help="The files, as their source has them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="NAME: writes NAME.csv and its companions.")],
    step: Annotated[
        float | None, typer.Option(help="Seconds between samples, where the source does not say.")
    ] = None,
    nodes: Annotated[str | None, typer.Option(help="Keep only these: NODE,NODE,...")] = None,
    resample: Annotated[float | None, typer.Option(help="Keep changes only at multiples of SECONDS.")] = None,
) -> None:
    """Turn measurements of others, or logs of your own, into a trace."""
    try:
        with Console(stderr=True).status(f"reading {len(files)} file{'s' if len(files) > 1 else ''}"):
            trace = import_trace(kind, files, output.name.removesuffix(".csv"), step)
            if nodes is not None:
                trace = trace.subset([n.strip() for n in nodes.split(",")])
            if resample is not None:
                trace = trace.resampled(resample)
            written = save(trace, output)
    except (OSError, TraceError) as e:
        refuse("error", e)
    typer.echo(f"{written}: {summary(trace)}")
