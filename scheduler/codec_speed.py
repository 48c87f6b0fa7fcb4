"""How long a device takes to encode and decode a value: measured, or what is taken where nothing was.

Knows no tensors and no clock; the worker's profiler measures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CodecSpeed:
    """Seconds a value, on one device, by the loops that run beside its computation."""

    name: str
    """The codec's, options included."""
    encode_s: float
    decode_s: float

    @property
    def family(self) -> str:
        return self.name.partition(":")[0]


TYPICAL = tuple(
    CodecSpeed(family, encode_ns * 1e-9, decode_ns * 1e-9)
    for family, encode_ns, decode_ns in (
        ("identity", 0.0, 0.0),
        ("fp16", 0.5, 0.5),
        ("kbit", 0.9, 0.7),
        ("tile", 2.4, 1.4),
        ("acsgd", 2.3, 1.9),
        ("feedback", 1.4, 0.7),
        ("momentum", 1.4, 0.7),
        ("topk", 2.5, 0.6),
    )
)
"""Taken for devices that were not measured: one core of the machine where these codecs were built, a million
values of float32, CPU seconds of the slowest options tried (2026-11-24). A GPU that encodes by itself is
faster; one that does not has a host that is about as fast."""


def speed_of(name: str, measured: Iterable[CodecSpeed] = ()) -> CodecSpeed:
    """Of the codec called `name`: as measured, else the slowest measured of its family, else the typical."""
    family = name.partition(":")[0]
    if family == "identity":
        return TYPICAL[0]  # what travels as it is stays on the rank's thread, and costs nothing there
    alike = [s for s in measured if s.family == family]
    exact = [s for s in alike if s.name == name]
    known = exact or alike or [s for s in TYPICAL if s.family == family]
    return max(known, key=lambda s: s.encode_s + s.decode_s)
