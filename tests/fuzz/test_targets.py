"""Every target on its corpus, and on changes of it for a second or so; longer by `python -m tests.fuzz`."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import CORPUS, changed
from tests.fuzz.targets import TARGETS, corpus

EXAMPLES = {"job": 25, "job_json": 60, "token": 60, "trace": 100}
"""Of readers that take milliseconds; others 200."""


def test_every_target_has_a_corpus_and_every_corpus_a_target() -> None:
    assert {d.name for d in CORPUS.iterdir()} == set(TARGETS)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_corpus_breaks_nothing(name: str) -> None:
    files = list(corpus(name))
    assert files
    for _, data in files:
        TARGETS[name](data)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_changes_of_the_corpus_break_nothing(name: str) -> None:
    seeds = [data for _, data in corpus(name)]

    @settings(max_examples=EXAMPLES.get(name, 200), deadline=None, database=None)
    @given(st.randoms(use_true_random=False) | st.binary(max_size=200))
    def holds(source: random.Random | bytes) -> None:
        TARGETS[name](source if isinstance(source, bytes) else changed(source, seeds))

    holds()
