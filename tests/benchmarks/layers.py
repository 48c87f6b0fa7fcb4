"""What the parts of blocks cost at growing lengths: time and peak memory, beside naive forms and torch's.

    python -m tests.benchmarks.layers [--quick] [--to LENGTH] [--out FILE] [--plot FILE]

Each part alone, one sample, float32, one thread, lengths 512 to 65,536: CPU ms of forward and backward (the
least of three, so that other programs count little; one where it is long), also over those of attention at
that length; and the most bytes held at once. A row ends where a run would take more than MOST_S (a naive
form: NAIVELY_S) or MOST_BYTES, foreseen from the two lengths before, and says so.

Beside them: torch's fused attention without projections; attention with its scores whole; a convolution by
Fourier transforms and as a whole matrix; and recurrences position by position, as the definitions say.

Goals: from the shortest length to the longest the peak a position grows by no more than a fifth but for the
naive forms and for a butterfly, which adds a block at each doubling; so does what is kept for backward,
attention's own closed form among them; closed forms of bytes kept are within a fifth; at the longest length
a window and Hyena cost less than attention. On a GPU also those of `layers_gpu.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import torch
from torch import Tensor

from scheduler.analytic import layer_costs
from scheduler.layer_cost import Sizes
from tests.benchmarks.layer_costs import Run, measured
from tests.benchmarks.layer_forms import (
    FAST_CONV,
    FUSED,
    HEADS,
    HIDDEN,
    LENGTHS,
    NAIVELY,
    PARTS,
    block_of,
    forms,
    spec_of,
)
from tests.benchmarks.layers_gpu import gpu_report
from tests.worker.model.shapes import kept

MOST_S, NAIVELY_S, MOST_BYTES = 60.0, 2.0, 4 << 30
CHEAPER = ("attention window=128", "hyena")
CROSSING = ("attention window=128", "h3", "s4d", "ssd", "log_ssd", "delta", "longconv", "hyena")
NOT_LINEAR = {*NAIVELY, "attention butterfly=128"}


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one form, by length, and why it ended before the longest."""

    runs: Mapping[int, Run]
    ended: str = ""


def row_of(forward: Callable[[Tensor], Tensor], lengths: Sequence[int], most_s: float) -> Row:
    runs: dict[int, Run] = {}
    for length in lengths:
        seconds, held = (_foreseen([f(run) for run in runs.values()], length, runs) for f in (_s, _bytes))
        if held > MOST_BYTES:
            return Row(runs, f"{length}: {held / 2**30:.0f} GiB")
        if seconds > most_s:
            return Row(runs, f"{length}: {seconds:.0f} s")
        x = torch.randn(1, length, HIDDEN, generator=torch.Generator().manual_seed(0))
        runs[length] = measured(forward, x)
    return Row(runs)


def _s(run: Run) -> float:
    return run.seconds


def _bytes(run: Run) -> float:
    return run.peak_bytes


def _foreseen(values: Sequence[float], length: int, lengths: Mapping[int, Run]) -> float:
    """By the power of the length that the last two values show; in proportion to it, if there is but one."""
    if not values:
        return 0.0
    last, power = list(lengths)[-1], 1.0
    if len(values) > 1:
        power = log(values[-1] / values[-2]) / log(last / list(lengths)[-2])
    return float(values[-1] * (length / last) ** power)


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


def growth(first: float, last: float, lengths: Sequence[int]) -> float:
    """Of a figure a position, from the shortest to the longest length."""
    return last / lengths[-1] / (first / lengths[0])


def kept_of(part: str, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Bytes kept for backward at each length, and what the closed form says."""
    block, found = block_of(part), []
    for length in lengths:
        x = torch.randn(1, length, HIDDEN, generator=torch.Generator().manual_seed(0)).requires_grad_()
        _, size = kept(lambda x=x: block(x)[0], list(block.parameters()))  # type: ignore[misc]
        cost = layer_costs(spec_of(part), Sizes(1, length, 4, 4))["block.00"]
        found.append((size, cost.saved_bytes))
    return found


def table(
    found: Mapping[str, Row], lengths: Sequence[int], cell: Callable[[str, int], str], what: str
) -> Iterator[str]:
    yield f"| {what} | {' | '.join(map(str, lengths))} | not at |"
    yield "|---|" + "---:|" * len(lengths) + "---|"
    for name, row in found.items():
        cells = (cell(name, length) if length in row.runs else "" for length in lengths)
        yield f"| {name} | {' | '.join(cells)} | {row.ended} |"
    yield ""


def benchmark(lengths: Sequence[int], most_s: float) -> tuple[list[str], bool, dict[str, Row]]:
    """Lines, whether a goal was missed, and what was measured."""
    torch.set_num_threads(1)
    found = {
        name: row_of(forward, lengths, NAIVELY_S if name in NAIVELY else most_s) for name, forward in forms()
    }
    attention = found["attention"].runs

    def ms(name: str, length: int) -> str:
        run = found[name].runs[length]
        ratio = f" ({run.seconds / attention[length].seconds:.2f})" if length in attention else ""
        return f"{1e3 * run.seconds:.4g}{ratio}"

    def mib(name: str, length: int) -> str:
        return f"{found[name].runs[length].peak_bytes / 2**20:.4g}"

    crossovers = {part: crossover(found[part], found["attention"]) for part in CROSSING}
    keeps = {part: kept_of(part, (lengths[0], 4 * lengths[0])) for part in PARTS}
    grown = {}
    for name, row in found.items():
        ran = list(row.runs)
        if name not in NOT_LINEAR and len(ran) > 1:
            grown[name] = growth(row.runs[ran[0]].peak_bytes, row.runs[ran[-1]].peak_bytes, ran)
    kept_grown = {
        part: growth(cells[0][0], cells[1][0], (1, 4))
        for part, cells in keeps.items()
        if part not in NOT_LINEAR
    }
    off = {part: max(abs(size / form - 1) for size, form in cells) for part, cells in keeps.items()}
    last = max(attention)
    cheaper = {part: found[part].runs[last].seconds / attention[last].seconds for part in CHEAPER}
    met = (
        max(*grown.values(), *kept_grown.values()) <= 1.2
        and max(off.values()) <= 0.2
        and max(cheaper.values()) < 1
    )
    gpu_lines, gpu_missed = gpu_report()
    figures = {
        "peak_growth": _worst(grown),
        "kept_growth": _worst(kept_grown),
        "closed_form_off": _worst(off),
        "attention_peak_growth": round(grown["attention"], 3),
        "crossovers": crossovers,
        f"ratio_at_{last}": {part: round(x, 3) for part, x in cheaper.items()},
        "met": met and not gpu_missed,
    }
    lines = [
        f"Hidden {HIDDEN}, {HEADS} heads, one sample, float32, one thread.",
        "",
        *table(found, lengths, ms, "CPU ms (over attention's)"),
        *table(found, lengths, mib, "peak MiB"),
        "| | begins to cost less than attention at |",
        "|---|---:|",
        *(f"| {part} | {where} |" for part, where in crossovers.items()),
        "",
        *gpu_lines,
        "",
        json.dumps(figures),
    ]
    return lines, not figures["met"], found


def _worst(values: Mapping[str, float]) -> tuple[str, float]:
    name = max(values, key=values.__getitem__)
    return name, round(values[name], 3)


def plot(found: Mapping[str, Row], path: Path) -> None:
    """Time and peak memory over length, both axes in logs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
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
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="lengths to 2048")
    parser.add_argument("--to", type=int, choices=LENGTHS[1:], default=LENGTHS[-1], help="the longest length")
    parser.add_argument("--out", type=Path, help="also write what is printed to this file")
    parser.add_argument("--plot", type=Path, help="a picture of the tables")
    options = parser.parse_args(arguments)
    lengths = [length for length in LENGTHS if length <= (2048 if options.quick else options.to)]
    lines, missed, found = benchmark(lengths, 2.0 if options.quick else MOST_S)
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    if options.plot:
        plot(found, options.plot)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
