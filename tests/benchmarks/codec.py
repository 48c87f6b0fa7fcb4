"""How fast codecs are: GB/s of input, against memcpy of the same bytes in the same process.

    python -m tests.benchmarks.codec [--quick] [--threads N] [--out FILE] [--others-python PATH]

Copy, encode and decode take turns, and the best round of each counts: whatever else the machine does
makes a round slower, never faster. With one thread the processor's seconds count, which others hardly change;
with more it is the clock's. `memcpy` is one core's, whatever the number of threads. Freed memory
stays in the process, as in a worker (`worker.allocator`): else decoding new tensors costs page faults, not
arithmetic. Beside stand
the reference in plain torch (`quantize.py`), what one would write in torch for 8 bits, and the codecs of
hivemind and bitsandbytes, as far as another Python has them (they want other versions than ours), each
against memcpy in its own process. Goals, of the k-bit quantizer with group scales and rounding
to the nearest, at every width: encode at least 0.5 of memcpy, decode at least 0.7. The last line is JSON;
the exit code is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compression import quantize
from compression.codec import make_codec
from compression.payload import Encoded
from compression.spec import KBitSpec, codec_spec
from tests.benchmarks.command import ended
from worker.allocator import keep_freed_memory

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
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start_s = clock()
    work()
    return clock() - start_s


def torch_encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """8 bits in groups of 64, as one would write it in torch without kernels."""
    groups = x.view(-1, 64)
    scales = groups.abs().amax(1, keepdim=True) / 127
    return (groups / scales).round().to(torch.int8), scales


def torch_decode(codes: torch.Tensor, scales: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return (codes * scales).view(shape)


def others(python: str, threads: int, rounds: int, shape: Sequence[int]) -> tuple[list[str], dict[str, Any]]:
    """Lines and figures of other libraries' codecs, timed by another Python; none without one."""
    if not python:
        return ["other libraries' codecs: not in this Python; give --others-python"], {}
    script = Path(__file__).with_name("codec_others.py")
    words = [python, str(script), *map(str, (threads, rounds, *shape))]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{python}: {ran.stderr.strip()}")
    found = json.loads(ran.stdout.splitlines()[-1])
    lines, figures, n_bytes = [], {}, 4 * prod(shape)
    for name, row in found["rows"].items():
        encode, decode = found["memcpy_s"] / row["encode_s"], found["memcpy_s"] / row["decode_s"]
        figures[name] = {"encode": round(encode, 3), "decode": round(decode, 3)}
        lines.append(line(name, row["bits"], n_bytes, (row["encode_s"], row["decode_s"]), (encode, decode)))
    lines += [f"{name:34} {why}" for name, why in found["failed"].items()]
    return lines or ["other libraries' codecs: that Python has none"], figures


def line(
    name: str, bits: float, n_bytes: int, times_s: tuple[float, float], of_memcpy: tuple[float, float]
) -> str:
    rates = "".join(
        f"{n_bytes / s / 1e9:12.2f}{share:10.2f}" for s, share in zip(times_s, of_memcpy, strict=True)
    )
    return f"{name:34}{bits:11.2f}{rates}"


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
        made: list[Encoded] = []
        encode_s = seconds(lambda: made.append(self.sender.encode(self.x, self.key)))
        encoded = made[0]
        parts = tuple(memoryview(bytearray(p)) for p in encoded.payload)
        wire = Encoded(parts, encoded.dtype, encoded.shape, encoded.codec)
        decode_s = seconds(lambda: self.receiver.decode(wire, self.key))
        if self.payload_bytes:
            self.encode_s, self.decode_s = min(self.encode_s, encode_s), min(self.decode_s, decode_s)
        self.payload_bytes = encoded.n_bytes


def benchmark(quick: bool, threads: int, others_python: str) -> tuple[list[str], bool]:
    torch.set_num_threads(threads)
    keep_freed_memory()
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
    plain = quantize.quantize(x, grid)
    reference_s = (
        min(seconds(lambda: quantize.quantize(x, grid)) for _ in range(2)),
        min(seconds(lambda: quantize.dequantize(*plain, tuple(x.shape), grid, x.dtype)) for _ in range(2)),
    )
    written = torch_encode(x)
    torch_s = (
        min(seconds(lambda: torch_encode(x)) for _ in range(rounds)),
        min(seconds(lambda: torch_decode(*written, x.shape)) for _ in range(rounds)),
    )
    other_lines, other_figures = others(others_python, threads, 3 if quick else 10, x.shape)
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
        bits = 8 * row.payload_bytes / x.numel()
        lines.append(line(row.name, bits, n_bytes, (row.encode_s, row.decode_s), (encode, decode)))
        if judged(row.name):
            for what, found, goal in (("encode", encode, ENCODE_GOAL), ("decode", decode, DECODE_GOAL)):
                if found < goal:
                    missed.append(f"{row.name} {what} {found:.2f} of memcpy, required at least {goal}")
    for name, bits, times_s in (
        ("plain torch, 4 bits (reference)", grid.bits + 0.25, reference_s),
        ("plain torch, 8 bits to int8", 8.5, torch_s),
    ):
        share = (memcpy_s / times_s[0], memcpy_s / times_s[1])
        figures[name] = {"encode": round(share[0], 3), "decode": round(share[1], 3)}
        lines.append(line(name, bits, n_bytes, times_s, share))
    lines += other_lines
    figures |= other_figures
    lines += [f"missed: {m}" for m in missed] or ["all goals reached"]
    lines.append(json.dumps({"benchmark": "codec", "passed": not missed, "of_memcpy": figures}))
    return lines, bool(missed)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a smaller tensor, fewer rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--others-python", default="", help="a Python that has torch and hivemind or bitsandbytes"
    )
    parser.add_argument("--out", type=Path, help="also write what is printed to this file")
    options = parser.parse_args(arguments)
    lines, missed = benchmark(options.quick, options.threads, options.others_python)
    return ended(lines, missed, options.out)


if __name__ == "__main__":
    sys.exit(main())
