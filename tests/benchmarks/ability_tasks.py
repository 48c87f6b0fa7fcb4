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
POWER = 0.01
"""Of MQAR's gaps, as published."""
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


def multi_query_recall(keys: int, values: int, pairs: int, length: int) -> Task:
    """`pairs` pairs of a key and a value, then each key once more, and its value asked for: every second
    position behind the pairs may be a query, near ones rather than far ones by a power law. Tokens drawn from
    all stand everywhere else (MQAR, Arora et al. 2023, "Zoology", section 3, as their generator makes it).
    Fewer pairs have a text as much shorter; each second batch has the shortest that takes all queries."""

    def batch(rng: torch.Generator, samples: int, size: int) -> Batch:
        short = bool(torch.randint(2, (), generator=rng))
        return drawn(rng, samples, size, 4 * size if short else length * size // pairs)

    def drawn(rng: torch.Generator, samples: int, size: int, positions: int) -> Batch:
        keys_BP = torch.rand(samples, keys, generator=rng).argsort(1)[:, :size]
        values_BP = keys + torch.rand(samples, values, generator=rng).argsort(1)[:, :size]
        places_BP = 2 * size + 2 * _by_power_law(rng, samples, (positions - 2 * size) // 2, size)
        tokens = torch.randint(keys + values, (samples, positions), generator=rng)
        tokens[:, : 2 * size] = torch.stack((keys_BP, values_BP), 2).flatten(1)
        tokens.scatter_(1, places_BP, keys_BP)
        return tokens, torch.full_like(tokens, UNASKED).scatter_(1, places_BP, values_BP)

    return Task(keys + values, length, 4, pairs, batch, lambda rng, n: drawn(rng, n, pairs, length))


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


def _by_power_law(rng: torch.Generator, samples: int, n: int, drawn: int) -> Tensor:
    """`drawn` of 0 to n - 1, (B,drawn), each drawn of those left with chances as (g + 1)^-0.99: the order of
    exponential times at such rates."""
    rates = torch.arange(1, n + 1) ** (POWER - 1)
    times = -torch.log1p(-torch.rand(samples, n, generator=rng)) / rates
    return times.argsort(1)[:, :drawn]


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
