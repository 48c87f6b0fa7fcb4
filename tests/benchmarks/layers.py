"""What the parts of blocks cost at growing lengths: time and peak memory, beside naive forms and torch's.

    python -m tests.benchmarks.layers [--quick] [--to LENGTH] [--memory-bytes N] [--cells FILE] [--out FILE]
                                      [--plot FILE]

Each part alone, one sample, float32, one thread, lengths 512 to 65,536: CPU ms of forward and backward (the
least of three, so that other programs count little; one where it is long), also over those of attention at
that length; and the most bytes that tensors take at once. A row ends before the length at which a run would
take more than MOST_S (naive forms and single steps: less) or `--memory-bytes`, foreseen from its closed form
and the lengths before, and says so. Its process cannot take more. With `--cells` rows that are done are kept
in FILE and not measured again: what was broken off goes on.

Beside them: torch's fused attention without projections; attention with its scores whole; a convolution by
Fourier transforms and as a whole matrix; and recurrences position by position, as the definitions say.

Goals, over the longest lengths: the peak grows as length^1.1 at most, attention's as length^1.05, but for the
naive forms (attention with its scores whole: length^1.8 at least, or this would see nothing) and for a
butterfly, which adds a block at each doubling. From 512 to 2048 what is kept for backward grows in proportion
within a fifth, and so near are its closed forms. At the longest length a window and Hyena cost less than
attention, and no process has grown by more than 256 MiB and six times what its tensors take (but that of
single steps, of which the profiler keeps more). On a GPU also those of `layers_gpu.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tests.benchmarks.command import end_in_order, ended
from tests.benchmarks.layer_forms import (
    ATTENTION,
    BUTTERFLY,
    FORMS,
    HEADS,
    HIDDEN,
    LENGTHS,
    NAIVE,
    NAIVELY,
    PARTS,
    STEPS,
    WINDOW,
    block_of,
)
from tests.benchmarks.layer_rows import Row, Setting, cost_of, rows
from tests.benchmarks.layer_tables import crossover, peak_exponent, plot, process_share, tables
from tests.benchmarks.layers_gpu import gpu_report
from tests.worker.model.shapes import kept

MOST_S, NAIVELY_S, STEPS_S = 60.0, 30.0, 2.0
QUICK = 1 / 30
"""Of these, with --quick."""
MEMORY_BYTES, LEAST_BYTES = 8 << 30, 1 << 30
LINEAR, ATTENTION_LINEAR, SQUARE = 1.1, 1.05, 1.8
PROCESS_SHARE, PROCESS_BYTES = 6.0, 256 << 20
"""A process may grow by PROCESS_BYTES and by so many times what its tensors take."""
CHEAPER = (WINDOW, "hyena")
CROSSING = (WINDOW, "h3", "s4d", "ssd", "log_ssd", "delta", "longconv", "hyena")
NOT_LINEAR = {*NAIVELY, BUTTERFLY}


def settings(lengths: Sequence[int], quick: bool, memory_bytes: int) -> list[Setting]:
    def most_s(form: str) -> float:
        own = STEPS_S if form in STEPS else NAIVELY_S if form in NAIVELY else MOST_S
        return own * QUICK if quick else own

    return [Setting(form, tuple(lengths), most_s(form), memory_bytes) for form in FORMS]


def kept_of(part: str, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Bytes kept for backward at each length, and what the closed form says."""
    block, found = block_of(part), []
    for length in lengths:
        x = torch.randn(1, length, HIDDEN, generator=torch.Generator().manual_seed(0)).requires_grad_()
        _, size = kept(lambda x=x: block(x)[0], list(block.parameters()))  # type: ignore[misc]
        found.append((size, cost_of(part, length).saved_bytes))
    return found


def report(found: Mapping[str, Row], lengths: Sequence[int]) -> tuple[list[str], bool]:
    """Lines, and whether a goal was missed."""
    attention = found[ATTENTION]
    keeps = {part: kept_of(part, (lengths[0], 4 * lengths[0])) for part in PARTS}
    off = {part: max(abs(size / form - 1) for size, form in cells) for part, cells in keeps.items()}
    kept_grown = {part: b / (4 * a) for part, ((a, _), (b, _)) in keeps.items() if part not in NOT_LINEAR}
    peaks = {name: e for name, row in found.items() if (e := peak_exponent(row)) is not None}
    linear = {name: e for name, e in peaks.items() if name not in NOT_LINEAR}
    processes = {
        name: process_share(row, PROCESS_BYTES)
        for name, row in found.items()
        if name not in STEPS  # of so many steps the profiler keeps more than they
    }
    last = max(attention.runs)
    ratios = {name: found[name].runs[last].seconds / attention.runs[last].seconds for name in CHEAPER}
    gpu_lines, gpu_missed = gpu_report()
    goals = {
        "peaks grow in proportion": max(linear.values()) <= LINEAR,
        "attention's peak does": peaks[ATTENTION] <= ATTENTION_LINEAR,
        "that of whole scores does not": peaks[NAIVE] >= SQUARE,
        "so does what is kept for backward": max(kept_grown.values()) <= 1.2,
        "closed forms of it are near": max(off.values()) <= 0.2,
        "a window and Hyena cost less": max(ratios.values()) < 1,
        "processes hold little more": max(processes.values()) <= PROCESS_SHARE,
        "on a GPU": not gpu_missed,
    }
    figures = {
        "attention_peak_exponent": round(peaks[ATTENTION], 3),
        "scores_whole_peak_exponent": round(peaks[NAIVE], 3),
        "peak_exponent": _worst(linear),
        "kept_growth": _worst(kept_grown),
        "closed_form_off": _worst(off),
        "process_share": _worst(processes),
        "crossovers": {part: crossover(found[part], attention) for part in CROSSING},
        f"ratio_at_{last}": {part: round(x, 3) for part, x in ratios.items()},
        "missed": [goal for goal, met in goals.items() if not met],
    }
    lines = [
        f"Hidden {HIDDEN}, {HEADS} heads, one sample, float32, one thread.",
        "",
        *tables(found, lengths),
        *gpu_lines,
        "",
        json.dumps({"benchmark": "layers", "passed": all(goals.values())} | figures),
    ]
    return lines, not all(goals.values())


def _worst(values: Mapping[str, float]) -> tuple[str, float]:
    name = max(values, key=values.__getitem__)
    return name, round(values[name], 3)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help=f"lengths to 2048, runs of {MOST_S * QUICK:g} s")
    parser.add_argument("--to", type=int, choices=LENGTHS[1:], default=LENGTHS[-1], help="the longest length")
    parser.add_argument(
        "--memory-bytes",
        type=int,
        default=MEMORY_BYTES,
        help=f"that a row's process may take; default {MEMORY_BYTES:,}",
    )
    parser.add_argument("--cells", type=Path, help="where rows that are done are kept")
    parser.add_argument("--out", type=Path, help="also write what is printed to this file")
    parser.add_argument("--plot", type=Path, help="a picture of the tables")
    options = parser.parse_args(arguments)
    if options.memory_bytes < LEAST_BYTES:
        parser.error(
            f"--memory-bytes: found {options.memory_bytes:,}; required {LEAST_BYTES:,} at least, or the"
            " shortest lengths of naive forms are out of reach"
        )
    end_in_order()
    torch.set_num_threads(1)
    lengths = [length for length in LENGTHS if length <= (2048 if options.quick else options.to)]
    asked = settings(lengths, options.quick, options.memory_bytes)
    done = {}
    for form, row in rows(options.cells, asked):
        done[form] = row
        print(f"{form}: {'; not at '.join(filter(None, (str(max(row.runs)), row.ended)))}", file=sys.stderr)
    found = {setting.form: done[setting.form] for setting in asked}
    lines, missed = report(found, lengths)
    if options.plot:
        plot(found, options.plot)
    return ended(lines, missed, options.out)


if __name__ == "__main__":
    sys.exit(main())
