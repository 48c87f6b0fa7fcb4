"""Single machine operations for compiled loops: bits and floats of a register, a hash, narrow conversions.

numba widens small integers to 64 bits, which keeps its loops from being vectorized; these do not.
Knows no arrays.
"""

# ruff: noqa: ARG001, ARG005
# mypy: disallow-untyped-decorators=False
# numba prescribes the arguments of these functions, used or not.
from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

I8, I16, I32, FLOAT, HALF = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType(), ir.HalfType()


@intrinsic
def scale_of(typing: Any, upper: Any) -> Any:
    """uint16 -> the float32 whose upper half it is."""

    def gen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.bitcast(b.shl(b.zext(args[0], I32), I32(16)), FLOAT)

    return types.float32(types.uint16), gen


@intrinsic
def upper_half(typing: Any, bits: Any) -> Any:
    """uint32 (the bits of a magnitude) -> uint16: its upper half, rounded up, within the scales there are.

    Below the smallest normal number it is 0, at most the largest finite one.
    """

    def gen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        up = b.lshr(b.add(args[0], I32(0xFFFF)), I32(16))
        up = b.select(b.icmp_unsigned("<", up, I32(0x0080)), I32(0), up)
        return b.trunc(b.select(b.icmp_unsigned(">", up, I32(0x7F7F)), I32(0x7F7F), up), I16)

    return types.uint16(types.uint32), gen


@intrinsic
def level_of(typing: Any, code: Any) -> Any:
    """uint8 -> float32."""
    return types.float32(types.uint8), lambda c, b, s, a: b.sitofp(b.zext(a[0], I32), FLOAT)


@intrinsic
def hash32(typing: Any, counter: Any) -> Any:
    """uint32 -> uint32: C. Wellons' lowbias32."""

    def gen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        h = args[0]
        h = b.xor(h, b.lshr(h, I32(16)))
        h = b.mul(h, I32(0x7FEB352D))
        h = b.xor(h, b.lshr(h, I32(15)))
        h = b.mul(h, I32(0x846CA68B))
        return b.xor(h, b.lshr(h, I32(16)))

    return types.uint32(types.uint32), gen


@intrinsic
def counter32(typing: Any, n: Any) -> Any:
    """int64 -> its lowest 32 bits."""
    return types.uint32(types.int64), lambda c, b, s, a: b.trunc(a[0], I32)


@intrinsic
def low_uniform(typing: Any, h: Any) -> Any:
    """uint32 -> (its lower half + 1/2) / 2^16."""
    return types.float32(types.uint32), lambda c, b, s, a: _uniform(b, b.and_(a[0], I32(0xFFFF)))


@intrinsic
def high_uniform(typing: Any, h: Any) -> Any:
    """uint32 -> (its upper half + 1/2) / 2^16."""
    return types.float32(types.uint32), lambda c, b, s, a: _uniform(b, b.lshr(a[0], I32(16)))


def _uniform(b: Any, m: Any) -> Any:
    return b.fmul(b.fadd(b.sitofp(m, FLOAT), FLOAT(0.5)), FLOAT(2.0**-16))


@intrinsic
def loaded(typing: Any, x: Any) -> Any:
    """An element as float32: of float32; of uint16, the bits of a bfloat16; of int16, those of a float16."""

    def gen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        if x == types.float32:
            return args[0]
        if x == types.uint16:
            return b.bitcast(b.shl(b.zext(args[0], I32), I32(16)), FLOAT)
        return b.fpext(b.bitcast(args[0], HALF), FLOAT)

    return types.float32(x), gen


@intrinsic
def stored(typing: Any, x: Any, like: Any) -> Any:
    """float32 -> an element of the type of `like`, as `loaded` reads it, to the nearest, ties to even."""

    def gen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        if like == types.float32:
            return args[0]
        if like == types.uint16:
            bits = b.bitcast(args[0], I32)
            odd = b.and_(b.lshr(bits, I32(16)), I32(1))
            return b.trunc(b.lshr(b.add(bits, b.add(odd, I32(0x7FFF))), I32(16)), I16)
        return b.bitcast(b.fptrunc(args[0], HALF), I16)

    return like(types.float32, like), gen


@intrinsic
def kept(typing: Any, x: Any, like: Any) -> Any:
    """As `stored`, but what a float16 cannot hold becomes the nearest that it can."""

    def gen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        if like == types.float32:
            return args[0]
        value = b.select(b.fcmp_ordered(">", args[0], FLOAT(65504.0)), FLOAT(65504.0), args[0])
        value = b.select(b.fcmp_ordered("<", value, FLOAT(-65504.0)), FLOAT(-65504.0), value)
        return b.bitcast(b.fptrunc(value, HALF), I16)

    return like(types.float32, like), gen


@intrinsic
def larger_magnitude(typing: Any, largest: Any, x: Any) -> Any:
    """(uint32, float32) -> the larger of the first and the magnitude's bits: NaN above infinity above all."""

    def gen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        magnitude = b.and_(b.bitcast(args[1], I32), I32(0x7FFFFFFF))
        return b.select(b.icmp_unsigned(">", magnitude, args[0]), magnitude, args[0])

    return types.uint32(types.uint32, types.float32), gen


@intrinsic
def rounded(typing: Any, x: Any, inverse: Any, half: Any, shift: Any) -> Any:
    """float32s -> uint8: floor(x * inverse * half + half + shift) within 0 .. 2 half."""

    def gen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        x, inverse, half, shift = args
        p = b.fadd(b.fadd(b.fmul(b.fmul(x, inverse), half), half), shift)
        p = b.select(b.fcmp_ordered("<", p, FLOAT(0.0)), FLOAT(0.0), p)
        top = b.fadd(half, half)
        p = b.select(b.fcmp_ordered(">", p, top), top, p)
        return b.trunc(b.fptosi(p, I32), I8)

    return types.uint8(types.float32, types.float32, types.float32, types.float32), gen
