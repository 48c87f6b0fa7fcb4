"""Numbers for people: sizes and durations in the unit that fits them. The core's own numbers stay SI."""

from __future__ import annotations

MBIT_BPS = 1e6 / 8
"""Bytes a second of 1 Mbit/s, for whoever reads what people write."""


def size(n_bytes: float) -> str:
    """`1.50 GiB`, `12.0 MiB`, `3 B`: three digits, binary units."""
    amount, unit = float(n_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(amount) < 1023.5:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} B" if unit == "B" else f"{_three_digits(amount)} {unit}"


def duration(seconds: float) -> str:
    """`1.21 s`, `35.0 ms`, `120 µs`, `2 min 05 s`."""
    if abs(seconds) >= 119.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if abs(seconds) * scale >= 0.9995:
            return f"{_three_digits(seconds * scale)} {unit}"
    return f"{_three_digits(seconds * 1e6)} µs" if seconds else "0 s"


def count(n: int, noun: str) -> str:
    """`1 stage`, `2 stages`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _three_digits(amount: float) -> str:
    decimals = 2 if abs(amount) < 9.995 else 1 if abs(amount) < 99.95 else 0
    return f"{amount:.{decimals}f}"
