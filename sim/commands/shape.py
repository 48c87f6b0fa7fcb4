"""`sim shape`: shape the links between processes of this machine until it is stopped."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Annotated

import typer

from scheduler.trace import Trace, TraceError
from sim.emulate import LinkShaper, ShapedNode, ShapeOptions
from sim.refusing import refuse
from sim.trace import load


def parse_node(text: str) -> ShapedNode:
    """`NAME=PLACE=HOST:PORT`. Raises TraceError."""
    parts = text.split("=")
    if len(parts) != 3 or not all(parts) or not parts[2].rpartition(":")[2].isdecimal():
        raise TraceError(f"--node: found {text!r}, required NAME=PLACE=HOST:PORT")
    return ShapedNode(*parts)


def shape(
    trace: Annotated[str, typer.Option(help="A shipped trace's name, or the path of one's csv.")],
    node: Annotated[list[str], typer.Option(help="NAME=PLACE=HOST:PORT; one for each process.")],
    map_file: Annotated[Path, typer.Option(help="Where to write {src: {dst: address}}.")],
    delay_scale: Annotated[float, typer.Option(min=0, help="Multiplies delays.")] = 1.0,
    bandwidth_scale: Annotated[float, typer.Option(min=1e-9, help="Multiplies bandwidths.")] = 1.0,
    time_scale: Annotated[float, typer.Option(min=0, help="Seconds of the trace in one second.")] = 1.0,
    window_bytes: Annotated[int, typer.Option(min=0, help="Window of one flow; 0: no limit.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Shape the links between processes of this machine like TRACE, until stopped."""
    options = ShapeOptions(delay_scale, bandwidth_scale, window_bytes, time_scale)
    try:
        nodes = [parse_node(n) for n in node]
        asyncio.run(_serve(load(trace), nodes, options, map_file, as_json))
    except (OSError, TraceError) as e:
        refuse("error", e)


async def _serve(
    trace: Trace, nodes: list[ShapedNode], options: ShapeOptions, map_file: Path, as_json: bool
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with LinkShaper(trace, nodes, options) as shaper:
        map_file.write_text(json.dumps(shaper.routes, indent=1), encoding="utf-8")
        listening = {"event": "listening", "links": len(nodes) * (len(nodes) - 1), "map_file": str(map_file)}
        typer.echo(json.dumps(listening) if as_json else f"{listening['links']} links, routes in {map_file}")
        await stop.wait()
