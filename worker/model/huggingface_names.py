"""Which tensors of Hugging Face's GPT-2 and Llama make up each tensor of a layer, and in which shape.

Names and shapes only; reads no file. Two things differ from our layout: GPT-2's matrices are stored
(inputs, outputs), and Llama's queries, keys, values and gate, up are tensors of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from scheduler.job import ModelSpec

PREFIX = {"gpt2": "transformer.", "llama": "model."}
"""Of every name but the head's; checkpoints of the model without its head leave it out."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `start` .. `stop` - 1 of a tensor of ours, as the tensor `name` of shape `shape` over there."""

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]
    transposed: bool

    def out_of(self, own: Tensor) -> Tensor:
        """This piece of our tensor, in their layout."""
        rows = own[self.start : self.stop]
        return rows.T if self.transposed else rows

    def into(self, own: Tensor, theirs: Tensor) -> None:
        """Write their tensor over its rows of ours."""
        own[self.start : self.stop].copy_(theirs.T if self.transposed else theirs)


@dataclass(frozen=True, slots=True)
class Source:
    """Our tensor `own` of one layer, and the pieces it is made of, in the order of its rows."""

    own: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def sources(model: ModelSpec, index: int) -> tuple[Source, ...]:
    """The tensors of layer `index` of a resolved `model`. A tied head's weight comes from the embedding's."""
    assert model.vocab is not None
    last = index == model.depth + 1
    if model.family == "gpt2":
        return tuple(_gpt2(model, index, last))
    return tuple(_llama(model, index, last))


def _gpt2(model: ModelSpec, index: int, last: bool) -> Iterator[Source]:
    vocab, hidden, ffn = model.vocab or 0, model.hidden, model.ffn or 0
    pre = PREFIX["gpt2"]
    if index == 0:
        yield _source("weight", [(f"{pre}wte.weight", vocab)], hidden)
        yield _source("positions", [(f"{pre}wpe.weight", model.max_positions or 0)], hidden)
    elif last:
        yield from _both("norm", f"{pre}ln_f", hidden, None)
        yield _source("weight", [(f"{pre}wte.weight" if model.tied else "lm_head.weight", vocab)], hidden)
    else:
        block = f"{pre}h.{index - 1}."
        yield from _both("mixer_norm", f"{block}ln_1", hidden, None)
        yield from _both("mixer.qkv", f"{block}attn.c_attn", 3 * hidden, hidden)
        yield from _both("mixer.out", f"{block}attn.c_proj", hidden, hidden)
        yield from _both("ffn_norm", f"{block}ln_2", hidden, None)
        yield from _both("ffn.up", f"{block}mlp.c_fc", ffn, hidden)
        yield from _both("ffn.down", f"{block}mlp.c_proj", hidden, ffn)


def _both(own: str, theirs: str, rows: int, columns: int | None) -> Iterator[Source]:
    """GPT-2's modules have a weight and a bias each; its matrices are stored transposed."""
    yield _source(f"{own}.weight", [(f"{theirs}.weight", rows)], columns, transposed=columns is not None)
    yield _source(f"{own}.bias", [(f"{theirs}.bias", rows)], None)


def _llama(model: ModelSpec, index: int, last: bool) -> Iterator[Source]:
    vocab, hidden, ffn = model.vocab or 0, model.hidden, model.ffn or 0
    pre = PREFIX["llama"]
    if index == 0:
        yield _source("weight", [(f"{pre}embed_tokens.weight", vocab)], hidden)
    elif last:
        yield _source("norm.weight", [(f"{pre}norm.weight", hidden)], None)
        head = f"{pre}embed_tokens.weight" if model.tied else "lm_head.weight"
        yield _source("weight", [(head, vocab)], hidden)
    else:
        block = f"{pre}layers.{index - 1}."
        head_width = hidden // model.heads
        heads = {"q": model.heads, "k": model.kv_heads or 0, "v": model.kv_heads or 0}
        qkv = [(f"{block}self_attn.{x}_proj.weight", n * head_width) for x, n in heads.items()]
        gate_up = [(f"{block}mlp.{x}_proj.weight", ffn) for x in ("gate", "up")]
        yield _source("mixer_norm.weight", [(f"{block}input_layernorm.weight", hidden)], None)
        yield _source("mixer.qkv.weight", qkv, hidden)
        yield _source("mixer.out.weight", [(f"{block}self_attn.o_proj.weight", hidden)], hidden)
        yield _source("ffn_norm.weight", [(f"{block}post_attention_layernorm.weight", hidden)], None)
        yield _source("ffn.gate_up.weight", gate_up, hidden)
        yield _source("ffn.down.weight", [(f"{block}mlp.down_proj.weight", hidden)], ffn)


def _source(
    own: str, named_rows: list[tuple[str, int]], columns: int | None, transposed: bool = False
) -> Source:
    """`columns` None: a vector."""
    pieces, start = [], 0
    for name, rows in named_rows:
        shape = (rows,) if columns is None else (columns, rows) if transposed else (rows, columns)
        pieces.append(Piece(name, start, start + rows, shape, transposed))
        start += rows
    return Source(own, (start,) if columns is None else (start, columns), tuple(pieces))
