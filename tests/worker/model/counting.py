"""Flops as PyTorch counts them, with the kernels that its counter passes over."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

_ATEN: Any = torch.ops.aten
_COUNT: Any = flop_counter
_UNKNOWN = {  # the counter knows the GPU's attention kernels, and counts nothing for the CPU's
    _ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: _COUNT.sdpa_flop_count(
        q, (*q[:2], *k[2:]), (*q[:2], *v[2:])
    ),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        _COUNT.sdpa_backward_flop_count(g, q, (*q[:2], *k[2:]), (*q[:2], *v[2:]))
    ),
}


def counting() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=_UNKNOWN)
