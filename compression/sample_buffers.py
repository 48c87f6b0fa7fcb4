"""What one end of a link remembers of each sample: a tensor, a version, and how often it came.

Slots lie in memory or in a file that is mapped into it, as float16 or quantized. Beyond the budget the
sample that was used longest ago is forgotten; both ends see the same samples in the same order, so both
forget the same one. Knows no codec; refuses to know what crosses the link.
"""

from __future__ import annotations

import mmap
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from compression import kernels_cpu
from compression.boundary_specs import slot_bytes
from compression.grid import SCALE_BYTES, CodecError, Grid, packed_bytes

CHUNK_SLOTS = 64
"""Slots that are taken from the system at a time."""


@dataclass(slots=True)
class Remembered:
    """One sample: where it lies, which history it has (`activation_delta.next_version`), its visits."""

    slot: int
    version: int
    visits: int


class SampleBuffers:
    """Tensors of one shape by sample id, in float16 or on `grid`. `directory` None: in memory."""

    def __init__(self, grid: Grid | None, budget_bytes: int, directory: Path | None = None) -> None:
        self._grid = grid
        self._budget_bytes, self._directory = budget_bytes, directory
        self._shape: tuple[int, ...] = ()
        self._samples: OrderedDict[int, Remembered] = OrderedDict()
        """Least recently used first."""
        self._free: list[int] = []
        self._chunks: list[Tensor] = []
        self._maps: list[mmap.mmap] = []
        self.evicted = 0
        """Samples that were forgotten because the budget was full."""

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def samples(self) -> tuple[int, ...]:
        """Least recently used first."""
        return tuple(self._samples)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample's tensor."""
        return self._shape

    def find(self, sample: int) -> Remembered | None:
        return self._samples.get(sample)

    def begin(self, samples: Sequence[int], shape: tuple[int, ...]) -> None:
        """Tensors of `shape` are about to come. Others than before: everything is forgotten.

        Raises CodecError when the budget does not hold `samples` at once.
        """
        if shape != self._shape:
            self.clear()
            self._shape = shape
        if len(set(samples)) != len(samples):
            raise CodecError(f"found the samples {tuple(samples)}; required each of them once in a tensor")
        room = self._budget_bytes // max(1, self.slot_bytes)
        if room < len(samples):
            raise CodecError(
                f"found a buffer budget of {self._budget_bytes} bytes, room for {room} samples of"
                f" {self.slot_bytes} bytes; required room for a micro-batch's {len(samples)}: raise budget_mb"
            )

    @property
    def slot_bytes(self) -> int:
        return slot_bytes(self._shape, self._grid)

    def take(self, sample: int, keep: Sequence[int]) -> Remembered:
        """The sample's slot, most recently used from now on; for a new one another than `keep` may go."""
        found = self._samples.get(sample)
        if found is None:
            found = self._samples[sample] = Remembered(self._new_slot(keep), 0, 0)
        self._samples.move_to_end(sample)
        return found

    def read(self, found: Remembered) -> Tensor:
        """What is remembered: float16 (the memory itself), or float32 decoded from it."""
        data = self._slot(found.slot)
        if self._grid is None:
            return data.view(torch.float16).view(self._shape)
        n_codes = packed_bytes(torch.Size(self._shape).numel(), self._grid.bits)
        scales = (
            data[n_codes : n_codes + SCALE_BYTES * self._grid.n_scales(self._shape)].clone().view(torch.int16)
        )
        shape, threads = self._shape, torch.get_num_threads()
        return kernels_cpu.dequantize(scales, data[:n_codes], shape, self._grid, torch.float32, threads)

    def write(self, found: Remembered, x: Tensor) -> None:
        """Remember `x` (float), as near as the slot can hold it; nothing to do for its own memory."""
        data = self._slot(found.slot)
        if self._grid is None:
            memory = data.view(torch.float16).view(self._shape)
            if x.data_ptr() != memory.data_ptr():
                memory.copy_(x.float().clamp(-65504, 65504))
            return
        n_codes = packed_bytes(x.numel(), self._grid.bits)
        scales = torch.empty(self._grid.n_scales(self._shape), dtype=torch.int16)
        kernels_cpu.encode_into(x, scales, data[:n_codes], self._grid, 0, torch.get_num_threads())
        data[n_codes : n_codes + SCALE_BYTES * scales.numel()] = scales.view(torch.uint8)

    def gather(self, found: Sequence[Remembered]) -> Tensor:
        """float16 (samples, …): a copy of what is remembered of them, where it is kept in float16."""
        together = torch.empty((len(found), *self._shape), dtype=torch.float16)
        for row, f in zip(together.view(len(found), -1), found, strict=True):
            row.copy_(self._slot(f.slot).view(torch.float16))
        return together

    def scatter(self, found: Sequence[Remembered], together: Tensor) -> None:
        """Inverse of `gather`."""
        for row, f in zip(together.view(len(found), -1), found, strict=True):
            self._slot(f.slot).view(torch.float16).copy_(row)

    def checksum(self, found: Remembered) -> int:
        """Of the slot's bytes; never 0."""
        return crc32(self._slot(found.slot).numpy().data) or 1

    def forget(self, sample: int) -> None:
        found = self._samples.pop(sample, None)
        if found is not None:
            self._free.append(found.slot)

    def clear(self) -> None:
        """Forget every sample and give the memory back."""
        self._samples.clear()
        self._free.clear()
        self._chunks.clear()
        self._maps.clear()  # closed with the last tensor that looks into them

    def prefetch(self, samples: Sequence[int]) -> None:
        """Ask the system to read the samples' pages soon, if they lie in a file. Returns at once."""
        page = mmap.PAGESIZE
        for sample in samples:
            found = self._samples.get(sample)
            if found is None or not self._maps:
                continue
            chunk, at = divmod(found.slot, CHUNK_SLOTS)
            start = at * self.slot_bytes // page * page
            length = min((at + 1) * self.slot_bytes, len(self._maps[chunk])) - start
            self._maps[chunk].madvise(mmap.MADV_WILLNEED, start, length)

    def _slot(self, slot: int) -> Tensor:
        chunk, at = divmod(slot, CHUNK_SLOTS)
        return self._chunks[chunk][at * self.slot_bytes : (at + 1) * self.slot_bytes]

    def _new_slot(self, keep: Sequence[int]) -> int:
        if (len(self._samples) + 1) * self.slot_bytes > self._budget_bytes:
            oldest = next(s for s in self._samples if s not in keep)
            self.forget(oldest)
            self.evicted += 1
        if not self._free:
            first = len(self._chunks) * CHUNK_SLOTS
            self._chunks.append(self._new_chunk(CHUNK_SLOTS * self.slot_bytes))
            self._free.extend(reversed(range(first, first + CHUNK_SLOTS)))
        return self._free.pop()

    def _new_chunk(self, n_bytes: int) -> Tensor:
        if self._directory is None:
            return torch.zeros(n_bytes, dtype=torch.uint8)
        self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._directory) as file:  # gone with the process, however it ends
            file.truncate(n_bytes)
            mapped = mmap.mmap(file.fileno(), n_bytes)
        self._maps.append(mapped)
        return torch.from_numpy(np.frombuffer(mapped, np.uint8))
