"""The tasks of `abilities.py` against what a reader of the tokens would answer; how claims are judged."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.benchmarks import ability_tasks
from tests.benchmarks.abilities import LEAST_MARGIN, STUDIES, Claim, judged
from tests.benchmarks.ability_tasks import UNASKED, Task
from tests.benchmarks.ability_training import Recipe, built, trained

TEXT = Path(__file__).parents[1] / "data" / "text.txt"
TASKS = {
    "recall": ability_tasks.associative_recall(keys=5, values=3, pairs=9),
    "multi_query": ability_tasks.multi_query_recall(keys=12, values=10, pairs=8, length=48),
    "phonebook": ability_tasks.phonebook(letters=4, digits=6, entries=7),
    "digits": ability_tasks.permuted_digits(),
    "text": ability_tasks.text([TEXT], length=20),
}
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def looked_up(tokens: list[int], width: int) -> list[int]:
    """Behind each of a row of keys and values of `width` tokens each, what stood there behind the same key
    before; UNASKED where that key is new, or no value comes next."""
    found: dict[tuple[int, ...], list[int]] = {}
    answers = [UNASKED] * len(tokens)
    for at in range(0, len(tokens), 2 * width):
        key, value = tuple(tokens[at : at + width]), tokens[at + width : at + 2 * width]
        if key in found:
            answers[at + width - 1 : at + 2 * width - 1] = found[key]
        found[key] = value
    return answers


@pytest.mark.parametrize(("name", "width"), [("recall", 1), ("phonebook", 2)])
def test_what_is_asked_for_can_be_looked_up_and_nothing_that_can_be_is_left_out(
    name: str, width: int
) -> None:
    tokens, answers = TASKS[name].batch(rng(), 30, TASKS[name].most)
    for row, answered in zip(tokens.tolist(), answers.tolist(), strict=True):
        assert answered == looked_up(row, width)
        assert any(answer != UNASKED for answer in answered)


@pytest.mark.parametrize("size", [4, 8])
def test_the_value_told_with_a_key_is_asked_for_once_behind_all_pairs(size: int) -> None:
    stream = rng()
    batches = [TASKS["multi_query"].batch(stream, 5, size) for _ in range(12)]
    assert {tokens.shape[1] for tokens, _ in batches} == {4 * size, 6 * size}
    rows = [row for tokens, _ in batches for row in tokens.tolist()]
    answers = [row for _, answers in batches for row in answers.tolist()]
    for row, answered in zip(rows, answers, strict=True):
        told = dict(zip(row[: 2 * size : 2], row[1 : 2 * size : 2], strict=True))
        assert len(told) == len(set(told.values())) == size
        assert set(told) <= set(range(12))
        assert set(told.values()) <= set(range(12, 22))
        asked = [at for at, answer in enumerate(answered) if answer != UNASKED]
        assert sorted(row[at] for at in asked) == sorted(told)
        assert all(at >= 2 * size and at % 2 == 0 for at in asked)
        assert [answered[at] for at in asked] == [told[row[at]] for at in asked]


def test_near_queries_are_as_likely_as_a_power_law_says() -> None:
    task = ability_tasks.multi_query_recall(keys=2, values=2, pairs=1, length=10)
    _, answers = task.held_out(rng(), 20_000)
    found = (answers != UNASKED).double().mean(0)[2::2]
    rates = torch.arange(1, 5).double() ** -0.99
    torch.testing.assert_close(found, rates / rates.sum(), atol=0.015, rtol=0)
    assert not (answers != UNASKED)[:, 3::2].any()


def test_names_in_a_book_differ() -> None:
    tokens, _ = TASKS["phonebook"].batch(rng(), 20, 7)
    book, asked = (half.view(20, 7, 4).tolist() for half in tokens.chunk(2, 1))
    for entries, again in zip(book, asked, strict=True):
        assert len({tuple(entry[:2]) for entry in entries}) == 7
        assert sorted(entries) == sorted(again)


def test_digits_are_read_in_one_other_order_and_those_held_out_are_never_seen() -> None:
    with gzip.open(ability_tasks.DIGITS, "rt") as lines:
        drawn = [[int(float(cell)) for cell in line.split(",")] for line in lines][-ability_tasks.HELD_OUT :]
    tokens, answers = TASKS["digits"].held_out(rng(), 0)
    assert answers[:, -1].tolist() == [row[-1] for row in drawn]
    assert (answers[:, :-1] == UNASKED).all()
    columns = torch.tensor(drawn)[:, :-1].T.tolist()
    assert tokens.T.tolist() != columns
    assert sorted(tokens.T.tolist()) == sorted(columns)
    seen, _ = TASKS["digits"].batch(rng(), 4000, 1)
    assert not {tuple(row) for row in tokens.tolist()} & {tuple(row) for row in seen.tolist()}


def test_text_asks_for_the_next_byte_and_holds_out_its_end() -> None:
    whole = TEXT.read_bytes()
    tokens, answers = TASKS["text"].held_out(rng(), 10)
    for row, answered in zip(tokens.tolist(), answers.tolist(), strict=True):
        assert row[1:] == answered[:-1]
        assert whole.rfind(bytes([*row, answered[-1]])) >= len(whole) * 9 // 10


@every_task
def test_a_seed_means_one_stream_of_samples_within_what_the_task_says(task: Task) -> None:
    def drawn(seed: int) -> list[Tensor]:
        stream = rng(seed)
        return [x for size in (task.least, task.most) for x in task.batch(stream, 6, size)]

    first, again, other = drawn(4), drawn(4), drawn(5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    tokens, answers = first[-2:]
    assert tokens.shape == answers.shape
    assert tokens.shape[1] <= task.length
    assert task.held_out(rng(), 6)[0].shape[1] == task.length
    assert max(x.max() for x in first) < task.vocab
    assert tokens.min() >= 0


def test_a_seed_means_one_score() -> None:
    task, recipe = TASKS["recall"], Recipe((("h3 state=4",),), hidden=8, steps=3, samples=4, lr=1e-2)
    assert trained(task, recipe, 0).score == trained(task, recipe, 0).score
    assert trained(task, recipe, 0).score != trained(task, recipe, 1).score


def test_modes_drawn_at_random_are_all_that_differs() -> None:
    recipes = [
        Recipe((("s4d state=8",),), hidden=8, steps=1, samples=1, lr=1e-3, random_modes=random)
        for random in (False, True)
    ]
    hippo, drawn = (dict(built(TASKS["digits"], recipe, 0).named_parameters()) for recipe in recipes)
    different = [name for name in hippo if not torch.equal(hippo[name], drawn[name])]
    assert different == ["1.mixer.ssm.rates"]


def test_a_claim_holds_if_its_gap_is_larger_than_any_spread() -> None:
    scores = {"good": [0.9, 0.8], "fair": [0.7, 0.7], "bad": [0.5, 0.6]}
    assert judged(Claim(("good",), ("bad",)), scores, lower=False).holds
    assert judged(Claim(("good", "fair"), ("bad",)), scores, lower=False).gap == pytest.approx(0.15)
    assert not judged(Claim(("bad",), ("good",)), scores, lower=False).holds
    assert not judged(Claim(("fair",), ("good",), equal=True), scores, lower=False).holds
    assert judged(Claim(("bad",), ("good",)), scores, lower=True).holds
    close = {"a": [0.50], "b": [0.50 + LEAST_MARGIN / 2]}
    assert not judged(Claim(("b",), ("a",)), close, lower=False).holds
    assert judged(Claim(("a",), ("b",), equal=True), close, lower=False).holds


def test_studies_judge_what_they_train() -> None:
    for study in STUDIES.values():
        named = {name for claim in study.claims for name in (*claim.better, *claim.worse)}
        assert named == set(study.recipes)
