"""The proof holds for a run that went back and forth, and finds whatever is wrong with the entries."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.ledger_proof import Entry, Epoch, prove
from scheduler.plan import Plan
from scheduler.samples import SampleError

BATCH, N_SAMPLES, SEED = 8, 20, 3
PLAN = Plan(1, (("a",), ("b",)), ((0, 4),), (3, 1), "1f1b", micro_batch=2)


def a_run(steps: int) -> list[Entry]:
    return [Entry(1, s, 1, s * BATCH, (s + 1) * BATCH) for s in range(steps)]


def defects(entries: list[Entry], plan: Plan = PLAN) -> tuple[str, ...]:
    return prove(entries, {1: plan}, BATCH, SEED, N_SAMPLES).defects


@settings(deadline=None)
@given(st.integers(0, 30))
def test_every_run_that_kept_to_its_order_is_exact(steps: int) -> None:
    proof = prove(a_run(steps), {1: PLAN}, BATCH, SEED, N_SAMPLES)
    assert proof.holds
    assert proof.steps == steps
    whole, rest = divmod(steps * BATCH, N_SAMPLES)
    assert [e for e in proof.epochs if e.complete] == [Epoch(i, 20, 20, True) for i in range(whole)]
    assert [e.once for e in proof.epochs if not e.complete] == ([rest] if rest else [])


def test_a_step_that_counts_twice_names_the_sample() -> None:
    entries = a_run(5)
    entries.append(replace(entries[2], attempt=2))
    found = defects(entries)
    assert "step 2 counts twice: in attempt 1 and in attempt 2" in found
    assert any("was used 2 times" in x for x in found)


def test_a_step_that_is_missing_leaves_samples_unused() -> None:
    entries = a_run(5)
    del entries[1]
    found = defects(entries)
    assert "step 1 is missing, though later ones count" in found
    assert any("was never used (8 samples not)" in x for x in found)


@pytest.mark.parametrize("shift", [-1, 1, 8])
def test_a_step_with_anothers_samples_is_found(shift: int) -> None:
    entries = a_run(5)
    e = entries[2]
    assert e.first is not None
    assert e.stop is not None
    entries[2] = replace(e, first=e.first + shift, stop=e.stop + shift)
    found = defects(entries)
    assert found[0].startswith("step 2: found positions")
    assert any("used 2 times" in x for x in found)


def test_a_step_without_samples_and_a_plan_that_is_not_there_or_takes_too_few() -> None:
    entries = a_run(3)
    entries[1] = replace(entries[1], first=None, stop=None)
    assert "step 1: nothing says which samples it consumed" in defects(entries)
    assert prove(a_run(3), {}, BATCH, SEED, N_SAMPLES).defects == (
        "plan 1, under which 3 steps ran, is not in the store",
    )
    assert defects(a_run(1), replace(PLAN, micro_batches=(1, 1))) == (
        "plan 1, under which 1 step ran: its replicas take 4 samples, required 8",
    )


def test_nothing_can_be_proved_of_no_samples() -> None:
    with pytest.raises(SampleError):
        prove(a_run(1), {1: PLAN}, BATCH, SEED, 0)
