"""The models that a job can name, as lists of layers.

A layer's `state_dict()` is its part of a checkpoint. The names in it, which are Isthmus's own layout
(`huggingface.py` translates to and from Hugging Face's):

| layer     | name                               | shape                  | family |
|-----------|------------------------------------|------------------------|--------|
| embedding | weight                             | vocab, hidden          | both   |
|           | positions                          | max_positions, hidden  | gpt2   |
| block.NN  | mixer_norm.weight, ffn_norm.weight | hidden                 | both   |
|           | mixer_norm.bias, ffn_norm.bias     | hidden                 | gpt2   |
|           | mixer.qkv.weight (q, then k, v)    | (H + 2K) x C, hidden   | both   |
|           | mixer.qkv.bias                     | (H + 2K) x C           | gpt2   |
|           | mixer.out.weight                   | hidden, hidden         | both   |
|           | mixer.out.bias                     | hidden                 | gpt2   |
|           | ffn.up.weight, ffn.up.bias         | ffn, hidden; ffn       | gpt2   |
|           | ffn.gate_up.weight (gate, then up) | 2 x ffn, hidden        | llama  |
|           | ffn.down.weight                    | hidden, ffn            | both   |
|           | ffn.down.bias                      | hidden                 | gpt2   |
| head      | norm.weight                        | hidden                 | both   |
|           | norm.bias                          | hidden                 | gpt2   |
|           | weight (the embedding's if tied)   | vocab, hidden          | both   |

H heads, K key-value heads, C = hidden / H the width of a head. The block above is [attention, mlp]; any
other block has for each of its parts NAME_norm and NAME, where the first sequence mixer is `mixer`, the
next `mixer2`, the first channel mixer `ffn`, the next `ffn2`, and the part's module says what is in it.
A checkpoint is a safetensors file a layer, so whatever a part has as parameters is in it by name.
"""

from worker.model.block import Block
from worker.model.build import build_layer, build_layers, initialize, tied_parameter
from worker.model.embedding import Embedding
from worker.model.head import Head
from worker.model.layer import Layer, ModelError, State, TooManyPositions

__all__ = [
    "Block",
    "Embedding",
    "Head",
    "Layer",
    "ModelError",
    "State",
    "TooManyPositions",
    "build_layer",
    "build_layers",
    "initialize",
    "tied_parameter",
]
