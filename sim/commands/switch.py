"""`sim switch`: network namespaces whose links are like a trace's, with real TCP over them."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from scheduler.exit_codes import ExitCode
from scheduler.trace import Trace, TraceError
from sim.door import Door
from sim.emulate import ShapeOptions
from sim.namespaces import Namespaces, SwitchUnavailable
from sim.packet_switch import PacketSwitch
from sim.refusing import refuse
from sim.switched_links import QueueOptions, switched_links
from sim.trace import load

PRIORITY = -10
"""A packet that waits for a processor is late: with the right to, the switch goes before who computes."""


def parse_node(text: str) -> tuple[str, str]:
    """(name, place) of `NAME=PLACE`. Raises TraceError."""
    parts = text.split("=")
    if len(parts) != 2 or not all(parts):
        raise TraceError(f"--node: found {text!r}, required NAME=PLACE")
    return parts[0], parts[1]


def switch(
    trace: Annotated[str, typer.Option(help="A shipped trace's name, or the path of one's csv.")],
    node: Annotated[list[str], typer.Option(help="NAME=PLACE; one for each namespace.")],
    map_file: Annotated[
        Path, typer.Option(help='Where to write {NAME: {"address": …, "enter": [command, …]}}.')
    ],
    door: Annotated[
        list[int] | None, typer.Option(help="A port of this machine's loopback to be had inside, unshaped.")
    ] = None,
    delay_scale: Annotated[float, typer.Option(min=0, help="Multiplies delays.")] = 1.0,
    bandwidth_scale: Annotated[float, typer.Option(min=1e-9, help="Multiplies bandwidths.")] = 1.0,
    time_scale: Annotated[float, typer.Option(min=0, help="Seconds of the trace in one second.")] = 1.0,
    window_bytes: Annotated[
        int, typer.Option(min=0, help="TCP's receive window; 0: as the kernel tunes it.")
    ] = 0,
    queue_bytes: Annotated[
        int, typer.Option(min=0, help="Queue of a link; 0: bandwidth x round trip, at least 256 KiB.")
    ] = 0,
    mtu: Annotated[int, typer.Option(help="Largest packet in bytes, IP header included.")] = 1500,
    offload: Annotated[
        bool, typer.Option(help="Take packets of a flow joined; without, one by one and five times slower.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of jitter and loss.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Make a network namespace for each NODE, with links between them like TRACE's, until stopped.

    A program runs in one by the command that MAP_FILE gives. What is in them reaches only the other
    namespaces and the --door ports. Linux; as root, or where users may make namespaces.
    """
    shape = ShapeOptions(delay_scale, bandwidth_scale, window_bytes, time_scale)
    try:
        nodes = [parse_node(n) for n in node]
        names = [name for name, _ in nodes]
        if len(set(names)) < len(names):
            raise TraceError(f"--node: found the names {', '.join(names)}, required different ones")
        stop = _StopSignals()
        with Namespaces(
            len(nodes), mtu=mtu, window_bytes=window_bytes, offload=offload, door_ports=tuple(door or ())
        ) as spaces:
            _serve(
                load(trace), nodes, shape, QueueOptions(queue_bytes, seed), spaces, stop, map_file, as_json
            )
    except SwitchUnavailable as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(int(ExitCode.NO_NAMESPACES)) from None
    except (OSError, ValueError) as e:  # TraceError is one
        refuse("error", e)


def _serve(
    trace: Trace,
    nodes: list[tuple[str, str]],
    shape: ShapeOptions,
    queue: QueueOptions,
    spaces: Namespaces,
    stop: _StopSignals,
    map_file: Path,
    as_json: bool,
) -> None:
    names = [name for name, _ in nodes]
    links = switched_links(trace, [place for _, place in nodes], shape, queue, time.monotonic())
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    packets = PacketSwitch(spaces.tuns, [socket.inet_aton(a) for a in spaces.addresses], links)
    doors = [
        Door([listeners[port] for listeners in spaces.doors], ("127.0.0.1", number))
        for port, number in enumerate(spaces.door_ports)
    ]
    places = {
        name: {"address": spaces.addresses[i], "enter": spaces.enter(i)} for i, name in enumerate(names)
    }
    map_file.write_text(json.dumps(places, indent=1), encoding="utf-8")
    ready = {"event": "ready", "links": len(links), "map_file": str(map_file)}
    typer.echo(json.dumps(ready) if as_json else f"{len(links)} links, namespaces in {map_file}")
    packets.run(lambda: stop.came, [stop, *doors])
    for each in doors:
        each.close()
    counts = {f"{names[a]} -> {names[b]}": asdict(link.count) for (a, b), link in links.items()}
    if as_json:
        last = {"event": "stopped", "on_the_way": packets.on_the_way, **asdict(packets.refused)}
        typer.echo(json.dumps(last | {"links": counts}))
        return
    for pair, count in counts.items():
        typer.echo(f"{pair}: " + ", ".join(f"{value} {what}" for what, value in count.items()))


class _StopSignals:
    """SIGINT and SIGTERM as something to be watched, so that none is missed while the switch sleeps."""

    def __init__(self) -> None:
        self.came = False
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:  # noqa: ARG002 (the signature is Python's)
        self.came = True

    def wanted(self) -> tuple[list[int], list[int]]:
        return [self._reader.fileno()], []

    def ready(self, readable: set[int], writable: set[int]) -> None:  # noqa: ARG002 (nothing is written)
        with suppress(BlockingIOError):
            self._reader.recv(64)
