"""What benchmarks with one table and one verdict share as commands: --quick, --out, the exit code."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path


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
    lines, missed = benchmark(options.quick)
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    return 1 if missed else 0
