"""HiPPO-LegS against what is known of it."""

from __future__ import annotations

from math import log

import pytest
import torch

from worker.model.dense_ssm import DenseSsm
from worker.model.diagonal_ssm import DiagonalSsm
from worker.model.hippo import Init, legs_matrix, legs_modes, modes


def test_legs_matrix_written_out() -> None:
    expected = [[-1, 0, 0], [-(3**0.5), -2, 0], [-(5**0.5), -(15**0.5), -3]]
    torch.testing.assert_close(legs_matrix(3), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("n", [2, 8, 64])
def test_legs_modes_are_the_eigenvalues_of_its_normal_part(n: int) -> None:
    p = (torch.arange(n, dtype=torch.float64) + 0.5).sqrt()
    normal = legs_matrix(n) + torch.outer(p, p)
    assert torch.allclose(normal @ normal.T, normal.T @ normal)
    found = torch.linalg.eigvals(normal)
    expected = torch.cat((legs_modes(n), legs_modes(n).conj()))
    assert torch.allclose(found.real, torch.full((n,), -0.5, dtype=torch.float64))
    assert torch.allclose(found.imag.sort().values, expected.imag.sort().values)


def test_legs_remembers_a_function_by_its_legendre_coefficients() -> None:
    """c' = (A c + b u) / t (theorem 2), followed from 1 to 9: the coefficients of u(s) = s over 0 to t are
    t/2 and t / (2 sqrt 3), and no others."""
    n, t = 4, 1.0
    a, b = legs_matrix(n), (2 * torch.arange(n, dtype=torch.float64) + 1).sqrt()
    c = torch.tensor([t / 2, t / 12**0.5, 0, 0], dtype=torch.float64)
    h = 1e-3
    for _ in range(8000):
        middle = c + h / 2 * (a @ c + b * t) / t
        c = c + h * (a @ middle + b * (t + h / 2)) / (t + h / 2)
        t += h
    expected = torch.tensor([t / 2, t / 12**0.5, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(c, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("init", ["legs", "lin", "inv"])
def test_every_ladder_of_modes_fades_and_turns(init: Init) -> None:
    found = modes(init, 16)
    assert found.shape == (8,)
    assert (found.real == -0.5).all()
    assert found.imag.unique().numel() == 8  # type: ignore[no-untyped-call]
    assert (found.imag >= 0).all()


def test_the_inverse_ladder_is_nearly_legs() -> None:
    """Gu et al. 2022, conjecture 5: the largest imaginary parts tend to n/pi (n / (2i + 1) - 1)."""
    legs, inverse = (modes(kind, 256).imag.sort(descending=True).values for kind in ("legs", "inv"))
    assert torch.allclose(legs[:4], inverse[:4], rtol=0.03)


def test_s4d_is_lssl_with_the_normal_part_of_its_matrix_made_diagonal() -> None:
    """Gu et al. 2022, section 4.1: with A's normal part V diag(modes) V^-1, reads C V and writes V^-1 B give
    the same filters, up to how each is made discrete (bilinear, zero-order hold): a difference of the second
    order in the step, so a quarter with half the step."""
    n = 8
    p = (torch.arange(n, dtype=torch.float64) + 0.5).sqrt()
    normal = legs_matrix(n) + torch.outer(p, p)
    writes, reads = 2 * p, torch.randn(n, generator=torch.Generator().manual_seed(0)).double()
    a, vectors = torch.linalg.eig(normal)
    taken = (reads + 0j) @ vectors * torch.linalg.solve(vectors, writes + 0j)
    a, taken = a[a.imag > 0], taken[a.imag > 0]
    off = []
    for step, length in ((0.004, 40), (0.002, 80)):
        whole, diagonal = DenseSsm(1, n).double(), DiagonalSsm(1, n, "legs").double()
        values = {
            whole.rates: normal.flatten(),
            whole.writes: writes,
            whole.reads: reads,
            diagonal.rates: torch.cat(((-a.real).log(), a.imag)),
            diagonal.reads: torch.cat((taken.real, taken.imag)),
        }
        with torch.no_grad():
            for ssm in (whole, diagonal):
                ssm.log_step.fill_(log(step))
                ssm.skip.zero_()
            for parameter, value in values.items():
                parameter.copy_(value)
            one, other = whole.to_dense(length), diagonal.to_dense(length)
        off.append(((one - other).abs().max() / one.abs().max()).item())
    assert off[0] < 1e-2
    assert off[0] / off[1] == pytest.approx(4, rel=0.05)
