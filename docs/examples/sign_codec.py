"""A codec of one's own: the sign of each value, and one size for all (1-bit SGD, Seide et al. 2014).

Gradients alone bear this, and only with what was left out added to the next step's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi, prod, sqrt
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from compression.codec import CODECS, Encoded, Key, make_codec
from compression.naming import Named
from compression.payload import dtype_of, name_of, parts, require_bytes, to_bytes
from compression.spec import SPECS


# The spec prices the codec and needs no torch: planner and simulator know it alone.
@dataclass(frozen=True, slots=True)
class SignSpec(Named):
    """sign(x) x mean |x|: a bit a value, and four bytes."""

    family: ClassVar[str] = "sign"

    def wire_bytes(self, shape: Sequence[int], dtype_bytes: int) -> int:
        del dtype_bytes
        return -(-prod(shape) // 8) + 4

    def relative_error(self, shape: Sequence[int]) -> float:
        del shape
        return sqrt(1 - 2 / pi)  # of normal values


# The codec makes exactly as many bytes as its spec says.
class SignCodec:
    def __init__(self, spec: SignSpec) -> None:
        self.spec = spec

    def encode(self, x: Tensor, key: Key) -> Encoded:
        del key
        name = name_of(x, floats=True)
        bits = torch.from_numpy(np.packbits((x.detach().cpu().float() >= 0).numpy().ravel()))
        size = x.detach().float().abs().mean().cpu().reshape(1)
        return Encoded((to_bytes(bits), to_bytes(size)), name, tuple(x.shape), self.spec.name)

    def decode(self, encoded: Encoded, key: Key) -> Tensor:
        del key
        dtype, n = dtype_of(encoded, self.spec.name, floats=True), prod(encoded.shape)
        require_bytes(encoded, self.spec.wire_bytes(encoded.shape, dtype.itemsize))
        bits, size = parts(encoded, [encoded.n_bytes - 4, 4])
        signs = 2.0 * torch.from_numpy(np.unpackbits(bits.numpy(), count=n)) - 1.0
        return (signs * size.clone().view(torch.float32)).reshape(encoded.shape).to(dtype)

    def echo(self, encoded: Encoded, key: Key) -> Tensor:
        return self.decode(encoded, key)

    def reset(self) -> None:
        """Nothing is remembered."""


SPECS["sign"] = SignSpec
CODECS["sign"] = lambda spec, _seed, _directory: SignCodec(spec)

codec = make_codec("sign")
x = torch.randn(64, 768, generator=torch.Generator().manual_seed(0))
encoded = codec.encode(x, ())
y = codec.decode(encoded, ())
promised, expected = codec.spec.wire_bytes(x.shape, 4), codec.spec.relative_error(x.shape)
print(f"{x.nbytes} bytes become {encoded.n_bytes}, as promised: {promised}")
print(f"relative error {float((y - x).norm() / x.norm()):.2f}, expected {expected:.2f}")
