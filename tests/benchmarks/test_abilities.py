"""The tasks of `abilities.py` against what a reader of the tokens would answer; how claims are judged."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from scipy.stats import permutation_test
from torch import Tensor

from tests.benchmarks import ability_tasks
from tests.benchmarks.abilities import LEAST_MARGIN, STUDIES, Claim, by_chance, judged
from tests.benchmarks.ability_tasks import UNASKED, Task
from tests.benchmarks.ability_training import Recipe, built, trained

TEXT = Path(__file__).parents[1] / "data" / "text.txt"
TASKS = {
    "recall": ability_tasks.associative_recall(keys=5, values=3, pairs=9),
    "multi_query": ability_tasks.multi_query_recall(keys=12, values=10, pairs=8),
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
def test_the_value_told_with_a_key_is_asked_for_once_behind_it(size: int) -> None:
    tokens, answers = TASKS["multi_query"].batch(rng(), 50, size)
    assert tokens.shape[1] == 4 * size
    for row, answered in zip(tokens.tolist(), answers.tolist(), strict=True):
        told: dict[int, int] = {}
        for key, behind, answer in zip(row[::2], row[1::2], answered[::2], strict=True):
            assert key in range(12)
            assert answer == told.get(key, UNASKED)
            assert behind == 22 if key in told else behind in range(12, 22)
            told.setdefault(key, behind)
        assert len(told) == size
        assert answered[1::2] == [UNASKED] * 2 * size


def test_gaps_of_queries_follow_a_power_law() -> None:
    """As many from 4 to 7 events as from 32 to 63; the text's end takes some of the far ones."""
    tokens, _ = ability_tasks.multi_query_recall(keys=256, values=2, pairs=256).batch(rng(), 40, 256)
    told_asked = tokens[:, ::2].argsort(dim=1, stable=True).view(40, 256, 2)
    gaps = (told_asked[..., 1] - told_asked[..., 0]).flatten()
    near, far = (((gaps >= low) & (gaps < 2 * low)).double().mean() for low in (4, 32))
    assert 0.9 < near / far < 1.3


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


def test_a_claim_holds_if_its_gap_is_not_by_chance() -> None:
    scores = {"good": [0.9, 0.8, 0.7], "fair": [0.7, 0.75, 0.7], "bad": [0.5, 0.6, 0.4]}
    assert judged(Claim(("good",), ("bad",)), scores, lower=False).holds
    assert judged(Claim(("good", "fair"), ("bad",)), scores, lower=False).gap == pytest.approx(43 / 60 - 0.5)
    assert judged(Claim(("bad",), ("good",)), scores, lower=True).holds
    assert not judged(Claim(("bad",), ("good",)), scores, lower=False).holds
    assert not judged(Claim(("good", "fair"), ("fair",)), scores, lower=False).holds
    assert judged(Claim(("fair",), ("good",), equal=True), scores, lower=False).holds
    assert not judged(Claim(("bad",), ("fair",), equal=True), scores, lower=False).holds
    close = {"a": [0.50], "b": [0.50 + LEAST_MARGIN / 2], "c": [0.50 + 2 * LEAST_MARGIN]}
    assert not judged(Claim(("b",), ("a",)), close, lower=False).holds
    assert judged(Claim(("c",), ("a",)), close, lower=False).holds, "one seed: by the margin alone"
    assert judged(Claim(("a",), ("b",), equal=True), close, lower=False).holds


def test_what_chance_does_is_scipys() -> None:
    good, bad = (torch.rand(5, generator=rng(), dtype=torch.float64).add(x).tolist() for x in (0.2, 0.0))
    bad = [x * 0.9 for x in bad]
    theirs = permutation_test((good, bad), lambda a, b: sum(a) / 5 - sum(b) / 5, alternative="greater")
    assert by_chance(good, bad) == pytest.approx(theirs.pvalue)
    assert 0 < theirs.pvalue < 1


def test_studies_judge_what_they_train() -> None:
    for study in STUDIES.values():
        named = {name for claim in study.claims for name in (*claim.better, *claim.worse)}
        assert named == set(study.recipes)
