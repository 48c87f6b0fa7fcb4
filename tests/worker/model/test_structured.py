"""Structured matrices: what their projection of a dense one keeps."""

from __future__ import annotations

import pytest
import torch

from worker.model.structured import Monarch, Pixelfly


def filled(linear: Monarch | Pixelfly, seed: int = 0) -> Monarch | Pixelfly:
    linear.double()
    with torch.no_grad():
        for name, parameter in linear.named_parameters():
            drawn = linear.initial(name, torch.Generator().manual_seed(seed))
            parameter.copy_(torch.zeros_like(parameter) if drawn is None else drawn)
    return linear


@pytest.mark.parametrize(("inputs", "outputs", "blocks"), [(16, 16, 4), (12, 24, 4), (24, 8, 2)])
def test_a_monarch_matrix_projects_onto_itself(inputs: int, outputs: int, blocks: int) -> None:
    monarch = filled(Monarch(inputs, outputs, blocks, bias=False, std=1.0))
    dense = monarch.to_dense().detach()
    assert dense.shape == (outputs, inputs)
    other = filled(Monarch(inputs, outputs, blocks, bias=False, std=1.0), seed=1)
    other.project(dense)
    torch.testing.assert_close(other.to_dense().detach(), dense, atol=1e-12, rtol=1e-10)


def test_a_monarch_projection_is_nearer_than_any_other_found_by_descent() -> None:
    dense = torch.randn(12, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    monarch = filled(Monarch(16, 12, 4, bias=False, std=1.0))
    monarch.project(dense)
    nearest = (monarch.to_dense() - dense).square().sum().item()
    other = filled(Monarch(16, 12, 4, bias=False, std=1.0), seed=3)
    optimizer = torch.optim.Adam(other.parameters(), lr=0.05)
    for _ in range(300):
        loss = (other.to_dense() - dense).square().sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert nearest <= loss.item() + 1e-9
    assert loss.item() <= 1.05 * nearest, "descent comes near it, so the comparison is of something"


def test_pixelflys_projection_keeps_its_blocks_and_the_best_low_rank_of_the_rest() -> None:
    dense = torch.randn(16, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    errors = []
    for rank in (1, 4, 16):
        linear = filled(Pixelfly(32, 16, 8, rank, bias=False, std=1.0))
        linear.project(dense)
        errors.append((linear.to_dense() - dense).square().sum().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-20, "a full rank leaves nothing out"


@pytest.mark.parametrize("kind", [Monarch, Pixelfly])
def test_what_they_begin_with_is_as_large_as_a_dense_matrix(kind: type[Monarch | Pixelfly]) -> None:
    linear = Monarch(256, 512, 8, False, 0.02) if kind is Monarch else Pixelfly(256, 512, 8, 16, False, 0.02)
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spread = filled(linear)(x).std().item()
    assert spread == pytest.approx(0.02 * 256**0.5, rel=0.15)


def test_a_monarch_matrix_has_few_parameters() -> None:
    assert sum(p.numel() for p in Monarch(768, 3072, 16, False, 0.02).parameters()) == 16 * (768 + 3072)
