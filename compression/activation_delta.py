"""AC-SGD (Wang et al., NeurIPS 2022): of a sample that came before, only its activation's change travels.

Both ends hold a message buffer m for every sample. On its first visit a sample is sent as it is (or in
8 bits) and m becomes that; later Q(a - m) is sent, both ends set m to m + deq(Q(a - m)), and the receiver
takes m for the activation. The error so shrinks from visit to visit while the model stands still.

The two ends cannot drift apart unnoticed. A buffer's version is a hash of all that ever went into it;
a change names the version that it changes, and every `check_every` visits carries a checksum of the
buffer as it must be afterwards. A receiver whose buffer does not fit raises Drifted and takes nothing;
the sender then sends the samples as first visits (`encode_first`). A tensor on a GPU is quantized there:
its samples' buffers go up and come back. Buffers, payloads and what is decoded lie on the CPU. Knows no
network.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from compression import kernels, kernels_cpu
from compression.delta_frame import CHANGE, EIGHT, RAW, Sample, join, split
from compression.grid import BLOCK, CodecError, Grid, NotFinite, packed_bytes
from compression.payload import (
    DTYPES,
    Encoded,
    Key,
    Seeds,
    aligned,
    dtype_of,
    name_of,
)
from compression.sample_buffers import Remembered, SampleBuffers
from compression.spec import AcsgdSpec


class Drifted(CodecError):
    """What an end remembers is not what the other sent a change to: the tensor must come whole."""


class ActivationDeltaCodec:
    """One end. Tensors are (samples, …), the key their ids; both ends must see one sample at a time."""

    def __init__(self, spec: AcsgdSpec, seed: int = 0, directory: Path | None = None) -> None:
        self.spec = spec
        self._grid, self._first_grid = spec.grid, Grid(8, "group", spec.group)
        self._buffers = SampleBuffers(
            spec.stored, spec.budget_bytes, directory if spec.memory == "disk" else None
        )
        self._seeds = Seeds(seed)
        self._lock = threading.RLock()
        """Encoding a step's tensors and sending one again may come from two threads."""
        self._made: dict[int, Tensor] = {}
        """What both ends make of the samples of the last tensor."""

    # ---- the sending end

    def encode(self, x: Tensor, key: Key) -> Encoded:
        return self._encode(x, key, whole=False)

    def encode_first(self, x: Tensor, key: Key) -> Encoded:
        """As on a first visit, whatever is remembered."""
        return self._encode(x, key, whole=True)

    def _encode(self, x: Tensor, key: Key, whole: bool) -> Encoded:
        dtype, shape = name_of(x, floats=True), tuple(x.shape)
        _require_key(shape, key)
        fused, device = kernels.fused_of(x.device)
        x = x.detach().to(device)
        with self._lock:
            self._buffers.begin(key, shape[1:])
            if not whole:  # else the thread that encodes may still want to know what became of its tensor
                self._made.clear()
            try:
                if not whole and self._goes_at_once(key):
                    samples = self._send_at_once(x, key, fused)
                else:
                    each = zip(key, x.unbind(), strict=True)
                    samples = [self._send(i, v, whole, key, fused) for i, v in each]
            except NotFinite:
                for sample in key:
                    self._buffers.forget(sample)  # some may hold what is not finite
                raise
        return join(samples, dtype, shape, self.spec.name)

    def _send(self, sample: int, value: Tensor, whole: bool, key: Key, fused: kernels.Fused) -> Sample:
        found = self._buffers.take(sample, key)
        if whole or not found.visits:
            mode = EIGHT if self.spec.first == 8 else RAW
            body = self._first_body(value, fused)
            self._fill(sample, found, mode, body, value.dtype)
            return Sample(mode, 0, 0, body)
        before = found.version
        memory = self._buffers.read(found).to(value.device)
        scales, codes = kernels_cpu.room(tuple(value.shape), self._grid, value.device)
        threads = torch.get_num_threads()
        fused.encode_into(value, scales, codes, self._grid, self._seeds.next(), threads, memory)
        body, memory = torch.cat((codes, scales.view(torch.uint8))).cpu(), memory.cpu()
        self._buffers.write(found, memory)
        self._remember(sample, found, memory, body)
        return Sample(CHANGE, before, self._due_checksum(found), body)

    def _due_checksum(self, found: Remembered) -> int:
        return self._buffers.checksum(found) if found.visits % self.spec.check_every == 0 else 0

    def _goes_at_once(self, key: Key) -> bool:
        """Whether all samples come again, and one pass over them gives the bits that a pass each would: no
        block holds values of two, and nothing is drawn."""
        n, grid = torch.Size(self._buffers.shape).numel(), self._grid
        return (
            self.spec.store == 16
            and grid.scale == "group"
            and not grid.stochastic
            and n % BLOCK == BLOCK % grid.group == 0
            and all(self._version(i) for i in key)
        )

    def _send_at_once(self, x: Tensor, key: Key, fused: kernels.Fused) -> list[Sample]:
        found = [self._buffers.take(i, key) for i in key]
        memory, threads = self._buffers.gather(found).to(x.device), torch.get_num_threads()
        scales, codes = kernels_cpu.room(tuple(x.shape), self._grid, x.device)
        fused.encode_into(x, scales, codes, self._grid, 0, threads, memory)
        bodies = torch.cat((codes.view(len(key), -1), scales.view(torch.uint8).view(len(key), -1)), 1).cpu()
        memory = memory.cpu()
        self._buffers.scatter(found, memory)
        samples = []
        for sample, f, value, body in zip(key, found, memory.unbind(), bodies.unbind(), strict=True):
            before = f.version
            self._remember(sample, f, value, body)
            samples.append(Sample(CHANGE, before, self._due_checksum(f), body))
        return samples

    def _first_body(self, value: Tensor, fused: kernels.Fused) -> Tensor:
        if self.spec.first == 8:
            scales, codes = fused.quantize(value, self._first_grid, 0, torch.get_num_threads())
            return torch.cat((codes, scales.view(torch.uint8))).cpu()
        if not bool(torch.isfinite(value).all()):
            raise NotFinite("found a value that is infinite or no number; required finite ones")
        return value.cpu().contiguous().flatten().view(torch.uint8)

    # ---- the receiving end

    def decode(self, encoded: Encoded, key: Key) -> Tensor:
        """Raises Drifted before anything is changed, or having forgotten what turned out to be wrong."""
        dtype, shape = dtype_of(encoded, self.spec.name, floats=True), encoded.shape
        _require_key(shape, key)
        with self._lock:
            self._buffers.begin(key, shape[1:])
            samples = self._split(encoded, dtype)
            self._require_known(samples, key)
            self._made.clear()
            if all(s.mode == CHANGE for s in samples) and self._goes_at_once(key):
                self._take_at_once(samples, key)
            else:
                for sample, s in zip(key, samples, strict=True):
                    self._take(sample, s, dtype, key)
            wrong = [
                i for i, s in zip(key, samples, strict=True) if s.checksum and s.checksum != self._checksum(i)
            ]
            for sample in wrong:
                self._buffers.forget(sample)
            if wrong:
                raise Drifted(f"samples {wrong}: found another checksum of the buffer than the sender's")
            return self._stacked(key, shape, dtype)

    def _take(self, sample: int, s: Sample, dtype: torch.dtype, key: Key) -> None:
        found = self._buffers.take(sample, key)
        if s.mode != CHANGE:
            self._fill(sample, found, s.mode, s.body, dtype)
            return
        n_codes, memory = self._codes(self._grid), self._buffers.read(found)
        scales = aligned(s.body[n_codes:]).view(torch.int16)
        kernels_cpu.decode_into(
            memory, scales, s.body[:n_codes], self._grid, torch.get_num_threads(), add=True
        )
        self._buffers.write(found, memory)
        self._remember(sample, found, memory, s.body)

    def _take_at_once(self, samples: Sequence[Sample], key: Key) -> None:
        found = [self._buffers.take(i, key) for i in key]
        memory, bodies = self._buffers.gather(found), torch.stack([s.body for s in samples])
        n_codes = self._codes(self._grid)
        codes, scales = bodies[:, :n_codes].flatten(), bodies[:, n_codes:].contiguous().view(torch.int16)
        kernels_cpu.decode_into(memory, scales.view(-1), codes, self._grid, torch.get_num_threads(), add=True)
        self._buffers.scatter(found, memory)
        for sample, f, value, s in zip(key, found, memory.unbind(), samples, strict=True):
            self._remember(sample, f, value, s.body)

    def _checksum(self, sample: int) -> int:
        found = self._buffers.find(sample)
        return self._buffers.checksum(found) if found is not None else 0

    def _split(self, encoded: Encoded, dtype: torch.dtype) -> list[Sample]:
        each = encoded.shape[1:]
        sizes = {
            RAW: torch.Size(each).numel() * dtype.itemsize,
            EIGHT: self._first_grid.payload_bytes(each),
            CHANGE: self._grid.payload_bytes(each),
        }
        return split(encoded, sizes)

    def _require_known(self, samples: Sequence[Sample], key: Key) -> None:
        wrong = [
            sample
            for sample, s in zip(key, samples, strict=True)
            if s.mode == CHANGE and self._version(sample) != s.version
        ]
        if wrong:
            held = [self._version(sample) for sample in wrong]
            raise Drifted(f"samples {wrong}: found changes to other versions than {held} here (0: none)")

    def _version(self, sample: int) -> int:
        found = self._buffers.find(sample)
        return found.version if found is not None and found.visits else 0

    # ---- both ends

    def _fill(self, sample: int, found: Remembered, mode: int, body: Tensor, dtype: torch.dtype) -> None:
        """A first visit: the buffer becomes what `body` holds."""
        shape = self._buffers.shape
        if mode == RAW:
            value = aligned(body).view(dtype).view(shape)
        else:
            n_codes, grid = self._codes(self._first_grid), self._first_grid
            scales = aligned(body[n_codes:]).view(torch.int16)
            threads = torch.get_num_threads()
            value = kernels_cpu.dequantize(scales, body[:n_codes], shape, grid, torch.float32, threads)
        found.version = found.visits = 0
        self._buffers.write(found, value)
        self._remember(sample, found, value, body)

    def _remember(self, sample: int, found: Remembered, value: Tensor, body: Tensor) -> None:
        """`value` is what both ends now hold, `body` what brought it about."""
        self._made[sample] = value
        found.version = crc32(body.numpy().data, found.version) or 1
        found.visits += 1

    def _codes(self, grid: Grid) -> int:
        return packed_bytes(torch.Size(self._buffers.shape).numel(), grid.bits)

    def _stacked(self, key: Key, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        stacked = torch.empty(shape, dtype=dtype)
        for into, sample in zip(stacked, key, strict=True):
            into.copy_(self._made[sample])
        return stacked

    def echo(self, encoded: Encoded, key: Key) -> Tensor:
        with self._lock:
            return self._stacked(key, encoded.shape, DTYPES[encoded.dtype])

    def reset(self) -> None:
        with self._lock:
            self._buffers.clear()

    def prefetch(self, samples: Sequence[int]) -> None:
        """These samples come soon."""
        with self._lock:
            self._buffers.prefetch(samples)

    @property
    def remembered(self) -> dict[int, tuple[int, int]]:
        """sample -> (version, checksum), to compare the two ends by."""
        with self._lock:
            return {i: (self._version(i), self._checksum(i)) for i in self._buffers.samples}


def _require_key(shape: tuple[int, ...], key: Key) -> None:
    if len(shape) < 2 or len(key) != shape[0]:
        raise CodecError(
            f"found {len(key)} sample ids for a tensor of shape {shape}; required one a sample (first axis)"
        )
