"""What `layers.py` measures and works out, on forms whose costs are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.benchmarks.layer_costs import Run, measured
from tests.benchmarks.layer_forms import (
    FAST_CONV,
    HIDDEN,
    NAIVE,
    WHOLE_CONV,
    by_a_matrix,
    fading,
    fused,
    naive,
)
from tests.benchmarks.layer_rows import Row, Setting, foreseen, row_of, rows
from tests.benchmarks.layer_tables import crossover, peak_exponent, process_share
from tests.benchmarks.layers import main
from worker.model.fft_conv import fft_conv

VALUES = 1 << 18


def row(*seconds: float) -> Row:
    return Row({512 << k: Run(s, 1) for k, s in enumerate(seconds)})


def test_peak_memory_is_what_is_held_at_once() -> None:
    """exp keeps its result, and the input gets a gradient; that of a sum is one value, expanded."""
    x = torch.ones(VALUES)
    assert measured(torch.exp, x).peak_bytes == pytest.approx(2 * 4 * VALUES, rel=0.01)
    held = measured(lambda x: x.exp().exp().exp(), x).peak_bytes
    assert held == pytest.approx(4 * 4 * VALUES, rel=0.01)


def test_one_length_after_the_other_until_the_next_would_take_too_much() -> None:
    lengths = (64, 128, 256, 512)
    assert list(row_of(NAIVE, lengths, 1e9, 8 << 30).runs) == [*lengths]
    short = row_of(NAIVE, lengths, 0.0, 8 << 30)
    assert list(short.runs) == [64]
    assert short.ended.startswith("128:")
    assert short.ended.endswith("s")
    large = row_of(NAIVE, (256, 512, 1 << 16), 1e9, 8 << 30)
    assert list(large.runs) == [256, 512]
    assert large.ended.endswith("GiB")


def test_a_parts_first_length_is_foreseen_by_its_closed_form() -> None:
    none = row_of("mlp", (1 << 30,), 1e9, 8 << 30)
    assert not none.runs
    assert none.ended == f"{1 << 30}: 3.84e+03 GiB"


def test_what_was_not_foreseen_is_refused_and_what_was_measured_is_kept(tmp_path: Path) -> None:
    settings = [Setting(form, (512,), 1e9, 96 << 20) for form in (WHOLE_CONV, FAST_CONV)]
    found = dict(rows(tmp_path / "cells", settings))
    assert found[WHOLE_CONV] == Row({}, "512: took more than 0.0938 GiB", found[WHOLE_CONV].begun_bytes)
    assert list(found[FAST_CONV].runs) == [512]
    assert dict(rows(tmp_path / "cells", settings)) == found


def test_less_memory_than_the_shortest_lengths_take_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--memory-bytes", "1000"])
    assert "found 1,000; required 1,073,741,824 at least" in capsys.readouterr().err


def test_the_next_is_foreseen_by_the_power_that_the_last_two_show() -> None:
    assert foreseen([], 512, []) == 0
    assert foreseen([3.0], 1024, [512]) == 6
    assert foreseen([1.0, 4.0], 2048, [512, 1024]) == 16


def test_where_one_begins_to_cost_less_is_interpolated_in_logs() -> None:
    linear, quadratic = row(1, 2, 4, 8), row(0.25, 1, 4, 16)
    assert crossover(linear, quadratic) == "2048"
    assert crossover(quadratic, linear) == "above 4096"
    assert crossover(row(1, 2, 4, 8), row(2, 4, 8, 16)) == "below 512"
    assert crossover(row(2, 2), row(1, 4)) == "724"  # 512 x sqrt 2


def test_exponents_are_of_the_longest_lengths() -> None:
    peaks = {512: 9000, 1024: 10, 2048: 40, 4096: 160}
    assert peak_exponent(Row({n: Run(1, peak) for n, peak in peaks.items()})) == pytest.approx(2)
    assert peak_exponent(row(1.0)) is None


def test_a_process_is_weighed_by_what_it_grew() -> None:
    assert process_share(Row({512: Run(1, 5, 90), 1024: Run(1, 10, 130)}, "", 100)) == 3
    assert process_share(Row({512: Run(1, 10, 130)}, "", 100), 10) == 2
    assert process_share(Row({512: Run(1, 10, 130)}, "", 100), 99) == 0


def test_naive_forms_say_what_the_fast_ones_do() -> None:
    x = torch.randn(1, 48, HIDDEN, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(naive(x), fused(x), atol=1e-5)
    assert torch.allclose(by_a_matrix(x)[..., 0].mT, fft_conv(x, fading(48)), atol=1e-4)
