"""Compiles every Triton kernel for GPUs that are not here, down to their machine code; prints a line each.

Run as a program, without TRITON_INTERPRET: Triton decides when it is imported whether it interprets.
"""

from __future__ import annotations

from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from compression import kernels_triton
from compression.grid import BLOCK
from worker.kernels import (
    adamw_triton,
    flash_triton,
    gates_triton,
    grouped_triton,
    norm_triton,
    rotary_triton,
)

Compiled = tuple[Any, dict[str, str], dict[str, Any]]
"""A kernel, the types of its arguments, its constants."""

_BF16 = (
    "q", "k", "v", "y", "dy", "dq", "dk", "dv", "x", "dx", "added", "weight", "bias", "total", "dtotal",
    "gate_up", "cos", "sin",
)  # fmt: skip
_FP32 = ("logs", "rowsum", "means", "inverses", "dweights", "dbiases")


def of(kernel: Any, types: dict[str, str], **constants: Any) -> Compiled:
    """Arguments that have no type in `types` are sizes, int32."""
    names = kernel.arg_names
    return kernel, {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}, constants


_MODEL = {
    **dict.fromkeys(_BF16, "*bf16"),
    **dict.fromkeys(_FP32, "*fp32"),
    "documents": "*i32",
    "scale": "fp32",
    "eps": "fp32",
}


def attention() -> list[Compiled]:
    """Also compiled for a GPU whose matrix units are given their work otherwise."""
    return [
        of(kernel, _MODEL, WIDTH=64, TILE=64, CAUSAL=True, APART=apart)
        for kernel in (flash_triton._forward, flash_triton._backward_q, flash_triton._backward_kv)
        for apart in (False, True)
    ]


def experts() -> list[Compiled]:
    """Grouped products of bf16 rows with float32 matrices, as in mixed precision; strides are a constant
    where they are 1."""
    tile = {"ROWS": grouped_triton.ROWS, "COLUMNS": grouped_triton.COLUMNS, "DEPTH": grouped_triton.DEPTH}
    places = dict.fromkeys(
        ("at", "left_at", "right_at", "groups", "firsts", "ends", "counts", "taken"), "*i64"
    )
    rows = dict.fromkeys(("x", "y", "left", "right", "weights"), "*bf16")
    types = {**places, **rows, "matrices": "*fp32", "sums": "*fp32"}
    return [
        *(
            of(grouped_triton._product, types, **tile, GATHER=gather, **{stride: 1})
            for gather, stride in ((True, "of_input"), (False, "of_output"))
        ),
        *(
            of(grouped_triton._outer, types, **tile, LEFT_AT=left, RIGHT_AT=not left)
            for left in (True, False)
        ),
        of(grouped_triton._collect, types | {"sums": "*bf16"}, WEIGHED=True, WIDTH=grouped_triton.WIDTH),
    ]


def kernels() -> list[Compiled]:
    codec = {
        "x_at": "*fp32", "memory_at": "*fp16", "scales_at": "*i16", "packed_at": "*u8", "largest_at": "*i32",
        "half": "fp32", "inverse_half": "fp32", "step_at": "*fp32", "y_at": "*fp16", "n": "i64",
    }  # fmt: skip
    around = [
        of(kernel, _MODEL, LAYER=layer, BLOCK=1024)
        for kernel in (norm_triton._forward, norm_triton._backward)
        for layer in (True, False)
    ]
    gates = [
        of(kernel, _MODEL, TILE=1024)
        for kernel in (
            gates_triton._swiglu_forward,
            gates_triton._swiglu_backward,
            gates_triton._gelu_forward,
            gates_triton._gelu_backward,
        )
    ]
    turns = [
        of(rotary_triton._kernel, _MODEL, HALF=40, BLOCK=64, TILE=16, BACK=back) for back in (True, False)
    ]
    rates = ("kept", "beta1", "beta2", "new1", "new2", "step_size", "root_of_square", "eps")
    shard = dict.fromkeys(("weight", "gradient", "mean", "square"), "*fp32") | dict.fromkeys(rates, "fp32")
    adamw = [of(adamw_triton._step, shard, TILE=adamw_triton.TILE)]
    grouped = {"BITS": 3, "STOCHASTIC": True, "FUSED": True, "MEMORY": True, "GROUP": 128}
    # A divisor of 1 is a constant to Triton: each channel has its scale.
    channels = {"BITS": 8, "STOCHASTIC": False, "FUSED": False, "MEMORY": False, "GROUP": 1, "divisor": 1}
    encode = [of(kernels_triton._encode, codec, SIZE=BLOCK, **options) for options in (grouped, channels)]
    decode = [
        of(kernels_triton._decode, codec, BITS=3, BRAIN=False, ADD=add, SIZE=BLOCK) for add in (True, False)
    ]
    return [*attention(), *experts(), *around, *gates, *turns, *adamw, *encode, *decode]


def main() -> None:
    for capability, some in ((80, kernels()), (90, [*attention(), *experts()])):
        for kernel, types, constants in some:
            source = ASTSource(fn=kernel, signature=types, constexprs=constants)
            made = compile(source, target=GPUTarget("cuda", capability, 32))
            name = f"{kernel.fn.__module__}.{kernel.fn.__name__}"
            print(capability, name, made.metadata.shared, len(made.asm["cubin"]))


if __name__ == "__main__":
    main()
