"""The cut against brute force, and what it says when nothing fits."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.cost import stage_memory_bytes
from scheduler.partition import DoesNotFit, Partition, partition
from scheduler.plan import PlanError
from scheduler.profile import DeviceProfile, LayerProfile, ModelProfile


def a_model(parameters: list[int], tied: bool = False) -> ModelProfile:
    n = len(parameters)
    layers = tuple(
        LayerProfile(f"layer.{i}", 1, 2, p, 5, 3, 2 * p, "layer.0" if tied and i == n - 1 else "")
        for i, p in enumerate(parameters)
    )
    return ModelProfile(layers, 1, 8)


def a_device(name: str, seconds: list[float]) -> DeviceProfile:
    return DeviceProfile(name, tuple(seconds), tuple(2 * s for s in seconds), (0.0,) * len(seconds))


def cuts(n_layers: int, n_stages: int) -> list[Partition]:
    ends = ((0, *c, n_layers) for c in combinations(range(1, n_layers), n_stages - 1))
    return [tuple(pairwise(e)) for e in ends]


def slowest_s(cut: Partition, stages: list[list[DeviceProfile]]) -> float:
    return max(
        sum(p.forward_s[a:b]) + sum(p.backward_s[a:b])
        for (a, b), devices in zip(cut, stages, strict=True)
        for p in devices
    )


@st.composite
def problems(draw: st.DrawFn) -> tuple[ModelProfile, list[list[DeviceProfile]], dict[str, int], list[int]]:
    n_layers = draw(st.integers(1, 7))
    n_stages = draw(st.integers(1, min(4, n_layers)))
    n_replicas = draw(st.integers(1, 2))
    parameters = draw(st.lists(st.integers(0, 50), min_size=n_layers, max_size=n_layers))
    seconds = st.lists(st.integers(0, 20).map(float), min_size=n_layers, max_size=n_layers)
    stages = [[a_device(f"d{s}.{r}", draw(seconds)) for r in range(n_replicas)] for s in range(n_stages)]
    memory = {p.device: draw(st.sampled_from([0, 60, 120, 200, 400])) for devices in stages for p in devices}
    in_flight = draw(st.lists(st.integers(1, 4), min_size=n_stages, max_size=n_stages))
    return a_model(parameters, draw(st.booleans()) and n_layers > 1), stages, memory, in_flight


@given(problem=problems())
def test_it_finds_what_brute_force_finds(
    problem: tuple[ModelProfile, list[list[DeviceProfile]], dict[str, int], list[int]],
) -> None:
    model, stages, memory, in_flight = problem

    def lack(cut: Partition) -> int:
        return max(
            (
                stage_memory_bytes(model, a, b, in_flight[s]) - memory[p.device]
                for s, (a, b) in enumerate(cut)
                for p in stages[s]
                if memory[p.device]
            ),
            default=0,
        )

    every = cuts(len(model.layers), len(stages))
    fitting = [c for c in every if lack(c) <= 0]
    if not fitting:
        with pytest.raises(DoesNotFit) as caught:
            partition(model, stages, memory, in_flight)
        assert caught.value.missing_bytes == min(lack(c) for c in every)
        return
    found = partition(model, stages, memory, in_flight)
    assert found in fitting
    assert slowest_s(found, stages) == pytest.approx(min(slowest_s(c, stages) for c in fitting))


def test_embedding_and_head_count() -> None:
    """A head worth three blocks shares its stage with fewer of them."""
    seconds = [0.5, 1, 1, 1, 1, 1, 1, 3]
    stages = [[a_device("a", seconds)], [a_device("b", seconds)]]
    assert partition(a_model([1] * 8), stages, {}, [2, 1]) == ((0, 5), (5, 8))


def test_a_device_half_as_fast_holds_half_as_much() -> None:
    stages = [[a_device("slow", [2.0] * 6)], [a_device("fast", [1.0] * 6)]]
    assert partition(a_model([1] * 6), stages, {}, [2, 1]) == ((0, 2), (2, 6))


def test_among_equals_the_most_even_cut_is_taken() -> None:
    """The long layer bounds every cut; the rest is still shared evenly."""
    seconds = [9.0, 1, 1, 1, 1]
    stages = [[a_device(x, seconds)] for x in "abc"]
    assert partition(a_model([1] * 5), stages, {}, [1, 1, 1]) == ((0, 1), (1, 3), (3, 5))


def test_memory_moves_layers_to_who_has_room() -> None:
    model = a_model([10] * 6)
    stages = [[a_device("small", [1.0] * 6)], [a_device("large", [1.0] * 6)]]
    needs_2 = stage_memory_bytes(model, 0, 2, 1)
    assert partition(model, stages, {"small": needs_2, "large": 10_000}, [1, 1]) == ((0, 2), (2, 6))
    with pytest.raises(
        DoesNotFit, match=r"no cut into 2 stages fits.*on small \(stage 0\).*1 B are missing"
    ) as e:
        partition(model, stages, {"small": stage_memory_bytes(model, 0, 1, 1) - 1}, [1, 1])
    assert (e.value.device, e.value.missing_bytes) == ("small", 1)


def test_more_stages_than_layers_is_an_error() -> None:
    stages = [[a_device(x, [1.0, 1.0])] for x in "abc"]
    with pytest.raises(PlanError, match="found 3 stages for 2 layers, required 1 to 2"):
        partition(a_model([1, 1]), stages, {}, [1, 1, 1])
