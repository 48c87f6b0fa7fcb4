"""What a run costs: money for device-hours and for bytes that leave a region, energy where known.

    currency: USD
    device_hour: {default: 1.2, Tokyo: 1.6, Oregon-0: 0.9}   # by device, else by region, else default
    egress_gb: {default: 0.02, Tokyo: 0.09}                  # by region that is left; 1 GB = 1e9 bytes
    watts: {default: 300}                                     # of a device while the run lasts

Knows no plan and no clock. Nothing is priced that the table does not price.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

import yaml

from scheduler.reasons import reason_of
from scheduler.topology import Device

HOUR_S, GB = 3600.0, 1e9


class PriceError(ValueError):
    """A table of prices that cannot be: names file and key, what was found and what is required."""


Table = Mapping[str, float]
"""By name, with `default` for everybody else."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Tables as above; a missing one prices nothing."""

    device_hour: Table = field(default_factory=dict)
    egress_gb: Table = field(default_factory=dict)
    watts: Table = field(default_factory=dict)
    currency: str = "USD"

    def device_hour_of(self, device: Device) -> float | None:
        return _first(self.device_hour, device.name, device.region)

    def watts_of(self, device: Device) -> float | None:
        return _first(self.watts, device.name, device.region)

    def egress_gb_of(self, region: str) -> float | None:
        return _first(self.egress_gb, region)


def _first(table: Table, *names: str) -> float | None:
    return next((table[n] for n in (*names, "default") if n in table), None)


@dataclass(frozen=True, slots=True)
class Bill:
    """Money in the table's currency, energy in joules; None: the table does not price any of it."""

    devices: float | None
    egress: float | None
    energy_J: float | None
    unpriced: tuple[str, ...] = ()
    """Devices and regions that a table leaves out while it prices others."""

    @property
    def money(self) -> float | None:
        known = [x for x in (self.devices, self.egress) if x is not None]
        return sum(known) if known else None


def bill(
    prices: Prices,
    devices: Sequence[Device],
    device_s: Mapping[str, float],
    egress_bytes: Mapping[str, float],
) -> Bill:
    """What `device_s` seconds of each device and the bytes that left each region cost."""
    by_name = {d.name: d for d in devices}
    unpriced: list[str] = []

    def total(amounts: Mapping[str, float], rate: Callable[[str], float | None]) -> float | None:
        rates = {name: rate(name) for name, amount in amounts.items() if amount > 0}
        if all(r is None for r in rates.values()):
            return None
        unpriced.extend(name for name, r in rates.items() if r is None)
        return sum(amounts[name] * r for name, r in rates.items() if r is not None)

    money = total(device_s, lambda n: prices.device_hour_of(by_name[n]))
    egress = total(egress_bytes, prices.egress_gb_of)
    return Bill(
        None if money is None else money / HOUR_S,
        None if egress is None else egress / GB,
        total(device_s, lambda n: prices.watts_of(by_name[n])),
        tuple(dict.fromkeys(unpriced)),
    )


def read_prices(path: Path) -> Prices:
    """The prices in `path`. Raises PriceError."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise PriceError(f"{path}: cannot be read: {reason_of(e)}") from e
    known = ("currency", "device_hour", "egress_gb", "watts")
    if not isinstance(document, dict) or not set(document) <= set(known):
        found = ", ".join(map(str, document)) if isinstance(document, dict) else type(document).__name__
        raise PriceError(f"{path}: found {found}; required a mapping with keys among {', '.join(known)}")
    tables = {}
    for key in known[1:]:
        table = document.get(key, {})
        if not isinstance(table, dict):
            raise PriceError(f"{path}: {key}: found {table!r}, required a mapping from names to numbers")
        for name, value in table.items():
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not isfinite(value)
                or value < 0
            ):
                raise PriceError(f"{path}: {key}.{name}: found {value!r}, required a number of 0 or more")
        tables[key] = {str(name): float(value) for name, value in table.items()}
    return Prices(**tables, currency=str(document.get("currency", "USD")))
