"""What every message is held to before anything is built of it: caps, and numbers that are numbers."""

from __future__ import annotations

import math

MAX_LAYERS = 4096
MAX_PARTS = 256
"""Of a layer."""
MAX_RANKS = 4096
MAX_CODECS = 128
MAX_SPANS = 200_000
MAX_LINKS = 20_000
MAX_NAME = 128


class ConvertError(ValueError):
    """A message whose content cannot be: says what was found and what is required."""


def finite(label: str, value: float, least: float = 0.0) -> float:
    if not math.isfinite(value) or value < least:
        raise ConvertError(f"{label}: found {value}, required a finite number of at least {least:g}")
    return value


def at_most(label: str, n: int, most: int) -> None:
    if n > most:
        raise ConvertError(f"{label}: found {n} entries, required at most {most}")
