"""Matching and tour against brute force, scipy and networkx."""

from __future__ import annotations

from itertools import pairwise, permutations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from scheduler import matching


def square(max_n: int, values: int = 12) -> st.SearchStrategy[np.ndarray]:
    return st.integers(1, max_n).flatmap(
        lambda n: arrays(np.float64, (n, n), elements=st.integers(0, values))
    )


def by_brute_force(w: np.ndarray) -> float:
    n = len(w)
    return min(max(float(w[i, p[i]]) for i in range(n)) for p in permutations(range(n)))


def test_bottleneck_matching_is_the_best_of_all_permutations() -> None:
    @settings(max_examples=60, deadline=None)
    @given(square(5))
    def check(w: np.ndarray) -> None:
        value, column_of = matching.bottleneck_matching(w)
        assert sorted(column_of) == list(range(len(w)))
        assert value == max(w[i, c] for i, c in enumerate(column_of)) == by_brute_force(w)
        assert matching.matching_bound(w[None])[0] <= value

    check()


@pytest.mark.parametrize("n", [6, 8, 13, 20])
def test_bottleneck_matching_agrees_with_an_assignment_over_thresholds(n: int) -> None:
    rng = np.random.default_rng(n)
    w = rng.random((4, n, n))
    for k in range(4):
        value, _ = matching.bottleneck_matching(w[k])
        too_dear = [(w[k] > t).astype(float) for t in (value, np.nextafter(value, 0))]
        sums = [m[linear_sum_assignment(m)].sum() for m in too_dear]
        assert sums[0] == 0
        assert sums[1] > 0


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 5, 8, 10])
def test_batched_bottlenecks_equal_single_ones(n: int, dtype: type) -> None:
    w: np.ndarray = np.random.default_rng(n).integers(0, 300, (300, n, n)).astype(dtype)
    expected = [matching.bottleneck_matching(m)[0] for m in w]
    assert matching.bottleneck_values(w).tolist() == expected


def test_bottleneck_agrees_with_networkx() -> None:
    w = np.random.default_rng(1).random((7, 7))
    value, _ = matching.bottleneck_matching(w)
    for threshold, perfect in ((value, True), (np.nextafter(value, 0), False)):
        g: nx.Graph[int] = nx.Graph()
        g.add_nodes_from(range(14))
        g.add_edges_from((i, 7 + j) for i in range(7) for j in range(7) if w[i, j] <= threshold)
        found = nx.bipartite.hopcroft_karp_matching(g, range(7))
        assert (len(found) == 14) == perfect


def test_a_matrix_that_is_not_square_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        matching.bottleneck_matching(np.zeros((2, 3)))


def test_open_tour_is_the_best_of_all_orders() -> None:
    @settings(max_examples=50, deadline=None)
    @given(square(6))
    def check(w: np.ndarray) -> None:
        best = min(sum(w[a, b] for a, b in pairwise(p)) for p in permutations(range(len(w))))
        length, order = matching.open_tour(w)
        assert sorted(order) == list(range(len(w)))
        assert length == pytest.approx(best)
        assert matching.path_cost(w, order) == pytest.approx(best)
        assert matching.tour_lengths(w[None])[0] == pytest.approx(best)

    check()


def test_the_heuristic_tour_is_near_the_exact_one_and_above_its_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(3)
    exact, heuristic = [], []
    for _ in range(12):
        w = rng.random((11, 11))
        exact.append(matching.open_tour(w)[0])
        with monkeypatch.context() as patch:
            patch.setattr(matching, "EXACT_TOUR", 3)
            length, order = matching.open_tour(w)
            bound = matching.tour_bound(w)
        assert sorted(order) == list(range(11))
        assert length == pytest.approx(matching.path_cost(w, order))
        assert bound <= exact[-1] + 1e-9 <= length + 2e-9
        heuristic.append(length)
    assert sum(heuristic) <= 1.05 * sum(exact)


def test_a_long_tour_over_points_is_near_its_bound() -> None:
    points = np.random.default_rng(5).random((40, 2))
    w = np.linalg.norm(points[:, None] - points[None], axis=2)
    length, order = matching.open_tour(w)
    assert sorted(order) == list(range(40))
    assert matching.tour_bound(w) <= length <= 1.35 * matching.tour_bound(w)
