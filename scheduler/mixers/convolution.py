"""Mixers that are long convolutions, a filter a channel: options and closed forms.

The filter is a diagonal state space's (S4D, H3), a table's (LongConv), or a small network's (Hyena).
Letters: B samples, T positions, D hidden, N pairs of modes of a channel's state.
"""

from __future__ import annotations

from math import isqrt, log2
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from scheduler.layer_cost import Cost, Sizes
from scheduler.mixers.matrix_conv import matrix_conv_cost
from scheduler.mixers.spec import Limited, MixerSpec

if TYPE_CHECKING:
    from scheduler.job import ModelSpec

_Count = Annotated[int, Field(ge=1)]


def transform_length(length: int) -> int:
    """Points of the Fourier transforms of a causal convolution over `length` positions: a power of two that
    keeps its end from wrapping round to its start."""
    return 1 << (2 * length - 1).bit_length()


def transform_flops(points: int) -> float:
    """Of one real transform: half of the 5 n log2 n that a complex one counts by custom."""
    return 2.5 * points * log2(points)


def conv_cost(sizes: Sizes, channels: int, kernel: Cost) -> Cost:
    """A convolution whose filters cost `kernel`: forward transforms inputs and filters and the product back;
    backward does the first again, transforms the gradient, and both results (complex) back. Kept is the
    input; at work are the spectra."""
    one = transform_flops(transform_length(sizes.length))
    inputs, filters = sizes.batch * channels, channels
    forward = (2 * inputs + filters) * one
    backward = (inputs + filters) * one + inputs * one + 2 * (inputs + filters) * one
    spectra = (2 * inputs + filters) * (transform_length(sizes.length) // 2 + 1) * 8
    return kernel + Cost(
        0, forward, backward, sizes.rows * channels * sizes.value_bytes, working_bytes=spectra
    )


def digits(length: int) -> tuple[int, int]:
    """How many values a position's high and its low digit take: about the root of `length` each."""
    low = isqrt(length - 1) + 1
    return -(-length // low), low


def modes_cost(sizes: Sizes, channels: int, modes: int) -> Cost:
    """The filters of a diagonal state space: powers of the modes (complex) for each of the positions' two
    digits, and one product of the two, done again in backward. A step goes through the state, elementwise."""
    high, low = digits(sizes.length)
    product = 2.0 * channels * modes * high * low
    powers = 2 * channels * modes * (high + low) * 8
    state = 2 * sizes.batch * channels * modes * sizes.value_bytes
    parameters = channels * (2 + 4 * modes)  # step, skip; modes and reads, real and imaginary
    return Cost(parameters, product, 3 * product, 0, working_bytes=powers, state_bytes=state)


class Convolved(MixerSpec):
    """A part that filters each channel by a convolution as long as the text."""

    is_sequence: ClassVar[bool] = True

    transform: Literal["fft", "matrix"] = "fft"
    """How it convolves: by PyTorch's Fourier transforms, or by transforms that are matrix products
    (FlashConv), which some accelerators are many times faster at; on a CPU they take about three times as
    long."""

    def conv_cost(self, sizes: Sizes, channels: int, kernel: Cost) -> Cost:
        """A convolution whose filters cost `kernel`."""
        return (matrix_conv_cost if self.transform == "matrix" else conv_cost)(sizes, channels, kernel)


class S4dSpec(Convolved):
    """A diagonal state space a channel (Gu, Goel, Gupta and Ré 2022), then GELU and a gated projection."""

    name: ClassVar[str] = "s4d"

    state: Annotated[int, Field(ge=2, multiple_of=2)] = 64
    """Values of state a channel: half as many complex modes, of which each stands for two."""
    init: Literal["legs", "lin", "inv"] = "legs"
    """The modes begin as HiPPO-LegS's, or as one of the paper's two simple ladders."""

    def cost(self, model: ModelSpec, sizes: Sizes) -> Cost:
        """Kept: the input, the filtered, GELU's output, the projection's halves and the gate."""
        d = model.hidden
        conv = self.conv_cost(sizes, d, modes_cost(sizes, d, self.state // 2))
        return conv + sizes.linear(d, 2 * d, bias=False, kept=(1 + 1 + 2 + 1) * d)


class H3Spec(Convolved):
    """Hungry Hungry Hippos (Fu, Dao et al. 2023): q x diag(shift(k) x v), where shift remembers the last
    positions and diag is a diagonal state space."""

    name: ClassVar[str] = "h3"

    state: Annotated[int, Field(ge=2, multiple_of=2)] = 64
    taps: _Count = 4
    """Positions that the shift remembers."""
    init: Literal["legs", "lin", "inv"] = "legs"

    def cost(self, model: ModelSpec, sizes: Sizes) -> Cost:
        """Kept: the input, its projection, shifted keys before and behind, the filtered and the gated."""
        d = model.hidden
        conv = self.conv_cost(sizes, d, modes_cost(sizes, d, self.state // 2))
        linears = sizes.linear(d, 3 * d, bias=False, kept=4 * d) + sizes.linear(d, d, bias=False, kept=4 * d)
        shifted = sizes.batch * (self.taps - 1) * d * sizes.value_bytes
        return conv + linears + Cost(self.taps * d, 0.0, 0.0, 0, state_bytes=shifted)


class _Filtered(Limited, Convolved):
    """A filter as long as the text: what is remembered is all that was put in."""

    def _remembered(self, sizes: Sizes, channels: int) -> Cost:
        """A step multiplies the filter with all inputs so far."""
        return Cost(
            0,
            0.0,
            0.0,
            0,
            step_flops=2.0 * sizes.batch * channels * (sizes.length + 1),
            state_bytes=sizes.rows * channels * sizes.value_bytes,
        )


class LongConvSpec(_Filtered):
    """Filters that are learned as they are, squashed so that they stay simple (Fu et al. 2023, "Simple
    hardware-efficient long convolutions"), then GELU and a gated projection."""

    name: ClassVar[str] = "longconv"

    squash: Annotated[float, Field(ge=0)] = 0.003
    """Values of a filter are drawn so much nearer to 0."""

    def cost(self, model: ModelSpec, sizes: Sizes) -> Cost:
        d = model.hidden
        kernel = Cost(d * (self.length_in(model) + 1), 0.0, 0.0, 0) + self._remembered(sizes, d)
        conv = self.conv_cost(sizes, d, kernel)
        return conv + sizes.linear(d, 2 * d, bias=False, kept=(1 + 1 + 2 + 1) * d)


class HyenaSpec(_Filtered):
    """Hyena of order 2 (Poli et al. 2023): q x filter(k x v), the filters made by a small network of the
    position and let fade, at another rate for each channel."""

    name: ClassVar[str] = "hyena"

    taps: _Count = 3
    """Of the short convolution over q, k and v."""
    width: _Count = 64
    """Of the network that makes the filters."""
    bands: _Count = 4
    """Frequencies of the position that it sees."""

    def cost(self, model: ModelSpec, sizes: Sizes) -> Cost:
        """Kept: the input, its projection and that convolved, keys x values, the filtered, the gated."""
        d, seen, f, t = model.hidden, 1 + 2 * self.bands, self.width, sizes.length
        first, others = 2.0 * t * seen * f, 2.0 * t * (f * f + f * d)
        # A step makes the filter for all positions so far.
        step = 2.0 * (t + 1) * f * (seen + f + d)
        parameters = f * seen + f + f * f + f + d * f + d
        kernel = Cost(parameters, first + others, 2 * first + 3 * others, 0, step_flops=step)
        conv = self.conv_cost(sizes, d, kernel + self._remembered(sizes, d))
        linears = sizes.linear(d, 3 * d, bias=False, kept=7 * d) + sizes.linear(d, d, bias=False, kept=2 * d)
        short = sizes.batch * (self.taps - 1) * 3 * d * sizes.value_bytes
        return conv + linears + Cost(3 * d * self.taps, 0.0, 0.0, 0, state_bytes=short)
