"""Other libraries' codecs, timed in a Python of their own; prints one JSON line for `codec.py`.

    python codec_others.py THREADS ROUNDS SIZE [SIZE ...]

Stands alone, because these libraries want other versions than ours: imports torch, and of hivemind and
bitsandbytes what is there. Copies and codecs take turns and the best round of each counts, as in `codec.py`.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Coder = tuple[Callable[[Tensor], Any], Callable[[Any], Any], Callable[[Any], int]]
"""encode, decode, bytes of what was encoded."""


def of_hivemind() -> dict[str, Coder]:
    try:
        from hivemind.compression import deserialize_torch_tensor, serialize_torch_tensor
        from hivemind.proto.runtime_pb2 import CompressionType
    except ImportError:
        return {}

    def coder(kind: str) -> Coder:
        code = getattr(CompressionType, kind)
        return (
            lambda x: serialize_torch_tensor(x, code),
            deserialize_torch_tensor,
            lambda e: len(e.buffer),
        )

    kinds = ("FLOAT16", "MEANSTD_16BIT", "UNIFORM_8BIT", "BLOCKWISE_8BIT")
    return {f"hivemind {kind.lower()}": coder(kind) for kind in kinds}


def of_bitsandbytes() -> dict[str, Coder]:
    try:
        from bitsandbytes import functional
    except ImportError:
        return {}

    def n_bytes(quantized: Tensor, state: Any) -> int:
        return int(quantized.numel() * quantized.element_size() + 4 * state.absmax.numel())

    return {
        "bitsandbytes blockwise 8 bits": (
            lambda x: functional.quantize_blockwise(x, blocksize=64),
            lambda e: functional.dequantize_blockwise(*e),
            lambda e: n_bytes(*e),
        ),
        "bitsandbytes nf4": (
            lambda x: functional.quantize_4bit(x, blocksize=64, quant_type="nf4"),
            lambda e: functional.dequantize_4bit(*e),
            lambda e: n_bytes(*e),
        ),
    }


def measure(threads: int, rounds: int, shape: tuple[int, ...]) -> dict[str, Any]:
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    target, memcpy_s, rows, failed = x.numpy().copy(), float("inf"), {}, {}
    for name, (encode, decode, n_bytes) in (of_hivemind() | of_bitsandbytes()).items():
        encode_s = decode_s = float("inf")
        try:
            for _ in range(rounds + 1):
                start_s = clock()
                target[...] = x.numpy()
                copied_s = clock()
                encoded = encode(x)
                encoded_s = clock()
                y = decode(encoded)
                decoded_s = clock()
                memcpy_s = min(memcpy_s, copied_s - start_s)
                encode_s = min(encode_s, encoded_s - copied_s)
                decode_s = min(decode_s, decoded_s - encoded_s)
        except Exception as error:  # a codec that wants what is not there is told of, not fatal
            failed[name] = str(error).splitlines()[0]
            continue
        off = float((y.float() - x).norm() / x.norm())
        bits = 8 * n_bytes(encoded) / x.numel()
        rows[name] = {"encode_s": encode_s, "decode_s": decode_s, "bits": bits, "error": off}
    return {"memcpy_s": memcpy_s, "rows": rows, "failed": failed}


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # hivemind's about torch's own quantized tensors
    threads, rounds, *shape = map(int, sys.argv[1:])
    print(json.dumps(measure(threads, rounds, tuple(shape))))
