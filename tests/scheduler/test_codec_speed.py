"""How fast codecs are: what was measured, the nearest thing that was, or what is typical."""

from __future__ import annotations

from compression.spec import SPECS
from scheduler.codec_speed import TYPICAL, CodecSpeed, speed_of


def test_every_codec_has_a_typical_speed_and_only_identity_is_free() -> None:
    assert {s.family for s in TYPICAL} == set(SPECS)
    for family in SPECS:
        free = speed_of(family).encode_s == speed_of(family).decode_s == 0
        assert free == (family == "identity")


def test_what_was_measured_counts_then_the_slowest_of_its_family() -> None:
    measured = (CodecSpeed("kbit", 1.0, 2.0), CodecSpeed("kbit:bits=4", 3.0, 4.0))
    assert speed_of("kbit", measured) is measured[0]
    assert speed_of("kbit:bits=6", measured) is measured[1]
    assert speed_of("tile", measured) == speed_of("tile")
    assert speed_of("identity", (CodecSpeed("identity", 9.0, 9.0),)).encode_s == 0
