"""Rows of `layers.py`: one form at growing lengths, in a process of its own that may take so much memory.

A row ends before a length at which a run would take too long or too much, as its closed form or the lengths
before say, and says so. What takes more than was foreseen is refused by the system, which ends the row too.
Knows no goals.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from scheduler.analytic import layer_costs
from scheduler.layer_cost import FLOAT_BYTES, Cost, Sizes
from tests.benchmarks.cells import filled, sources
from tests.benchmarks.layer_costs import Run, measured, process_bytes
from tests.benchmarks.layer_forms import HIDDEN, PARTS, forward_of, spec_of
from worker.allocator import keep_freed_memory

CODE = sources(
    *(f"tests/benchmarks/layer_{name}.py" for name in ("rows", "forms", "costs")),
    *("worker/model/*.py", "worker/kernels/*.py", "scheduler/mixers/*.py"),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """All that a row depends on but for the machine."""

    form: str
    lengths: tuple[int, ...]
    most_s: float
    """CPU seconds of forward and backward above which a length is left out."""
    memory_bytes: int
    """Of the row's process, beside what it has when it begins."""
    code: str = CODE
    torch: str = field(default_factory=lambda: str(torch.__version__))


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one form, by length, why it ended before the longest, and what its process held
    before it began."""

    runs: Mapping[int, Run]
    ended: str = ""
    begun_bytes: int = 0


def rows(path: Path | None, settings: Sequence[Setting]) -> Iterator[tuple[str, Row]]:
    """Each form with its row, measured one after the other; those that `path` has are read (`cells.py`)."""
    for setting, row in filled(path, settings, apart, _read):
        yield setting.form, row


def apart(setting: Setting) -> Row:
    """The row, by a process of its own, which ends with this one."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])  # else each begins with importing PyTorch
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(setting, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        row: Row = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"{setting.form}: its process ended with {process.exitcode} (below 0: by a signal) and found no"
            " row. Give it less (--to, --memory-bytes); with --cells the rows before are kept"
        ) from None
    process.join()
    return row


def _answer(setting: Setting, to: Connection) -> None:
    to.send(limited(setting))


def limited(setting: Setting) -> Row:
    """The row, by a process that takes no more memory than it may from now on."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as workers do: else tensors above 32 MiB take as long to be given out as to be made
    most = _data_bytes() + setting.memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    return row_of(setting.form, setting.lengths, setting.most_s, setting.memory_bytes)


def cost_of(part: str, length: int) -> Cost:
    """The closed forms of a part in its block, as plans have them."""
    return layer_costs(spec_of(part), Sizes(1, length, FLOAT_BYTES, FLOAT_BYTES))["block.00"]


def row_of(form: str, lengths: Sequence[int], most_s: float, most_bytes: int) -> Row:
    """The row in this process."""
    runs, begun, forward = dict[int, Run](), process_bytes(), forward_of(form)
    for length in lengths:
        seconds = foreseen([run.seconds for run in runs.values()], length, list(runs))
        held = foreseen([run.peak_bytes for run in runs.values()], length, list(runs))
        if form in PARTS:
            cost = cost_of(form, length)
            held = max(held, cost.saved_bytes + cost.working_bytes)
        if held > most_bytes:
            return Row(runs, f"{length}: {held / 2**30:.3g} GiB", begun)
        if seconds > most_s:
            return Row(runs, f"{length}: {seconds:.2g} s", begun)
        x = torch.randn(1, length, HIDDEN, generator=torch.Generator().manual_seed(0))
        try:
            runs[length] = measured(forward, x)
        except (MemoryError, RuntimeError) as e:
            if isinstance(e, RuntimeError) and "allocate memory" not in str(e):
                raise
            return Row(runs, f"{length}: took more than {most_bytes / 2**30:.3g} GiB", begun)
    return Row(runs, "", begun)


def foreseen(values: Sequence[float], length: int, lengths: Sequence[int]) -> float:
    """By the power of the length that the last two values show; in proportion to it, if there is but one."""
    if not values:
        return 0.0
    power = 1.0
    if len(values) > 1:
        power = log(values[-1] / values[-2]) / log(lengths[-1] / lengths[-2])
    return float(values[-1] * (length / lengths[-1]) ** power)


def _data_bytes() -> int:
    """What this process has, as RLIMIT_DATA counts it; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[5]) * resource.getpagesize() if statm.exists() else 0


def _read(fields: dict[str, Any]) -> Row:
    runs = {int(length): Run(**run) for length, run in fields["runs"].items()}
    return Row(runs, fields["ended"], fields["begun_bytes"])
