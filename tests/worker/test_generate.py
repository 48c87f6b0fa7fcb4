"""Generation with states is generation without them, and its choices follow temperature, top_k and rng."""

from __future__ import annotations

import pytest
import torch

from scheduler.job import ModelSpec
from tests.worker.model.shapes import KINDS, layers_of, logits_of, spec
from worker.generate import generate, sample
from worker.model import Layer, ModelError, TooManyPositions


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lively(model: ModelSpec) -> list[Layer]:
    """Layers whose logits are far from equal, so that the likeliest token is not a matter of rounding."""
    layers = layers_of(model)
    with torch.no_grad():
        for layer in layers:
            for name, parameter in layer.named_parameters():
                if parameter.ndim == 2 and not (model.tied and layer.name == "head" and name == "weight"):
                    parameter.mul_(8)
    return layers


@pytest.mark.parametrize("model", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_token_is_the_one_that_the_full_forward_gives(model: ModelSpec, temperature: float) -> None:
    layers, prompt = lively(model), [5, 17, 42]
    new = generate(layers, prompt, 20, temperature, top_k=10, rng=rng(4))
    chance, text = rng(4), list(prompt)
    for token in new:
        logits = logits_of(layers, torch.tensor([text]))[0, -1]
        assert sample(logits, temperature, 10, chance) == token
        text.append(token)
    assert len(new) == 20
    assert len(set(new)) > 1


def test_the_same_seed_gives_the_same_text_and_another_another() -> None:
    layers = lively(KINDS["llama"])
    texts = [generate(layers, [1], 12, 1.0, 0, rng(seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_generation_ends_behind_the_stop_token() -> None:
    layers = lively(KINDS["gpt2"])
    free = generate(layers, [3], 15, 0.0, 0, rng())
    stop = free[4]
    assert generate(layers, [3], 15, 0.0, 0, rng(), stop_id=stop) == free[: free.index(stop) + 1]
    assert generate(layers, [3], 0, 0.0, 0, rng()) == []


def test_samples_follow_the_softmax_among_the_likeliest() -> None:
    logits, chance = torch.tensor([2.0, 0.0, 1.0, -9.0]), rng()
    drawn = torch.tensor([sample(logits, 0.5, 3, chance) for _ in range(4000)])
    expected = (logits[:3] / 0.5).softmax(-1)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares[:3], expected, atol=0.03, rtol=0)
    assert shares[3] == 0
    assert {sample(logits, 1e-9, 0, chance) for _ in range(20)} == {0}


def test_a_model_still_trains_after_it_generated() -> None:
    layers = layers_of(spec(family="llama", rope_theta=4321.0))
    generate(layers, [1, 2], 5, 1.0, 0, rng())
    loss = logits_of(layers, torch.tensor([[1, 2, 3]])).sum()
    gradients = torch.autograd.grad(loss, list(layers[1].parameters()))
    assert all(g.isfinite().all() for g in gradients)


def test_impossible_requests_are_refused() -> None:
    layers = layers_of(KINDS["llama"])
    cases: list[tuple[list[Layer], list[int], float, int, str]] = [
        (layers, [], 1.0, 0, "prompt: found no token"),
        (layers, [61], 1.0, 0, "found token 61; required 0 .. 60"),
        (layers, [1], -1.0, 0, "found temperature -1.0"),
        (layers, [1], float("nan"), 0, "found temperature nan"),
        (layers, [1], 1.0, -1, "top_k -1"),
        (layers[:-1], [1], 1.0, 0, "found embedding, block.00, block.01, block.02; required all"),
        ([], [1], 1.0, 0, "layers: found none"),
    ]
    for given, prompt, temperature, top_k, message in cases:
        with pytest.raises(ModelError, match=message):
            generate(given, prompt, 3, temperature, top_k, rng())


def test_a_text_that_would_outgrow_the_model_is_refused_before_any_work() -> None:
    layers = layers_of(KINDS["gpt2"])
    assert len(generate(layers, [1] * 38, 3, 0.0, 0, rng())) == 3  # the last token needs no position
    with pytest.raises(TooManyPositions, match="38 tokens and 4 to generate; required at most 41"):
        generate(layers, [1] * 38, 4, 0.0, 0, rng())
