"""Accelerators: found by name, and rates that are a share of the peak."""

from __future__ import annotations

import pytest

from scheduler.gpus import ACCELERATORS, ACHIEVABLE, AcceleratorError, accelerator


@pytest.mark.parametrize("name", list(ACCELERATORS))
def test_every_accelerator_is_found_by_its_name_and_computes_float32(name: str) -> None:
    found = accelerator(name.upper())
    assert found.name == name
    assert found.achieved_flops("fp32") == ACHIEVABLE * found.peak_flops["fp32"]
    assert all(rate >= found.peak_flops["fp32"] for rate in found.peak_flops.values())
    assert found.memory_bytes > 0
    # Of no accelerator can every operand come from memory.
    assert found.peak_flops["fp32"] / found.memory_Bps > 5


def test_a_share_of_the_peak_is_asked_for() -> None:
    assert accelerator("a100-80").achieved_flops("bf16", 0.5) == 156e12


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(AcceleratorError, match=r"'a100' \(did you mean 'a10'\?\), required one of: v100, t4"):
        accelerator("a100")
    with pytest.raises(AcceleratorError, match=r"v100: found no units for bf16, required one of: fp32, fp16"):
        accelerator("v100").achieved_flops("bf16")
    with pytest.raises(AcceleratorError, match=r"found the achieved fraction 1\.5"):
        accelerator("t4").achieved_flops("fp16", 1.5)
