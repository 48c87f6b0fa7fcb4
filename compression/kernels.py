"""Which twin of the quantizer runs where: the compiled loop on a CPU, Triton on a GPU that has it.

All have the signatures of `quantize.py` and give its bits; the two that are fused also quantize the change to
a memory and bring it up to date in the same pass.
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


class Fused(Twin, Protocol):
    """A twin that knows memories, such as `kernels_cpu`."""

    def encode_into(
        self,
        x: Tensor,
        scales: Tensor,
        packed: Tensor,
        grid: Grid,
        seed: int = 0,
        threads: int = 1,
        memory: Tensor | None = None,
    ) -> None: ...


def twin_of(device: torch.device) -> Twin:
    """The fastest there is for tensors on `device`."""
    if device.type == "cpu":
        return kernels_cpu
    if device.type == "cuda" and find_spec("triton") is not None:
        return cast(Twin, import_module("compression.kernels_triton"))
    return quantize


def fused_of(device: torch.device) -> tuple[Fused, torch.device]:
    """The fused twin for tensors on `device`, and where it wants them: on the CPU if none runs on theirs."""
    twin = twin_of(device)
    return (kernels_cpu, torch.device("cpu")) if twin is quantize else (cast(Fused, twin), device)
