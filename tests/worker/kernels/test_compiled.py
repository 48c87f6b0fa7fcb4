"""Triton's interpreter takes what its compiler does not: every kernel becomes machine code for an
A100, attention's and the experts' for an H100 too."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not here: `gpu` and `dev` bring it")
def test_every_kernel_compiles() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.worker.kernels.compiled"],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = [line.split() for line in done.stdout.splitlines()]
    assert {(name.split(".")[-2], int(capability)) for capability, name, *_ in made} == {
        ("adamw_triton", 80), ("flash_triton", 80), ("gates_triton", 80), ("grouped_triton", 80),
        ("kernels_triton", 80),
        ("norm_triton", 80), ("rotary_triton", 80), ("flash_triton", 90), ("grouped_triton", 90),
    }  # fmt: skip
    # What a block of threads may share on these GPUs, and code that is there at all.
    assert all(int(shared) <= 160 * 1024 and int(size) > 0 for *_, shared, size in made)
