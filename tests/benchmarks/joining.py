"""How long a run stands still when one who has joined is taken in: its layers beside the steps, or at the
boundary.

    python -m tests.benchmarks.joining [--quick] [--out FILE]

Real processes: one worker trains, another joins over a link of 24 Mbit/s and 20 ms there and back and gets
the last three of eight layers (5.3 MiB of weights and AdamW's state). Once the coordinator lets the layers
travel while the steps go on, once it is told not to; the pause is from the last commit under the old plan to
the first step under the new. Both runs' losses must be those of the first, bit for bit. Goal: at most 0.6 of
the pause (of a gradient's bytes there are a third, and building a stage takes what it takes). The last line
is JSON; the exit code is 1 if the goal is missed. --quick: one pair of runs instead of three.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from unittest.mock import patch

from tests.benchmarks.command import run as run_command
from tests.joined import first, job_of, losses, run_of

GOAL = 0.6
ROUNDS = 3
BANDWIDTH_BPS, REST_S = 3e6, 1.0


def benchmark(quick: bool) -> tuple[list[str], bool]:
    job = job_of(layers=6, global_batch=16, steps=400)
    pauses: dict[str, list[float]] = {"beside the steps": [], "at the boundary": []}
    steps, numbers = [], []
    for _ in range(1 if quick else ROUNDS):
        for how, found in pauses.items():
            never = 0.0 if how == "beside the steps" else float("inf")
            with (
                tempfile.TemporaryDirectory() as name,
                patch("scheduler.following.LEAST_GAIN_S", never),
            ):
                events = run_of(
                    Path(name) / "run",
                    job,
                    joins=True,
                    ends_after="pause",
                    rest_s=REST_S,
                    bandwidth_Bps=BANDWIDTH_BPS,
                )
            pause = first(events, "pause")
            found.append(pause["seconds"])
            numbers.append(losses(events))
            if how == "beside the steps":
                steps.append(pause["step"] - first(events, "following")["step"])
    ratio = median(pauses["beside the steps"]) / median(pauses["at the boundary"])
    same = all(a == b for x in numbers for a, b in zip(x, numbers[0], strict=False))
    lines = [f"{'layers travel':20}{'the run stands still':>22}"]
    lines += [f"{how:20}{median(found):>20.2f} s" for how, found in pauses.items()]
    lines += [f"ratio {ratio:.2f}; {median(steps):g} steps were committed while the layers travelled"]
    missed = [f"the ratio is {ratio:.2f}, goal: {GOAL}"] * (ratio > GOAL)
    missed += ["losses differ"] * (not same)
    lines += [f"MISSED: {x}" for x in missed]
    lines.append(
        json.dumps(
            {"benchmark": "joining", "pauses_s": pauses, "ratio": ratio, "steps": steps, "missed": missed}
        )
    )
    return lines, bool(missed)


if __name__ == "__main__":
    sys.exit(run_command(benchmark, __doc__, "one pair of runs"))
