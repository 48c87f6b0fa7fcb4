"""What benchmarks share as commands: --quick, --out, the exit code, and how they end on SIGTERM."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType


def run(
    benchmark: Callable[[bool], tuple[list[str], bool]],
    doc: str | None,
    quick_help: str,
    arguments: Sequence[str] | None = None,
) -> int:
    """Print what `benchmark(quick)` says: (lines, was a goal missed). Returns 1 if one was, else 0."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0] if doc else "")
    parser.add_argument("--quick", action="store_true", help=quick_help)
    parser.add_argument("--out", type=Path, help="also write what is printed to this file")
    options = parser.parse_args(arguments)
    return ended(*benchmark(options.quick), options.out)


def ended(lines: Sequence[str], missed: bool, out: Path | None) -> int:
    """Print the lines, also to `out` if there is one. The exit code: 1 if a goal was missed."""
    print("\n".join(lines))
    if out is not None:
        out.write_text("\n".join(lines) + "\n")
    return 1 if missed else 0


def end_in_order() -> None:
    """SIGTERM, or a terminal that goes, ends the program by way of everybody's `finally`, which end what it
    started. Once: the second finds it ending."""

    def end(number: int, _: FrameType | None) -> None:
        for n in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(n, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, end)
