"""Reads a script of faults:

    faults:
      - {fail: 3, step: 7}                                # the device of rank 3 crashes during step 7
      - {leave: Tokyo-1, at_s: 300}
      - {join: Tokyo-1, at_s: 900}                        # without a leave before: for the first time
      - {partition: [Tokyo, Seoul], from_s: 100, until_s: 160}
      - {slow: Ohio-3, factor: 0.5, from_s: 10, until_s: 100}
    rate: {mean_hours_between: 24, mean_hours_away: 1, away_at_first: [Tokyo-1]}    # each device, exponential

Times are seconds of the network's clock. Strict: an unknown key, device or region is an error that names the
entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from scheduler.reasons import reason_of
from sim.faults import Faults, Rate


class FaultError(ValueError):
    """A script of faults that cannot be: says which entry, what was found and what is required."""


_ENTRIES: dict[str, tuple[str, ...]] = {
    "fail": ("step",),
    "leave": ("at_s",),
    "join": ("at_s",),
    "partition": ("from_s", "until_s"),
    "slow": ("factor", "from_s", "until_s"),
}


NO_FAULTS = Faults()


@dataclass(frozen=True, slots=True)
class Script:
    """What is said one by one, and the rate, if any, from which more is drawn for `devices`."""

    said: Faults = NO_FAULTS
    rate: Rate | None = None
    devices: tuple[str, ...] = ()

    def faults(self, horizon_s: float, rng: np.random.Generator) -> Faults:
        """All of it; what is drawn, until `horizon_s`."""
        if self.rate is None:
            return self.said
        drawn = self.rate.drawn(self.devices, horizon_s, rng)
        return replace(self.said, moves=tuple(sorted((*self.said.moves, *drawn.moves))))


def read_script(path: Path, devices: Sequence[str], regions: Sequence[str]) -> Script:
    """The script in `path`. Raises FaultError."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise FaultError(f"{path}: cannot be read: {reason_of(e)}") from e
    if not isinstance(document, dict) or not set(document) <= {"faults", "rate"}:
        raise FaultError(f"{path}: found {document!r}, required a mapping with the keys faults and rate")
    faults = Faults()
    rate = _rate(document["rate"], f"{path}: rate", devices) if "rate" in document else None
    entries = document.get("faults") or []
    if not isinstance(entries, list):
        raise FaultError(f"{path}: faults: found {entries!r}, required a list")
    for i, entry in enumerate(entries):
        faults = _entry(faults, entry, f"{path}: faults[{i}]", devices, regions)
    return Script(faults, rate, tuple(devices))


def _rate(rate: Any, where: str, devices: Sequence[str]) -> Rate:
    keys, more = ("mean_hours_between", "mean_hours_away"), "away_at_first"
    if not isinstance(rate, dict) or set(rate) - {more} != set(keys):
        raise FaultError(f"{where}: found {rate!r}, required {' and '.join(keys)}, and {more} if you like")
    between, away = (_number(rate, k, where, above=0.0) for k in keys)
    absent = rate.get(more, [])
    if not isinstance(absent, list) or any(name not in devices for name in absent):
        raise FaultError(f"{where}: {more}: found {absent!r}, required devices among: {', '.join(devices)}")
    return Rate(between * 3600, away * 3600, frozenset(absent))


def _entry(faults: Faults, entry: Any, where: str, devices: Sequence[str], regions: Sequence[str]) -> Faults:
    kinds = [k for k in _ENTRIES if isinstance(entry, dict) and k in entry]
    if len(kinds) != 1 or set(entry) != {kinds[0], *_ENTRIES[kinds[0]]}:
        required = "; ".join(f"{k} with {', '.join(v)}" for k, v in _ENTRIES.items())
        raise FaultError(f"{where}: found {entry!r}, required one of: {required}")
    kind, subject = kinds[0], entry[kinds[0]]
    value = {k: _number(entry, k, where) for k in _ENTRIES[kind]}
    if "until_s" in value and not value["from_s"] < value["until_s"]:
        raise FaultError(f"{where}: found from_s {value['from_s']:g}, required less than until_s")
    if kind == "fail":
        if isinstance(subject, bool) or not isinstance(subject, int) or subject < 0:
            raise FaultError(f"{where}: fail: found {subject!r}, required a rank, 0 or more")
        return faults.fail_at(subject, int(value["step"]))
    if kind == "partition":
        unknown = [r for r in subject if r not in regions] if isinstance(subject, list) else [subject]
        if unknown or not subject:
            raise FaultError(f"{where}: partition: found {subject!r}, required regions: {', '.join(regions)}")
        return faults.partition(subject, **value)
    if subject not in devices:
        raise FaultError(
            f"{where}: {kind}: found the device {subject!r}, required one of: {', '.join(devices)}"
        )
    if kind == "slow":
        return faults.slow(subject, **value)
    return faults.leave(subject, **value) if kind == "leave" else faults.join(subject, **value)


def _number(entry: dict[str, Any], key: str, where: str, above: float | None = None) -> float:
    value = entry[key]
    good = not isinstance(value, bool) and isinstance(value, int | float) and isfinite(value) and value >= 0
    if not good or (above is not None and value <= above):
        raise FaultError(f"{where}: {key}: found {value!r}, required a number of 0 or more")
    return float(value)
