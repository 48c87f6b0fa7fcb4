"""Causal self-attention: multi-head, grouped-query or single-query, with or without rotary positions.

The product itself is PyTorch's scaled_dot_product_attention, or flash-attn where that is installed and
the tensors suit it. Knows no layers. Shapes: B samples, T positions, H heads, K key-value heads, C the
width of a head; D = H x C.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.model.parts import Linear
from worker.model.rotary import rotate


class KeyValues(NamedTuple):
    """Keys (rotated) and values of the positions seen so far, (B,K,T,C) each."""

    keys: Tensor
    values: Tensor

    @property
    def length(self) -> int:
        return self.keys.shape[2]

    def extended(self, keys: Tensor, values: Tensor) -> KeyValues:
        """With further positions behind these. Of the same batch, or, where these are none, of any."""
        if not self.length:
            return KeyValues(keys, values)
        return KeyValues(torch.cat((self.keys, keys), dim=2), torch.cat((self.values, values), dim=2))


def choose_attention(
    device: str,
    dtype: torch.dtype,
    installed: bool,
    head_width: int = 64,
    capability: tuple[int, int] = (8, 0),
) -> Literal["flash", "sdpa"]:
    """Which implementation runs these tensors. `device` is a device type ("cpu", "cuda").

    flash-attn 2 needs: to be installed, an NVIDIA GPU of compute capability 8.0 or more, 16-bit
    floats, heads of at most 256 values and a multiple of 8.
    """
    suits = (
        device == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and capability >= (8, 0)
        and head_width <= 256
        and head_width % 8 == 0
    )
    return "flash" if installed and suits else "sdpa"


def attend(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C)) v for the last T of S positions, each seeing itself and those before: (B,T,D).

    Head h reads key-value head h // (H/K).
    """
    flash = _flash_attention() if q_BHTC.is_cuda else None
    if flash is not None:
        device, width = q_BHTC.device, q_BHTC.shape[-1]
        if choose_attention(device.type, q_BHTC.dtype, True, width, _capability(str(device))) == "flash":
            # Positions before heads; its causal mask is aligned with the last position, as ours is.
            return flash(*(x.transpose(1, 2) for x in (q_BHTC, k_BKSC, v_BKSC)), causal=True).flatten(2)
    seen, new = k_BKSC.shape[2], q_BHTC.shape[2]
    # PyTorch aligns its causal mask with the first position, which is right only from the start.
    mask = None
    if 1 < new < seen:
        mask = torch.ones(new, seen, dtype=torch.bool, device=q_BHTC.device).tril(seen - new)
    y_BHTC = F.scaled_dot_product_attention(
        q_BHTC,
        k_BKSC,
        v_BKSC,
        attn_mask=mask,
        is_causal=new == seen and new > 1,
        enable_gqa=q_BHTC.shape[1] != k_BKSC.shape[1],
    )
    return y_BHTC.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """The sequence mixer of both families. `qkv` holds the rows of queries, then keys, then values.

    `theta` is rotary's base, or None where positions were already added by the embedding.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, bias: bool, theta: float | None) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width, self.theta = heads, kv_heads, width // heads, theta
        self.qkv = Linear(width, (heads + 2 * kv_heads) * self.head_width, bias)
        self.out = Linear(width, width, bias)

    def begin(self) -> KeyValues:
        none = self.qkv.weight.new_empty(1, self.kv_heads, 0, self.head_width)
        return KeyValues(none, none)

    def forward(self, x_BTD: Tensor, state: KeyValues | None = None) -> tuple[Tensor, KeyValues | None]:
        rows = [heads * self.head_width for heads in (self.heads, self.kv_heads, self.kv_heads)]
        q, k, v = (
            part.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for part in self.qkv(x_BTD).split(rows, dim=-1)
        )
        if self.theta is not None:
            first = 0 if state is None else state.length
            q, k = rotate(q, first, self.theta), rotate(k, first, self.theta)
        if state is not None:
            state = state.extended(k, v)
            k, v = state.keys, state.values
        return self.out(attend(q, k, v)), state


@cache
def _flash_attention() -> Callable[..., Tensor] | None:
    """flash-attn's function; None where it is not installed or was built for another PyTorch or CUDA."""
    try:
        from flash_attn import flash_attn_func
    except (ImportError, OSError):
        return None
    function: Callable[..., Tensor] = flash_attn_func
    return function


@cache
def _capability(device: str) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
