"""Settings in which jobs differ. Pure; a default that somebody wrote down is no difference."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from scheduler.job import JobSpec


def differing(jobs: Sequence[JobSpec]) -> list[dict[str, Any]]:
    """One entry a key that is not the same in all, `key` as dotted as in messages about job files, with its
    `values` in the jobs' order, as they would be written; '' where a job has no such key."""
    flat = [dict(_flat(job.model_dump(mode="json"))) for job in jobs]
    keys = sorted({key for found in flat for key in found})
    rows = [{"key": key, "values": [found.get(key, "") for found in flat]} for key in keys]
    return [row for row in rows if len(set(row["values"])) > 1]


def _flat(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{at}.{name}" if at else str(name))
    elif value is not None:
        yield at, value if isinstance(value, str) else json.dumps(value)
