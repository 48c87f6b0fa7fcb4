"""What links carried in a recorded step, and what their codecs did to it, as a table of the run's page.

A row for each kind of traffic over each directed link, put together from what its two ends saw. Knows no
picture and no page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from coordinator.progress import human_bytes
from coordinator.timelines import RecordedStep
from scheduler.link_use import LinkUse
from scheduler.units import duration
from sim.report import Table

MAX_ROWS = 40
"""Beyond it the page shows those that carried most."""
COLUMNS = ("link", "what", "codec", "bytes", "ratio", "error", "encoding", "decoding")

WORDS = {"shard": "gradient shard", "reduced": "reduced gradient", "tied": "tied gradient"}
"""Of kinds of frames whose name says too little."""


def links_table(recorded: RecordedStep, devices: Sequence[str]) -> Table:
    """Bytes and seconds of one step. What is encoded once for several peers counts its encoding at each."""
    links = sorted(two_ended(recorded.links), key=lambda x: -x.raw_bytes)
    shown = sorted(links[:MAX_ROWS], key=lambda x: (x.rank, x.peer, x.kind))
    which = f", the {MAX_ROWS} of {len(links)} that carried most" if len(links) > MAX_ROWS else ""
    again = any(x.resends for x in links)
    columns = (*COLUMNS, "sent again") if again else COLUMNS
    return Table(
        f"What links carried in step {recorded.step + 1}{which}",
        columns,
        tuple(_row(x, devices)[: len(columns)] for x in shown),
    )


def two_ended(uses: Iterable[LinkUse]) -> list[LinkUse]:
    """One a directed link and kind that carried something: what the sender saw, and the decoding there."""
    uses = list(uses)
    received = {(x.peer, x.rank, x.kind): x for x in uses if x.peer >= 0}
    for_all = {(x.rank, x.kind): x for x in uses if x.peer < 0}
    links = []
    for x in uses:
        if x.peer < 0 or not x.sent_bytes:
            continue
        there, once = received.get((x.rank, x.peer, x.kind)), for_all.get((x.rank, x.kind))
        links.append(
            replace(
                x,
                encode_s=x.encode_s + (once.encode_s if once is not None else 0.0),
                relative_error=x.relative_error or (once.relative_error if once is not None else 0.0),
                decode_s=there.decode_s if there is not None else 0.0,
                resends=there.resends if there is not None else 0,
            )
        )
    return links


def _row(x: LinkUse, devices: Sequence[str]) -> tuple[str, ...]:
    compressed = x.codec not in ("", "identity")
    return (
        f"{_name(x.rank, devices)} → {_name(x.peer, devices)}",
        WORDS.get(x.kind, x.kind),
        x.codec if compressed else "none",
        f"{human_bytes(x.raw_bytes)} → {human_bytes(x.sent_bytes)}"
        if compressed
        else human_bytes(x.raw_bytes),
        f"{x.ratio:.2f}",
        f"{x.relative_error:.2%}" if compressed else "",
        duration(x.encode_s) if compressed else "",
        duration(x.decode_s) if compressed else "",
        str(x.resends),
    )


def _name(rank: int, devices: Sequence[str]) -> str:
    return devices[rank] if rank < len(devices) else f"rank {rank}"
