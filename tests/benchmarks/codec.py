"""How fast codecs are: GB/s of input, against memcpy of the same bytes in the same process.

    python -m tests.benchmarks.codec [--quick] [--threads N] [--out FILE]

Copy, encode and decode take turns, and the best round of each counts: whatever else the machine does
makes a round slower, never faster. `memcpy` is one core's, whatever the number of threads; the reference
in plain torch (`quantize.py`) stands beside. Goals, of the k-bit quantizer with group scales and rounding
to the nearest, at every width: encode at least 0.5 of memcpy, decode at least 0.7. The last line is JSON;
the exit code is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from compression import quantize
from compression.codec import make_codec
from compression.payload import Encoded
from compression.spec import KBitSpec, codec_spec

ENCODE_GOAL, DECODE_GOAL = 0.5, 0.7
SHAPE = (4, 1024, 2048)
"""Of an activation: 32 MB, more than the caches hold."""
QUICK_SHAPE = (4, 1024, 1024)

NAMES = (
    "identity",
    "fp16",
    *(f"kbit:bits={bits}" if bits != 8 else "kbit" for bits in range(1, 9)),
    "kbit:rounding=stochastic",
    "kbit:bits=4,rounding=stochastic",
    "kbit:bits=4,group=32",
    "kbit:bits=4,scale=channel",
    "kbit:bits=4,scale=tensor",
    "tile",
    "acsgd",
    "acsgd:bits=2,store=8",
    "feedback",
    "topk:per_mille=10",
)


def judged(name: str) -> bool:
    spec = codec_spec(name)
    return isinstance(spec, KBitSpec) and spec == KBitSpec(spec.bits)


def seconds(work: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


class Row:
    """One codec and its best times."""

    def __init__(self, name: str, x: torch.Tensor) -> None:
        self.name, self.x = name, x
        self.sender, self.receiver = make_codec(name), make_codec(name)
        self.key = tuple(range(x.shape[0]))
        self.encode_s = self.decode_s = float("inf")
        self.payload_bytes = 0

    def round(self) -> None:
        """One encode and one decode of what came; the first are not counted: they compile, or are whole."""
        start_s = time.perf_counter()
        encoded = self.sender.encode(self.x, self.key)
        encode_s = time.perf_counter() - start_s
        parts = tuple(memoryview(bytearray(p)) for p in encoded.payload)
        wire = Encoded(parts, encoded.dtype, encoded.shape, encoded.codec)
        decode_s = seconds(lambda: self.receiver.decode(wire, self.key))
        if self.payload_bytes:
            self.encode_s, self.decode_s = min(self.encode_s, encode_s), min(self.decode_s, decode_s)
        self.payload_bytes = encoded.n_bytes


def benchmark(quick: bool, threads: int) -> tuple[list[str], bool]:
    torch.set_num_threads(threads)
    x = torch.randn(QUICK_SHAPE if quick else SHAPE, generator=torch.Generator().manual_seed(0))
    n_bytes, rounds = x.numel() * 4, 15 if quick else 30
    source, target = x.numpy(), np.empty_like(x.numpy())
    rows = [Row(name, x) for name in NAMES]
    memcpy_s = float("inf")
    for _ in range(rounds):
        for row in rows:
            memcpy_s = min(memcpy_s, seconds(lambda: np.copyto(target, source)))
            row.round()
    grid = KBitSpec(4).grid
    reference_s = min(seconds(lambda: quantize.quantize(x, grid)) for _ in range(2))
    lines = [
        f"{n_bytes / 1e6:.0f} MB of float32, {threads} of {os.cpu_count()} threads, best of {rounds} rounds;"
        f" memcpy on one core {n_bytes / memcpy_s / 1e9:.2f} GB/s;"
        f" load {os.getloadavg()[0]:.1f}",
        f"{'':34}{'bits/value':>11}{'encode GB/s':>12}{'of memcpy':>10}{'decode GB/s':>12}{'of memcpy':>10}",
    ]
    missed, figures = [], {}
    for row in rows:
        encode, decode = memcpy_s / row.encode_s, memcpy_s / row.decode_s
        figures[row.name] = {"encode": round(encode, 3), "decode": round(decode, 3)}
        lines.append(
            f"{row.name:34}{8 * row.payload_bytes / x.numel():11.2f}"
            f"{n_bytes / row.encode_s / 1e9:12.2f}{encode:10.2f}"
            f"{n_bytes / row.decode_s / 1e9:12.2f}{decode:10.2f}"
        )
        if judged(row.name):
            for what, found, goal in (("encode", encode, ENCODE_GOAL), ("decode", decode, DECODE_GOAL)):
                if found < goal:
                    missed.append(f"{row.name} {what} {found:.2f} of memcpy, required at least {goal}")
    plain = f"{n_bytes / reference_s / 1e9:12.2f}{memcpy_s / reference_s:10.2f}"
    lines.append(f"{'plain torch, 4 bits (reference)':34}{'':11}{plain}")
    lines += [f"missed: {m}" for m in missed] or ["all goals reached"]
    lines.append(json.dumps({"benchmark": "codec", "passed": not missed, "of_memcpy": figures}))
    return lines, bool(missed)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a smaller tensor, fewer rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="also write what is printed to this file")
    options = parser.parse_args(arguments)
    lines, missed = benchmark(options.quick, options.threads)
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
