"""The numbers of an event, by name, for whatever draws curves over steps. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_OF_A_STEP = (
    "loss", "grad_norm", "tokens_per_s", "step_s", "predicted_step_s", "sent_bytes", "raw_bytes",
)  # fmt: skip


def scalars(event: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """(step, numbers); no numbers for an event that has none, and none that is not finite."""
    match event.get("event"):
        case "step":
            found = {name: event[name] for name in _OF_A_STEP}
        case "eval":
            found = {"eval_loss": event["eval_loss"]}
        case "use" if event["workers"] and event["step_s"] > 0:
            busy = [w["busy_s"] / event["step_s"] for w in event["workers"]]
            found = {"busy_mean": sum(busy) / len(busy), "busy_least": min(busy), "busy_most": max(busy)}
            found["memory_used_bytes_most"] = max(w["memory_used_bytes"] for w in event["workers"])
        case _:
            found = {}
    numbers = {name: float(x) for name, x in found.items() if x is not None}
    return int(event.get("step", 0)), {name: x for name, x in numbers.items() if math.isfinite(x)}
