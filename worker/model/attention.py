"""Self-attention: multi-head, grouped-query or single-query, with or without rotary positions, over all
earlier positions, a window of them, a butterfly of blocks, or in both directions.

The product itself is PyTorch's scaled_dot_product_attention, or flash-attn where that is installed and
the tensors suit it. Knows no layers. Shapes: B samples, T positions, H heads, K key-value heads, C the
width of a head; D = H x C.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from math import inf, sqrt
from os import environ
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scheduler.job import ModelSpec
from scheduler.mixers import AttentionSpec, Sight
from worker.model.cores import recomputed
from worker.model.layer import ModelError
from worker.model.mixer import SequenceMixer
from worker.model.parts import Linear
from worker.model.ring import Shard, ring_attention
from worker.model.rotary import rotate
from worker.model.sight import attend_in_blocks, visible

CAUSAL = Sight()


class KeyValues(NamedTuple):
    """Keys (rotated) and values of the positions seen so far, (B,K,T,C) each; of a window, of the last."""

    keys: Tensor
    values: Tensor
    first: int = 0
    """The position of the first of them."""

    @property
    def length(self) -> int:
        """Positions seen."""
        return self.first + self.keys.shape[2]

    def extended(self, keys: Tensor, values: Tensor) -> KeyValues:
        """With further positions behind these. Of the same batch, or, where these are none, of any."""
        if not self.keys.shape[2]:
            return KeyValues(keys, values, self.first)
        both = torch.cat((self.keys, keys), dim=2), torch.cat((self.values, values), dim=2)
        return KeyValues(*both, self.first)

    def last(self, n: int) -> KeyValues:
        """The last `n` positions at most."""
        gone = max(0, self.keys.shape[2] - n)
        return KeyValues(self.keys[:, :, gone:], self.values[:, :, gone:], self.first + gone)


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


def attend(
    q_BHTC: Tensor,
    k_BKSC: Tensor,
    v_BKSC: Tensor,
    sight: Sight = CAUSAL,
    documents_BT: Tensor | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(C)) v for the last T of S positions, each seeing what `sight` shows: (B,T,D).

    Head h reads key-value head h // (H/K). With `documents_BT` (T = S), whose samples are packed of
    several documents, a position sees its own document alone.
    """
    flash = (
        _flash_attention() if q_BHTC.is_cuda and sight.butterfly is None and documents_BT is None else None
    )
    if flash is not None:
        device, width = q_BHTC.device, q_BHTC.shape[-1]
        if choose_attention(device.type, q_BHTC.dtype, True, width, _capability(str(device))) == "flash":
            # Positions before heads; its causal mask is aligned with the last position, as ours is.
            away = -1 if sight.window is None else sight.window - 1
            return flash(
                *(x.transpose(1, 2) for x in (q_BHTC, k_BKSC, v_BKSC)),
                causal=sight.causal,
                window_size=(away, away),
            ).flatten(2)
    seen, new = k_BKSC.shape[2], q_BHTC.shape[2]
    if new == seen and sight.blocks_of(new) is not None:
        return attend_in_blocks(q_BHTC, k_BKSC, v_BKSC, sight, documents_BT).transpose(1, 2).flatten(2)
    # PyTorch aligns its causal mask with the first position, which is right only from the start.
    plain = sight.block is None and documents_BT is None
    is_causal = plain and sight.causal and new == seen and new > 1
    mask = None
    if not is_causal and not (plain and (new == 1 or not sight.causal)):
        at = torch.arange(seen, device=q_BHTC.device)
        mask = visible(sight, at[seen - new :], at)
        if documents_BT is not None:
            mask = mask & (documents_BT[:, :, None] == documents_BT[:, None, :])[:, None]
    y_BHTC = F.scaled_dot_product_attention(
        q_BHTC,
        k_BKSC,
        v_BKSC,
        attn_mask=mask,
        is_causal=is_causal,
        enable_gqa=q_BHTC.shape[1] != k_BKSC.shape[1],
    )
    return y_BHTC.transpose(1, 2).flatten(2)


class Attention(SequenceMixer):
    """`qkv` holds the rows of queries, then keys, then values."""

    def __init__(self, model: ModelSpec, options: AttentionSpec) -> None:
        super().__init__()
        width, bias = model.hidden, model.family == "gpt2"
        self.heads, self.kv_heads = options.heads_in(model)
        self.head_width, self.sight = width // self.heads, options.sight
        self.theta = model.rope_theta if options.rotates_in(model) else None
        self.triton = options.kernel == "triton"
        if self.triton and find_spec("triton") is None:
            raise ModelError("found attention kernel=triton without Triton; required: pip install triton")
        self.qkv = Linear(width, (self.heads + 2 * self.kv_heads) * self.head_width, bias)
        self.out = Linear(width, width, bias)

    def begin(self) -> KeyValues:
        none = self.qkv.weight.new_empty(1, self.kv_heads, 0, self.head_width)
        return KeyValues(none, none)

    def in_shard(self, shard: Shard) -> Shard:
        if not self.sight.causal or self.sight.butterfly is not None:
            raise ModelError(
                "found attention in both directions, or to a butterfly, in a stage that holds shards of"
                " sequences; required attention to all earlier positions or to a window of them"
            )
        return shard

    def forward(
        self, x_BTD: Tensor, state: KeyValues | Shard | None = None, documents_BT: Tensor | None = None
    ) -> tuple[Tensor, KeyValues | Shard | None]:
        if isinstance(state, Shard):
            if documents_BT is not None:
                raise ModelError("found packed documents in a shard of a sequence; required whole sequences")
            q, k, v = self._projected(x_BTD, state.first)
            y_BHTC = ring_attention(q, k, v, self.sight, state)
            return self.out(y_BHTC.transpose(1, 2).flatten(2)), state
        q, k, v = self._projected(x_BTD, 0 if state is None else state.length)
        if state is None and self.triton:
            if not x_BTD.is_cuda and environ.get("TRITON_INTERPRET") != "1":
                raise ModelError(
                    f"found attention kernel=triton on {x_BTD.device.type}; required a GPU that Triton knows,"
                    " or kernel=auto"
                )
            from worker.kernels.flash_triton import flash_attention

            y_BHTC = flash_attention(q, k, v, self.sight, documents_BT)
            return self.out(y_BHTC.transpose(1, 2).flatten(2)), None
        if state is None and documents_BT is None:
            return self.out(attend(q, k, v, self.sight)), None
        if state is None:  # the mask of pairs would be most of what is kept
            return self.out(recomputed(attend, q, k, v, self.sight, documents_BT)), None
        if not self.sight.causal:
            raise ModelError(
                "found attention that sees later positions, asked to go on behind earlier ones; required"
                " attention with causal=true to generate"
            )
        state = state.extended(k, v)
        y_BTD = self.out(attend(q, state.keys, state.values, self.sight))
        return y_BTD, state if self.sight.window is None else state.last(self.sight.window - 1)

    def as_matrix(self, x_BTD: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        q, k, _ = self._projected(x_BTD, 0)
        scores_BHTT = q @ k.repeat_interleave(self.heads // self.kv_heads, 1).mT / sqrt(self.head_width)
        at = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        seen = visible(self.sight, at, at)
        if documents_BT is not None:
            seen = seen & (documents_BT[:, :, None] == documents_BT[:, None, :])[:, None]
        return scores_BHTT.masked_fill(~seen, -inf).softmax(-1)

    def values(self, x_BTD: Tensor) -> Tensor:
        return self._projected(x_BTD, 0)[2].repeat_interleave(self.heads // self.kv_heads, 1)

    def finish(self, x_BTD: Tensor, mixed_BGTE: Tensor) -> Tensor:
        del x_BTD
        y: Tensor = self.out(mixed_BGTE.transpose(1, 2).flatten(2))
        return y

    def _projected(self, x_BTD: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = [heads * self.head_width for heads in (self.heads, self.kv_heads, self.kv_heads)]
        q, k, v = (
            part.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for part in self.qkv(x_BTD).split(rows, dim=-1)
        )
        if self.theta is not None:
            q, k = rotate(q, first, self.theta), rotate(k, first, self.theta)
        return q, k, v


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
