"""The simulator against real runs: the demo's model on four workers behind shaped links.

    python -m tests.benchmarks.emulate [--quick]

Three traces (four cities, DT-FM's country, a day that moves), five placements each, 10 steps a run; compute
is measured by the workers, links have the trace's delays and a twentieth of its bandwidths, so that they and
not the cores of one machine decide what a step takes (--bandwidth-scale 1: all of it). Ends with one JSON
line and exits with 1 when a goal is missed: the median error of the predicted step at most 10 %, and nine in
ten of the pairs of placements whose measured steps differ by more than the noise (10 %) in the measured
order. --quick: one trace, two placements.

Other work on the same cores makes computations longer in some runs than in others: run it alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

from deploy.emulate import Emulation, outcomes, table
from scheduler.job import parse_job

TEXT = Path(__file__).parent.parent / "data" / "text.txt"
TRACES = ("four_cities", "dtfm_regional", "synthetic_day")
MAX_ERROR, MIN_ORDERED, NOISE = 0.10, 0.9, 0.10
JOB = f"""
name: emulate
model: {{preset: demo}}
data: {{files: ["{TEXT}"], eval_samples: 0}}
sequence_length: 128
global_batch: 32
micro_batch: 4
steps: 10
optimizer: {{lr: 1.5e-3, warmup_steps: 10}}
checkpoint: {{every: 0}}
"""


def ordered(pairs: list[tuple[str, float, float]]) -> float:
    """Share of the pairs of one trace that differ by more than the noise and stand in the measured order;
    `pairs` are (trace, predicted, measured)."""
    agree = [
        (a[1] < b[1]) == (a[2] < b[2])
        for i, a in enumerate(pairs)
        for b in pairs[i + 1 :]
        if a[0] == b[0] and abs(a[2] / b[2] - 1) > NOISE
    ]
    return sum(agree) / len(agree) if agree else 1.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--bandwidth-scale", type=float, default=0.05)
    options = parser.parse_args()
    quick = options.quick
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.yaml"
        job.write_text(JOB)
        emulation = Emulation(
            job,
            TRACES[:1] if quick else TRACES,
            2 if quick else 5,
            bandwidth_scale=options.bandwidth_scale,
            state_dir=Path(folder) / "runs",
        )
        found = []
        for outcome in outcomes(emulation, parse_job(JOB, str(job))):
            found.append(outcome)
            told = f"{outcome.predicted_s:.3f} s predicted, {outcome.measured_s:.3f} s measured"
            print(f"{outcome.trace}: {told}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    print(table(found))
    kinds = {k: [sum(o.kinds.get(k, (0, 0))[i] for o in found) for i in (0, 1)] for k in found[0].kinds}
    print("seconds of spans, predicted and measured: "
          + ", ".join(f"{k} {a:.2f} {b:.2f}" for k, (a, b) in kinds.items()))  # fmt: skip
    error, order = (
        median(abs(o.error) for o in found),
        ordered([(o.trace, o.predicted_s, o.measured_s) for o in found]),
    )
    own = ordered([(o.trace, *o.own) for o in found if o.own is not None])
    print(f"in the measured order beyond the noise: {order:.0%}; with computations as they were: {own:.0%}")
    missed = [f"median error {error:.1%}, required {MAX_ERROR:.0%}"] if error > MAX_ERROR else []
    missed += (
        [f"{order:.0%} of the pairs in order, required {MIN_ORDERED:.0%}"] if order < MIN_ORDERED else []
    )
    print("\n".join(f"missed: {m}" for m in missed) or "all goals met")
    rows = [[o.trace, o.placement, round(o.predicted_s, 4), round(o.measured_s, 4)] for o in found]
    print(json.dumps({"benchmark": "emulate", "median_error": error, "ordered": order, "rows": rows}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
