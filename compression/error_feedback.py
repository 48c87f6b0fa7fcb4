"""Codecs for gradients that are summed again and again: what a message left out goes with the next one.

With error feedback the sum of what was sent follows the sum of what was to be sent, however coarse the
codec: r' = (x + r) - deq(Q(x + r)). The residual r belongs to a key (the layer) and to one end alone, so
there is nothing to keep equal; it is part of the checkpoint. Top-k sends the largest magnitudes with
their places. Knows no replicas: worker and owner of a shard have an instance each.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compression import kernels, kernels_cpu, kernels_topk
from compression.grid import CodecError, NotFinite, packed_bytes
from compression.payload import (
    Encoded,
    Key,
    Seeds,
    aligned,
    dtype_of,
    name_of,
    parts,
    require_bytes,
    to_bytes,
)
from compression.spec import FeedbackSpec, TopKSpec


class FeedbackCodec:
    """k bits or the k largest, with a residual for every key."""

    def __init__(self, spec: FeedbackSpec | TopKSpec, seed: int = 0) -> None:
        self.spec = spec
        self._inner = _TopK(spec, seed) if isinstance(spec, TopKSpec) else _KBit(spec, seed)
        self._residuals: dict[Key, Tensor] = {}

    def encode(self, x: Tensor, key: Key) -> Encoded:
        name, shape = name_of(x, floats=True), tuple(x.shape)
        owed = self._residuals.pop(key, None)  # what failed half way is owed no more
        if owed is None or owed.shape != x.shape:
            owed = torch.zeros(shape, device=x.device)
        payload, self._residuals[key] = self._inner.encode(x.detach(), owed.to(x.device))
        return Encoded(payload, name, shape, self.spec.name)

    def decode(self, encoded: Encoded, key: Key) -> Tensor:
        del key
        dtype = dtype_of(encoded, self.spec.name, floats=True)
        require_bytes(encoded, self.spec.wire_bytes(encoded.shape, dtype.itemsize))
        return self._inner.decode(encoded).to(dtype)

    def echo(self, encoded: Encoded, key: Key) -> Tensor:
        return self.decode(encoded, key)

    def reset(self) -> None:
        self._residuals.clear()

    @property
    def residuals(self) -> Mapping[Key, Tensor]:
        """What has not been sent yet, by key."""
        return self._residuals

    def restore(self, key: Key, residual: Tensor) -> None:
        """Go on with a residual of a checkpoint."""
        self._residuals[key] = residual.clone()


class _KBit:
    """The k-bit quantizer over whatever shape comes."""

    def __init__(self, spec: FeedbackSpec, seed: int) -> None:
        self._grid, self._seeds = spec.grid, Seeds(seed)

    def encode(self, x: Tensor, owed: Tensor) -> tuple[tuple[memoryview, ...], Tensor]:
        """(payload of x + owed, what is owed afterwards); `owed` may be written to."""
        seed, threads = self._seeds.next(), torch.get_num_threads()
        if x.device.type == "cpu":
            scales, codes = kernels_cpu.encode_owed(x, owed, self._grid, seed, threads)
            return (to_bytes(codes), to_bytes(scales)), owed
        value, twin = x.float() + owed, kernels.twin_of(x.device)
        scales, codes = twin.quantize(value, self._grid, seed, threads)
        shape, kind = tuple(x.shape), torch.float32
        read = twin.dequantize(scales, codes, shape, self._grid, kind, threads)
        return (to_bytes(codes.cpu()), to_bytes(scales.cpu())), value - read

    def decode(self, encoded: Encoded) -> Tensor:
        n_codes = packed_bytes(torch.Size(encoded.shape).numel(), self._grid.bits)
        codes, scales = parts(encoded, [n_codes, encoded.n_bytes - n_codes])
        twin, threads = kernels.twin_of(codes.device), torch.get_num_threads()
        s = aligned(scales).view(torch.int16)
        return twin.dequantize(s, codes, encoded.shape, self._grid, torch.float32, threads)


class _TopK:
    """The largest magnitudes: their places (int32), and the values in float32 or in few bits."""

    def __init__(self, spec: TopKSpec, seed: int) -> None:
        self._spec, self._seeds = spec, Seeds(seed)

    def encode(self, x: Tensor, owed: Tensor) -> tuple[tuple[memoryview, ...], Tensor]:
        """(payload of x + owed, what is owed afterwards); `owed` may be written to."""
        places, value = self._largest(x, owed)
        chosen, indices = value[places], to_bytes(places.to(torch.int32).cpu())
        grid = self._spec.grid
        if grid is None:
            value[places] = 0.0
            return (indices, to_bytes(chosen.cpu())), value.view(x.shape)
        twin, threads = kernels.twin_of(x.device), torch.get_num_threads()
        scales, codes = twin.quantize(chosen, grid, self._seeds.next(), threads)
        value[places] = chosen - twin.dequantize(
            scales, codes, tuple(chosen.shape), grid, torch.float32, threads
        )
        return (indices, to_bytes(codes.cpu()), to_bytes(scales.cpu())), value.view(x.shape)

    def _largest(self, x: Tensor, owed: Tensor) -> tuple[Tensor, Tensor]:
        """(places of the largest magnitudes, x + owed laid flat)."""
        k = self._spec.k(x.numel())
        if x.device.type == "cpu":
            places = kernels_topk.take_largest(x, owed, k, torch.get_num_threads())
            return places.long(), owed.view(-1)
        value = (x.float() + owed).flatten()
        if not bool(torch.isfinite(value).all()):
            raise NotFinite("found a value that is infinite or no number; required finite ones")
        return value.abs().topk(k, sorted=False).indices.sort().values, value

    def decode(self, encoded: Encoded) -> Tensor:
        n, grid = torch.Size(encoded.shape).numel(), self._spec.grid
        k = self._spec.k(n)
        if grid is None:
            indices, values = parts(encoded, [4 * k, 4 * k])
            chosen = aligned(values).view(torch.float32)
        else:
            n_codes = packed_bytes(k, grid.bits)
            indices, codes, scales = parts(encoded, [4 * k, n_codes, encoded.n_bytes - 4 * k - n_codes])
            twin, threads = kernels.twin_of(codes.device), torch.get_num_threads()
            s = aligned(scales).view(torch.int16)
            chosen = twin.dequantize(s, codes, (k,), grid, torch.float32, threads)
        places = aligned(indices).view(torch.int32).long()
        if k and (int(places.min()) < 0 or int(places.max()) >= n):
            found = f"{int(places.min())} to {int(places.max())}"
            raise CodecError(f"found places from {found}; required 0 to {n - 1}")
        dense = torch.zeros(n)
        dense[places] = chosen
        return dense.view(encoded.shape)
