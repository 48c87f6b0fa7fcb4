"""Which twin of the quantizer runs where: the compiled loop on a CPU, Triton on a GPU that has it.

All have the signatures of `quantize.py` and give its bits.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, cast

import torch
from torch import Tensor

from compression import kernels_cpu, quantize
from compression.grid import Grid


class Twin(Protocol):
    """`quantize.py`, or a module that is as good."""

    def quantize(self, x: Tensor, grid: Grid, seed: int = 0, threads: int = 1) -> tuple[Tensor, Tensor]: ...

    def dequantize(
        self,
        scales: Tensor,
        packed: Tensor,
        shape: tuple[int, ...],
        grid: Grid,
        dtype: torch.dtype,
        threads: int = 1,
    ) -> Tensor: ...


def twin_of(device: torch.device) -> Twin:
    """The fastest there is for tensors on `device`."""
    if device.type == "cpu":
        return kernels_cpu
    if device.type == "cuda" and find_spec("triton") is not None:
        return cast(Twin, import_module("compression.kernels_triton"))
    return quantize
