"""A small job for the coordinator's tests."""

from __future__ import annotations

from scheduler.job import JobSpec, parse_job

TEXT = """
name: tiny
model: {family: gpt2, layers: 2, hidden: 16, heads: 2}
data: {files: [text.txt], eval_samples: 4}
sequence_length: 16
global_batch: 8
micro_batch: 2
steps: 8
parallelism: {stages: 2}
eval_every: 4
checkpoint: {every: 3, keep: 2}
"""


def a_job(**changes: str) -> JobSpec:
    """The job with lines appended or replaced by key."""
    lines = [x for x in TEXT.strip().splitlines() if x.split(":")[0] not in changes]
    return parse_job("\n".join([*lines, *(f"{k}: {v}" for k, v in changes.items())]), "tiny.yaml")
