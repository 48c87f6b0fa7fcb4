"""Small tasks that tell sequence mixers apart: what to read, and what to answer where.

A task makes batches from a generator alone, so that a seed means one stream of samples. Tokens are read from
left to right; `answers` hold the token that is right behind a position, and -100 where none is asked for.
Knows no models.

Shapes: B samples, T positions, P pairs (of a key and a value), E entries.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

UNASKED = -100
DIGITS = Path(__file__).parents[1] / "data" / "digits.csv.gz"
PIXEL_VALUES, CLASSES, HELD_OUT = 17, 10, 397

Batch = tuple[Tensor, Tensor]
"""Tokens (B,T) and answers (B,T), int64."""


@dataclass(frozen=True, slots=True)
class Task:
    """`batch(rng, samples, size)` draws samples of `size` things to remember, `least` to `most` (where there
    are none, both are 1); of `length` positions at most. `held_out` draws what the score is taken of, always
    with `most` things."""

    vocab: int
    length: int
    least: int
    most: int
    batch: Callable[[torch.Generator, int, int], Batch]
    held_out: Callable[[torch.Generator, int], Batch]
    loss: bool = False
    """Whether the score is the mean cross entropy in nats, not the share of right answers."""


def associative_recall(keys: int, values: int, pairs: int) -> Task:
    """key value key value …, keys drawn anew at each place: where a key was seen before, its value is
    asked for (Fu, Dao et al. 2023, H3, section 3.1, which asks for the last one alone)."""

    def batch(rng: torch.Generator, samples: int, size: int) -> Batch:
        value_of = keys + torch.randint(values, (samples, keys), generator=rng)
        keys_BP = torch.randint(keys, (samples, size), generator=rng)
        return _asked_again(keys_BP, value_of.gather(1, keys_BP))

    return Task(keys + values, 2 * pairs, pairs, pairs, batch, lambda rng, n: batch(rng, n, pairs))


def multi_query_recall(keys: int, values: int, pairs: int) -> Task:
    """`pairs` pairs of a key and a value all over the text, and each key once more behind its pair, where the
    value is asked for: soon rather than late, by a power law of 1 / gap (MQAR, Arora et al. 2023, "Zoology",
    section 3, whose generator tells all pairs first). Behind a key that is asked for stands a blank."""
    blank = keys + values

    def batch(rng: torch.Generator, samples: int, size: int) -> Batch:
        keys_BP = torch.rand(samples, keys, generator=rng).argsort(1)[:, :size]
        values_BP = keys + torch.randint(values, (samples, size), generator=rng)
        # Times in a text of length 1; in their order the 2P events fill it.
        told_BP = torch.rand(samples, size, generator=rng)
        gaps_BP = (2 * size) ** -torch.rand(samples, size, generator=rng)
        events_BE = torch.cat((told_BP, told_BP + gaps_BP), 1).argsort(1)
        pairs_BE, told_BE = events_BE % size, events_BE < size
        values_BE = values_BP.gather(1, pairs_BE)
        behind_BE = values_BE.masked_fill(~told_BE, blank)
        tokens = torch.stack((keys_BP.gather(1, pairs_BE), behind_BE), 2).flatten(1)
        answers = torch.full_like(tokens, UNASKED)
        answers[:, 0::2] = values_BE.masked_fill(told_BE, UNASKED)
        return tokens, answers

    return Task(keys + values + 1, 4 * pairs, 4, pairs, batch, lambda rng, n: batch(rng, n, pairs))


def phonebook(letters: int, digits: int, entries: int) -> Task:
    """A book of names of two letters with numbers of two digits, then each name again in another order,
    its number asked for digit by digit (Waleffe et al. 2024, "An empirical study of Mamba-based language
    models", section 3.3, which asks for one name)."""

    def batch(rng: torch.Generator, samples: int, size: int) -> Batch:
        names_BE = torch.rand(samples, letters**2, generator=rng).argsort(1)[:, :size]
        numbers_BE2 = letters + torch.randint(digits, (samples, size, 2), generator=rng)
        names_BE2 = torch.stack((names_BE // letters, names_BE % letters), 2)
        book_BE4 = torch.cat((names_BE2, numbers_BE2), 2)
        order = torch.rand(samples, size, generator=rng).argsort(1)
        again_BE4 = book_BE4.gather(1, order[..., None].expand(-1, -1, 4))
        answers_BE4 = torch.full_like(again_BE4, UNASKED)
        answers_BE4[..., 1:3] = again_BE4[..., 2:]
        tokens = torch.cat((book_BE4, again_BE4), 1).flatten(1)
        unasked = torch.full((samples, 4 * size), UNASKED)
        return tokens, torch.cat((unasked, answers_BE4.flatten(1)), 1)

    return Task(letters + digits, 8 * entries, 2, entries, batch, lambda rng, n: batch(rng, n, entries))


def permuted_digits() -> Task:
    """Digits of 8 x 8 pixels, read pixel by pixel in one random order, named behind the last one (as
    permuted MNIST; Le, Jaitly and Hinton 2015). The last 397 are held out; `size` means nothing."""
    pixels, names = _digits()
    pixels = pixels[:, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    answers = torch.full_like(pixels, UNASKED)
    answers[:, -1] = names
    n = len(pixels) - HELD_OUT

    def batch(rng: torch.Generator, samples: int, size: int) -> Batch:
        del size
        rows = torch.randint(n, (samples,), generator=rng)
        return pixels[rows], answers[rows]

    return Task(PIXEL_VALUES, 64, 1, 1, batch, lambda rng, samples: (pixels[n:], answers[n:]))  # noqa: ARG005


def text(files: list[Path], length: int) -> Task:
    """The next byte of English, everywhere; the last tenth of the text is held out. The score is the loss."""
    whole = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in files)), dtype=torch.uint8)
    cut = len(whole) * 9 // 10
    known, unknown = whole[:cut], whole[cut:]

    def pieces(source: Tensor, rng: torch.Generator, samples: int) -> Batch:
        starts = torch.randint(len(source) - length, (samples, 1), generator=rng)
        piece = source[starts + torch.arange(length + 1)].long()
        return piece[:, :-1], piece[:, 1:]

    return Task(
        256,
        length,
        1,
        1,
        lambda rng, samples, size: pieces(known, rng, samples),  # noqa: ARG005
        lambda rng, samples: pieces(unknown, rng, samples),
        loss=True,
    )


def _asked_again(keys_BP: Tensor, values_BP: Tensor) -> Batch:
    """key value key value …; asked for is the value of each key that stood further left."""
    tokens = torch.stack((keys_BP, values_BP), 2).flatten(1)
    before = (keys_BP[:, :, None] == keys_BP[:, None, :]).tril(-1).any(-1)
    answers = torch.full_like(tokens, UNASKED)
    answers[:, 0::2] = torch.where(before, values_BP, UNASKED)
    return tokens, answers


def _digits() -> tuple[Tensor, Tensor]:
    """Pixels (1797,64) and digits (1797,)."""
    with gzip.open(DIGITS, "rt") as lines:
        rows = torch.tensor([[int(float(cell)) for cell in row] for row in csv.reader(lines)])
    return rows[:, :64], rows[:, 64]
