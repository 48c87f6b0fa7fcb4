"""Whether a fused kernel runs for a tensor: on a GPU that Triton knows; elsewhere the reference does."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from os import environ

import torch
from torch import Tensor


def runs_here(x: Tensor) -> bool:
    """The kernels compute in float32, so a float64 model keeps to the reference."""
    return x.is_cuda and x.dtype != torch.float64 and _installed()


def interprets(x: Tensor) -> bool:
    """Whether Triton's interpreter stands in for a GPU: how the kernels are tested."""
    return not x.is_cuda and _installed() and environ.get("TRITON_INTERPRET") == "1"


@cache
def _installed() -> bool:
    return find_spec("triton") is not None
