"""How fast a newcomer gets its layers over a long link, beside what the link carries.

    python -m tests.benchmarks.loading [--quick] [--out FILE]

Two processes and a relay of 80 Mbit/s with a round trip of 120 ms, two streams, CURVE. One process serves a
stage's layers (weights and AdamW's state) as a donor does, the other loads them as a newcomer does; the clock
runs from when both take the plan until the last layer is there, checked. Each size once with the connections
that a worker has ready for its peers, and once without, where the handshakes come first. Goal: with them at
least 0.7 of the link, for a stage of 19 MB (that of `tests.benchmarks.chaos`) and of 100 MB. The last line is
JSON; the exit code is 1 if the goal is missed. --quick: the small stage alone.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations
from multiprocessing.connection import Connection
from statistics import median

import torch

from scheduler.trace import About, Node, Trace, steady
from sim.emulate import LinkShaper, ShapedNode, ShapeOptions
from tests.benchmarks.command import run as run_command
from worker.addresses import CurveKeys, PeerAddress
from worker.held_layers import HeldLayer
from worker.layer_exchange import packed, receive_layer, send_part
from worker.zmq_transport import DataEndpoint

BANDWIDTH_BPS, RTT_S, STREAMS = 1e7, 0.12, 2
GOAL = 0.7
ROUNDS = 3
STAGES_MB = {"19 MB": (0.4, 9.4, 9.4), "100 MB": (25.0,) * 4}
TIMEOUT_S = 120.0


def shape(pipe: Connection, addresses: dict[str, str]) -> None:
    """Relay between the two until told to end."""

    async def run() -> None:
        links = dict.fromkeys(permutations(addresses, 2), steady(RTT_S, BANDWIDTH_BPS))
        about = About(0.5, "round trips", "of all flows", source="made for this", licence="MIT")
        trace = Trace("even", {n: Node(n) for n in addresses}, links, about)
        nodes = [ShapedNode(n, n, address) for n, address in addresses.items()]
        async with LinkShaper(trace, nodes, ShapeOptions()) as shaper:
            pipe.send(shaper.routes)
            await asyncio.to_thread(pipe.recv)

    asyncio.run(run())


def layer(megabytes: float) -> HeldLayer:
    n = int(megabytes * 1e6 / 12)
    return HeldLayer({"w": torch.randn(n)}, {"w.exp_avg": torch.randn(n), "w.exp_avg_sq": torch.randn(n)})


def donate(pipe: Connection, keys: CurveKeys, newcomer: bytes, ready: bool) -> None:
    """Obey (version, megabytes of each layer) until told to stop. Rank 0 of every plan."""
    torch.set_num_threads(1)
    endpoint = DataEndpoint("127.0.0.1:0", keys=keys)
    endpoint.admit([newcomer])
    pipe.send(endpoint.address)
    peer = PeerAddress(pipe.recv(), newcomer)
    if ready:
        endpoint.keep_ready(peer, STREAMS)
        endpoint.reach({1: peer}, TIMEOUT_S)
    pipe.send("reached")
    while (order := pipe.recv()) is not None:
        version, sizes = order
        layers = [layer(m) for m in sizes]
        pipe.send("ready")
        pipe.recv()
        transport = endpoint.open(version, 0, {1: peer}, run="bench", streams=STREAMS, reach_timeout_s=None)
        for i, held in enumerate(layers):
            send_part(transport, version, 0, 1, (0, i), packed(held), (0, 1))
        pipe.recv()
        transport.close()
        time.sleep(5 * RTT_S)  # a plan lasts longer: what it leaves is ready for the next
    endpoint.close()


@contextmanager
def pair(ready: bool) -> Iterator[tuple[DataEndpoint, PeerAddress, Connection]]:
    """The newcomer's endpoint, the donor as it reaches it, and the way to tell the donor."""
    context = multiprocessing.get_context("spawn")
    keys = [CurveKeys.new(), CurveKeys.new()]
    endpoint = DataEndpoint("127.0.0.1:0", keys=keys[1])
    endpoint.admit([keys[0].public])
    donor, theirs = context.Pipe()
    relay, its = context.Pipe()
    children = [context.Process(target=donate, args=(theirs, keys[0], keys[1].public, ready), daemon=True)]
    try:
        children[0].start()
        addresses = {"donor": donor.recv(), "newcomer": endpoint.address}
        children.append(context.Process(target=shape, args=(its, addresses), daemon=True))
        children[1].start()
        routes = relay.recv()
        donor.send(routes["donor"]["newcomer"])
        donor.recv()
        yield endpoint, PeerAddress(routes["newcomer"]["donor"], keys[0].public), donor
    finally:
        for child in children:
            child.terminate()
            child.join()
        endpoint.close()


def share(ready: bool, sizes: tuple[float, ...], rounds: int) -> float:
    """Median share of the link at which the stage's layers came. One round, if none is to find it ready."""
    n_bytes, found = sum(sizes) * 1e6, []
    with pair(ready) as (endpoint, donor_address, donor):
        for version in range(1, rounds + 1):
            donor.send((version, sizes))
            donor.recv()
            donor.send("go")
            began_s = time.monotonic()
            transport = endpoint.open(
                version, 1, {0: donor_address}, run="bench", streams=STREAMS, reach_timeout_s=None
            )
            for i in range(len(sizes)):
                receive_layer(transport, [0], 0, i, 1 << 40, TIMEOUT_S)
            found.append(n_bytes / (time.monotonic() - began_s) / BANDWIDTH_BPS)
            transport.close()
            donor.send("done")
    return median(found)


def benchmark(quick: bool) -> tuple[list[str], bool]:
    lines = [f"link of {BANDWIDTH_BPS * 8e-6:.0f} Mbit/s, {RTT_S * 1e3:.0f} ms there and back", ""]
    lines += [f"{'stage':10}{'connections ready':>20}{'opened first':>15}"]
    found = {}
    for name, sizes in STAGES_MB.items():
        if quick and name != "19 MB":
            continue
        rounds = 1 if quick else ROUNDS
        cold = median(share(False, sizes, 1) for _ in range(rounds))
        found[name] = {"ready": share(True, sizes, rounds), "opened first": cold}
        lines.append(f"{name:10}{found[name]['ready']:>20.2f}{cold:>15.2f}")
    missed = [name for name, of in found.items() if of["ready"] < GOAL]
    lines += [
        f"MISSED: {name} came at {found[name]['ready']:.2f} of the link, goal: {GOAL}" for name in missed
    ]
    lines.append(json.dumps({"benchmark": "loading", "share": found, "missed": missed}))
    return lines, bool(missed)


if __name__ == "__main__":
    sys.exit(run_command(benchmark, __doc__, "the small stage, one round"))
