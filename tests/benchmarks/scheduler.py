"""How good and how fast the placement search is: every scenario and volume against every baseline.

    python -m tests.benchmarks.scheduler [--quick] [--seeds 5] [--only dtfm | step_time]
                                         [--processes 2] [--cells FILE]

Under DT-FM's objective, with its volumes and all their compressions, and under the predicted step
time (`scheduler_runs.py`). Writes two tables and a convergence plot, dated, into
tests/benchmarks/results/, and ends with one JSON line. Exits with 1 when a goal is missed: never worse than
a baseline or a structured seed; scenario 3 at most 16.087 s and scenario 5 at most 49.219 s with 64
devices; a spread over seeds of at most 2 %; 64 devices within 10 s of one core's time, 512 within 60,
4,096 within 300 and 2 GB. DT-FM's own search runs with its 4,900 trials at the paper's volumes, with `SHORT`
elsewhere: it is never near. --quick: fewer volumes and seeds, and `SHORT` everywhere. A full run is about
half an hour of CPU, of which --only dtfm takes two thirds: --cells FILE keeps what it has found and goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sim.spread import spread
from tests.benchmarks.cells import filled, kept
from tests.benchmarks.pictures import panels
from tests.benchmarks.scheduler_runs import DTFM, SHORT, STEP, TRIALS, Case, Run, Setting, cases, run
from tests.benchmarks.scheduler_runs import settings as settings_of

RESULTS = Path(__file__).parent / "results"
LIMIT_S = {"universities": 16.087, "worldwide": 49.219}
CPU_S = {64: 10.0, 512: 60.0, 4096: 300.0}
PEAK_BYTES = 2e9
SPREAD = 0.02
RIVALS = ("random, mean", "random, best of", "region order", "Megatron", "greedy", "DT-FM's search")
TITLES = {
    DTFM: f"DT-FM's objective; its own search with {TRIALS:,} trials at its volumes, {SHORT} elsewhere",
    STEP: "Predicted step time, gpt3-xl-24, 1,024 samples, V100s",
}


@dataclass(frozen=True)
class Line:
    """A case and its runs, one a seed."""

    case: Case
    runs: Sequence[Run]

    @property
    def costs_s(self) -> list[float]:
        return [r.cost_s for r in self.runs]

    @property
    def best(self) -> Run:
        return min(self.runs, key=lambda r: r.cost_s)

    @property
    def bound_s(self) -> float:
        return min(r.bound_s for r in self.runs)

    @property
    def spread(self) -> float:
        return max(self.costs_s) / min(self.costs_s) - 1

    @property
    def cpu_s(self) -> float:
        return sum(r.cpu_s for r in self.runs) / len(self.runs)

    @property
    def rivals_s(self) -> dict[str, float]:
        return {n: min(r.rivals_s.get(n, np.inf) for r in self.runs) for r in self.runs for n in r.rivals_s}

    def missed(self) -> list[str]:
        name, worst = self.case.name, max(self.costs_s)
        said = [
            f"{name}: {n} takes {c:.3f} s, ours {worst:.3f}"
            for n, c in self.rivals_s.items()
            if worst > c * (1 + 1e-9)
        ]
        limit_s = LIMIT_S.get(self.case.network, np.inf)
        if self.case.objective == DTFM and self.case.published and worst > limit_s:
            said.append(f"{name}: {worst:.3f} s, at most {limit_s}")
        if self.spread > SPREAD:
            said.append(f"{name}: a spread of {100 * self.spread:.2f} % over {len(self.runs)} seeds")
        if self.cpu_s > (limit_s := CPU_S.get(self.case.devices, np.inf)):
            said.append(f"{name}: {self.cpu_s:.1f} s of one core, at most {limit_s:.0f}")
        if self.case.devices == 4096 and self.best.peak_bytes > PEAK_BYTES:
            said.append(f"{name}: {self.best.peak_bytes / 1e9:.1f} GB, at most {PEAK_BYTES / 1e9:.0f}")
        return said

    def text(self) -> str:
        def told(rival: str) -> str:
            cost = min((c for n, c in self.rivals_s.items() if n.startswith(rival)), default=np.nan)
            return "-" if np.isnan(cost) else f"{cost:.2f}"

        cost, cpu = min(self.costs_s), self.cpu_s
        shown = [
            self.case.name,
            self.best.how,
            f"**{cost:.3f}**",
            f"{self.bound_s:.3f}",
            f"{100 * (1 - self.bound_s / cost):.1f} %",
            f"{100 * self.spread:.2f} % of {len(self.runs)}" if len(self.runs) > 1 else "-",
            f"{cpu:.1f}",
            f"{sum(r.evaluations for r in self.runs) / len(self.runs) / max(cpu, 1e-3):,.0f}",
            f"{self.best.peak_bytes / 1e9:.1f}" if self.case.large else "-",
            *map(told, RIVALS),
        ]
        return "| " + " | ".join(shown) + " |"

    def figure(self) -> dict[str, Any]:
        return {
            "objective": self.case.objective, "network": self.case.name, "cost_s": min(self.costs_s),
            "bound_s": self.bound_s, "spread": self.spread, "cpu_s": self.cpu_s, "seeds": len(self.runs),
        }  # fmt: skip


HEAD = [
    "| network, shape, times compressed | found | cost s | bound s | gap | spread of seeds | CPU s "
    "| layouts/s | GB | random mean | best random | region order | Megatron | greedy | DT-FM's search |",
    "|" + "---|" * 15,
]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=0, help="default: 5, with --quick 2")
    parser.add_argument("--only", choices=(DTFM, STEP), default="")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time; CPU seconds are judged")
    parser.add_argument("--cells", type=Path, help="JSON lines: runs that stand there are not done again")
    parser.add_argument("--kept", action="store_true", help="with --cells: what stands there, and no more")
    options = parser.parse_args()
    n_seeds = options.seeds or (2 if options.quick else 5)
    wanted = [c for c in cases(options.quick) if options.only in ("", c.objective)]
    lines = _lines(wanted, partial(settings_of, n_seeds=n_seeds, quick=options.quick), options)
    missed = [m for line in lines for m in line.missed()]
    lacking = sum(len(settings_of(c, n_seeds, options.quick)) for c in wanted) - sum(
        len(line.runs) for line in lines
    )
    missed += [f"{lacking} runs are not done yet"] if lacking else []
    stamp = datetime.date.today().isoformat()
    RESULTS.mkdir(exist_ok=True)
    marks = [stamp, *(["quick"] if options.quick else []), *([options.only] if options.only else [])]
    base = RESULTS / f"scheduler-{'-'.join(marks)}"
    text = [f"# Placement search, {stamp}, {n_seeds} seeds (of large networks one)", ""]
    for objective in (DTFM, STEP):
        own = [line.text() for line in lines if line.case.objective == objective]
        text += [f"## {TITLES[objective]}", "", *HEAD, *own, ""] if own else []
    verdict = [f"- missed: {m}" for m in missed] or ["Every goal met."]
    base.with_suffix(".md").write_text("\n".join([*text, *verdict]) + "\n")
    _draw(lines, base.with_suffix(".png"))
    print("\n".join(verdict), f"\nwritten: {base}.md, .png")
    figures = [line.figure() for line in lines]
    print(json.dumps({"benchmark": "scheduler", "seeds": n_seeds, "missed": missed, "rows": figures}))
    return 1 if missed else 0


def _lines(
    wanted: Sequence[Case], settings_of: Callable[[Case], list[Setting]], options: argparse.Namespace
) -> list[Line]:
    """Every case's line, printed as soon as its last run is done."""
    settings: list[Setting] = [s for case in wanted for s in settings_of(case)]
    runs: dict[Case, list[Run]] = {case: [] for case in wanted}
    needed = Counter(s.case for s in settings)
    with spread(options.processes) as map_settings:
        here = list(kept(options.cells, settings, _read)) if options.kept else settings
        for setting, found in filled(options.cells, here, run, _read, map_settings):
            runs[setting.case].append(found)
            if len(runs[setting.case]) == needed[setting.case]:
                print(Line(setting.case, runs[setting.case]).text(), flush=True)
    return [Line(case, found) for case, found in runs.items() if found]


def _read(fields: dict[str, Any]) -> Run:
    return Run(**fields)


def _draw(lines: Sequence[Line], path: Path) -> None:
    """How the best seed of each network of the paper's came to its cost."""
    inks = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222", "#999999")
    titles = {DTFM: "DT-FM's objective", STEP: "step time"}
    shown = [(x, title) for x, title in titles.items() if any(line.case.objective == x for line in lines)]
    figure, row = panels(1 + 5.5 * len(shown), 4.8, [1] * len(shown))
    for axes, (objective, title) in zip(row, shown, strict=True):
        own = [x for x in lines if x.case.objective == objective and len(x.best.curve) > 1]
        own = [x for x in own if x.case.devices == 64 and (x.case.activations, x.case.gradients) == (1, 1)]
        drawn = [x for x in own if objective == DTFM or not x.case.stages]
        ink = dict(zip(dict.fromkeys(x.case.network for x in drawn), inks, strict=False))
        for line in drawn:
            x, y = zip(*line.best.curve, strict=True)
            best = np.minimum.accumulate(y)
            axes.step(
                [n / 1000 for n in x],
                100 * (best / best[-1] - 1),
                where="post",
                color=ink[line.case.network],
                linestyle="--" if line.case.noise else "-",
                label=line.case.name,
            )
        if drawn:
            axes.legend(frameon=False, fontsize=8)
        axes.set_xlabel("layouts judged, thousands")
        axes.set_ylabel("best so far above the final, %")
        axes.set_title(f"Convergence, {title}", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
