"""The Triton kernels give the reference's bits, run by Triton's interpreter where there is no GPU."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from compression import kernels, kernels_cpu, quantize
from compression.activation_delta import ActivationDeltaCodec
from compression.grid import BLOCK, Grid, NotFinite
from compression.payload import Encoded
from compression.spec import AcsgdSpec

pytest.importorskip("triton", reason="triton is not here: it comes with the extras `gpu`, and `dev` on Linux")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SCALES = [("tensor", 1), ("channel", 1), ("group", 32), ("group", 64), ("group", 96)]


@pytest.fixture(scope="module")
def twin() -> ModuleType:
    from compression import kernels_triton

    return kernels_triton


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_the_same_bits_for_every_width_scale_and_size(twin: ModuleType, bits: int, stochastic: bool) -> None:
    for scale, group in SCALES:
        grid = Grid(bits, scale, group, stochastic)  # type: ignore[arg-type]
        for shape in ((BLOCK + 77,), (3, 192)):
            require_same(twin, torch.randn(shape, generator=torch.Generator().manual_seed(bits)), grid)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_bits_for_other_types_strides_and_nothing(twin: ModuleType, dtype: torch.dtype) -> None:
    x = torch.randn(192, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    for stochastic in (False, True):
        require_same(twin, x.t(), Grid(4, "group", 64, stochastic))
        require_same(twin, x[:0], Grid(4, "group", 3, stochastic))


def require_same(twin: ModuleType, x: torch.Tensor, grid: Grid) -> None:
    scales, packed = quantize.quantize(x, grid, 3_000_000_001)
    found = twin.quantize(x.to(DEVICE), grid, 3_000_000_001)
    assert torch.equal(found[0].cpu(), scales)
    assert torch.equal(found[1].cpu(), packed)
    y = quantize.dequantize(scales, packed, tuple(x.shape), grid, x.dtype)
    z = twin.dequantize(found[0], found[1], tuple(x.shape), grid, x.dtype)
    assert torch.equal(z.cpu(), y)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("bits", [2, 4, 7])
def test_changes_are_quantized_and_memories_follow_as_on_a_cpu(
    twin: ModuleType, bits: int, dtype: torch.dtype, stochastic: bool
) -> None:
    rng = torch.Generator().manual_seed(bits)
    for scale, group in (("group", 64), ("group", 96), ("tensor", 1)):
        grid, shape = Grid(bits, scale, group, stochastic), (6, 192)  # type: ignore[arg-type]
        x, memory = torch.randn(shape, generator=rng), torch.randn(shape, generator=rng).to(dtype)
        memory[0, 0] = 65504.0  # a float16 holds no more
        ours, theirs = memory.clone().to(DEVICE), memory.clone()
        scales, packed = (t.to(DEVICE) for t in kernels_cpu.room(shape, grid))
        twin.encode_into(x.to(DEVICE), scales, packed, grid, 77, 1, ours)
        expected = kernels_cpu.room(shape, grid)
        kernels_cpu.encode_into(x, *expected, grid, 77, 1, theirs)
        assert torch.equal(scales.cpu(), expected[0])
        assert torch.equal(packed.cpu(), expected[1])
        assert torch.equal(ours.cpu(), theirs)
        far, near = memory.clone().to(DEVICE), memory.clone()  # the other end
        twin.decode_into(far, scales, packed, grid, add=True)
        kernels_cpu.decode_into(near, *expected, grid, add=True)
        assert torch.equal(far.cpu(), near)
        assert torch.equal(near, theirs)


@pytest.mark.parametrize(("scale", "group"), SCALES)
def test_what_is_not_finite_is_refused(twin: ModuleType, scale: str, group: int) -> None:
    x = torch.ones(BLOCK + 5)
    x[BLOCK + 2] = float("nan")
    with pytest.raises(NotFinite):
        twin.quantize(x.to(DEVICE), Grid(4, scale, group))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spec",
    [AcsgdSpec(bits=2), AcsgdSpec(first=8, rounding="stochastic"), AcsgdSpec(bits=3, store=8)],
    ids=["at once", "one by one", "quantized buffers"],
)
def test_a_tensor_on_a_gpu_is_sent_as_changes_that_a_cpu_would_send(
    twin: ModuleType, monkeypatch: pytest.MonkeyPatch, spec: AcsgdSpec
) -> None:
    used = []

    def fused_of(device: torch.device) -> tuple[ModuleType, torch.device]:
        used.append(device)
        return twin, DEVICE

    ours, theirs, receiver = (ActivationDeltaCodec(spec, seed=5) for _ in range(3))
    for visit, key in enumerate([(0, 1), (1, 0), (2, 1), (0, 2)]):
        x = torch.randn((2, 8, 128), generator=torch.Generator().manual_seed(visit))
        expected = theirs.encode(x, key)
        with monkeypatch.context() as patched:
            patched.setattr(kernels, "fused_of", fused_of)
            sent = ours.encode(x.to(DEVICE), key)
        assert b"".join(sent.payload) == b"".join(expected.payload)
        assert ours.remembered == theirs.remembered
        wire = tuple(memoryview(bytearray(p)) for p in sent.payload)
        y = receiver.decode(Encoded(wire, sent.dtype, sent.shape, sent.codec), key)
        assert torch.equal(y, ours.echo(sent, key))
        assert receiver.remembered == ours.remembered
    assert len(used) == 4
