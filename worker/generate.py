"""Continue a text, token by token, with a model that is whole in this process.

Layers remember earlier positions in their states, so every position is computed once. Knows no tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.model import Embedding, Layer, ModelError, State, TooManyPositions


@torch.inference_mode()
def generate(
    layers: Sequence[Layer],
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    rng: torch.Generator,
    stop_id: int | None = None,
) -> list[int]:
    """The tokens that follow `prompt_ids`: `max_new_tokens` of them, or fewer if `stop_id` comes (the last).

    `layers` are all of a model's. `temperature` 0 takes the likeliest token, `top_k` 0 draws from all;
    `rng` is a generator of the CPU. Raises ModelError for an empty prompt, a token that the vocabulary
    lacks, a negative temperature or top_k, or layers that are no whole model; TooManyPositions, before any
    work, if the text would outgrow the model.
    """
    if not temperature >= 0 or top_k < 0:
        raise ModelError(f"found temperature {temperature} and top_k {top_k}; required 0 or more for both")
    embedding = _check(layers, prompt_ids, max_new_tokens)
    device = embedding.weight.device
    x = torch.tensor([list(prompt_ids)], dtype=torch.int64, device=device)
    states: list[State] = []
    for layer in layers:
        # Only what follows the prompt's last position is asked for, so the head sees no other.
        y, state = layer(x if layer is not layers[-1] else x[:, -1:], layer.begin())
        states.append(state)
        x = y
    logits_V = x[0, -1]
    new: list[int] = []
    while len(new) < max_new_tokens:
        new.append(sample(logits_V, temperature, top_k, rng))
        if new[-1] == stop_id or len(new) == max_new_tokens:
            break
        x = torch.tensor(new[-1:], dtype=torch.int64, device=device)
        for place, layer in enumerate(layers):
            x, states[place] = layer.step(x, states[place])
        logits_V = x[0]
    return new


def sample(logits_V: Tensor, temperature: float, top_k: int, rng: torch.Generator) -> int:
    """A token drawn from softmax(logits / temperature), among the `top_k` likeliest if that is not 0."""
    logits_V = logits_V.detach().cpu().double()
    if temperature == 0:
        return int(logits_V.argmax())
    if 0 < top_k < len(logits_V):
        kept, tokens = logits_V.topk(top_k)
    else:
        kept, tokens = logits_V, torch.arange(len(logits_V))
    # Taking the largest away first keeps a small temperature from overflowing.
    likely = ((kept - kept.max()) / temperature).softmax(dim=-1)
    return int(tokens[torch.multinomial(likely, 1, generator=rng)])


def _check(layers: Sequence[Layer], prompt_ids: Sequence[int], max_new_tokens: int) -> Embedding:
    first, last = (layers[0], layers[-1]) if layers else (None, None)
    if not isinstance(first, Embedding) or last is None or last.name != "head":
        found = ", ".join(layer.name for layer in layers) or "none"
        raise ModelError(f"layers: found {found}; required all of a model's, embedding to head")
    if not prompt_ids:
        raise ModelError("prompt: found no token; required at least one to continue")
    vocab = len(first.weight)
    strange = next((token for token in prompt_ids if not 0 <= token < vocab), None)
    if strange is not None:
        raise ModelError(f"prompt: found token {strange}; required 0 .. {vocab - 1}, the model's vocabulary")
    needed = len(prompt_ids) + max_new_tokens - 1  # the last token is not fed back
    if first.max_positions is not None and needed > first.max_positions:
        raise TooManyPositions(
            f"found a prompt of {len(prompt_ids)} tokens and {max_new_tokens} to generate; required at most"
            f" {first.max_positions + 1} together (model.max_positions + 1)"
        )
    return first
