"""What `layers.py` says of its rows: tables, exponents, where one costs less than another, a picture.

Measures nothing and knows no goals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import log
from pathlib import Path
from statistics import linear_regression

from tests.benchmarks.layer_costs import Run
from tests.benchmarks.layer_forms import ATTENTION, FAST_CONV, FUSED, NAIVELY
from tests.benchmarks.layer_rows import Row
from tests.benchmarks.pictures import panels

LONGEST = 3
"""Over so many of a row's longest lengths its exponents are fitted."""

Rows = Mapping[str, Row]


def crossover(one: Row, other: Row) -> str:
    """Where `one` begins to cost less than `other`: interpolated between two lengths, both axes in logs."""
    lengths = [length for length in one.runs if length in other.runs]
    ratios = [log(one.runs[length].seconds / other.runs[length].seconds) for length in lengths]
    if ratios[-1] >= 0:
        return f"above {lengths[-1]}"
    last = max((i for i, ratio in enumerate(ratios) if ratio >= 0), default=None)
    if last is None:
        return f"below {lengths[0]}"
    share = ratios[last] / (ratios[last] - ratios[last + 1])
    return f"{lengths[last] * (lengths[last + 1] / lengths[last]) ** share:.0f}"


def exponent(row: Row, figure: Callable[[Run], float]) -> float | None:
    """e such that the figure grows as length^e over the longest lengths: least squares in logs. None of one
    length."""
    runs = list(row.runs.items())[-LONGEST:]
    if len(runs) < 2:
        return None
    x, y = zip(*((log(length), log(figure(run))) for length, run in runs), strict=True)
    return linear_regression(x, y).slope


def peak_exponent(row: Row) -> float | None:
    return exponent(row, lambda run: run.peak_bytes)


def process_share(row: Row, free_bytes: int = 0) -> float:
    """How many times as much the process grew, up to the longest length, as its tensors took there, but for
    `free_bytes`."""
    run = row.runs[max(row.runs)]
    return max(0, run.process_bytes - row.begun_bytes - free_bytes) / run.peak_bytes


def tables(found: Rows, lengths: Sequence[int]) -> Iterator[str]:
    """Each behind a sentence that says what its columns are."""
    attention = found[ATTENTION]

    def ms(row: Row, length: int) -> str:
        seconds = row.runs[length].seconds
        ratio = f" ({seconds / attention.runs[length].seconds:.2f})" if length in attention.runs else ""
        return f"{_four(1e3 * seconds)}{ratio}"

    def mib(row: Row, length: int) -> str:
        return _four(row.runs[length].peak_bytes / 2**20)

    yield "Milliseconds of CPU time that forward and backward take at each length (in brackets: over those of"
    yield "attention at that length); last, the first length left out and what a run would take there."
    yield ""
    yield from _by_length(found, lengths, ms, "CPU ms (over attention's)")
    yield "The most MiB that tensors take at once at each length, beside parameters and input."
    yield ""
    yield from _by_length(found, lengths, mib, "peak MiB")
    yield f"The e with which time, and peak memory, grow as length^e over the {LONGEST} longest lengths"
    yield "(1: in proportion). How many times as much the process grew, up to the longest, as its tensors"
    yield "took there: allocators keep pieces, libraries and the profiler some 100 MiB. And the length from"
    yield "which on it costs less time than attention."
    yield ""
    yield "| | ms ~ length^ | peak ~ length^ | process / tensors | costs less from |"
    yield "|---|---:|---:|---:|---:|"
    for name, row in found.items():
        time, peak = exponent(row, lambda run: run.seconds), peak_exponent(row)
        cells = (_two(time), _two(peak), f"{process_share(row):.1f}")
        yield f"| {name} | {' | '.join(cells)} | {'' if row is attention else crossover(row, attention)} |"
    yield ""


def _four(value: float) -> str:
    """Four digits, or all before the point."""
    return f"{value:.4g}" if value < 1e4 else f"{value:.0f}"


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _by_length(
    found: Rows, lengths: Sequence[int], cell: Callable[[Row, int], str], what: str
) -> Iterator[str]:
    yield f"| {what} | {' | '.join(map(str, lengths))} | not at |"
    yield "|---|" + "---:|" * len(lengths) + "---|"
    for name, row in found.items():
        cells = (cell(row, length) if length in row.runs else "" for length in lengths)
        yield f"| {name} | {' | '.join(cells)} | {row.ended} |"
    yield ""


def plot(found: Rows, path: Path) -> None:
    """Time and peak memory over length, both axes in logs."""
    figure, axes = panels(14, 7, (1, 1))
    for i, (name, row) in enumerate(found.items()):
        dashes = ":" if name in NAIVELY else "--" if name in (FUSED, FAST_CONV) else "-"
        style = {"color": f"C{i % 10}", "linestyle": dashes, "marker": "osv^D"[i // 10 % 5], "markersize": 3}
        lengths = list(row.runs)
        axes[0].plot(lengths, [1e3 * run.seconds for run in row.runs.values()], label=name, **style)
        axes[1].plot(lengths, [run.peak_bytes / 2**20 for run in row.runs.values()], **style)
    for axis, what in zip(axes, ("CPU ms, forward and backward", "peak MiB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="positions", ylabel=what)
        axis.grid(alpha=0.3)
        measured = sorted({length for row in found.values() for length in row.runs})
        axis.set_xticks(measured, [str(length) for length in measured])
        axis.minorticks_off()
    figure.legend(loc="outside right center", fontsize=8)
    figure.savefig(path)
