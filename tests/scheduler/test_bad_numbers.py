"""Whose numbers are bad: the rank that made them, not those that were sent them, and not an honest step."""

from __future__ import annotations

import random
from functools import cache
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.bad_numbers import (
    FACTOR,
    LEAST_HISTORY,
    MOST_HISTORY,
    STRIKES,
    STRIKES_WITHIN,
    Conduct,
    History,
    Report,
    Verdict,
    decide,
    judge,
)

STAGES, REPLICAS = 3, 3
NAMES = tuple(f"w{i}" for i in range(STAGES * REPLICAS))


def layers(stage: int) -> tuple[int, int]:
    """Three a stage."""
    return 3 * stage, 3 * stage + 3


def step_of(rng: random.Random, scale: float = 1.0, **odd: float) -> list[Report]:
    """A step whose norms scatter by a third or so; `r4=nan` makes rank 4's own gradients' square that."""
    reports = []
    for rank in range(STAGES * REPLICAS):
        norm = scale * (1.0 + rank % STAGES) * rng.lognormvariate(0.0, 0.3)
        square = odd.get(f"r{rank}", norm * norm)
        reports.append(Report(rank, rank // STAGES, rank % STAGES, layers(rank % STAGES), square))
    return reports


@cache
def history(steps: int = 40, seed: int = 1) -> History:
    found, rng = History(), random.Random(seed)
    for _ in range(steps):
        found = found.add(step_of(rng))
    return found


@given(st.integers(0, 10_000))
@settings(max_examples=200)
def test_honest_steps_are_never_accused(seed: int) -> None:
    rng = random.Random(seed)
    assert judge(step_of(rng), history()).kind == "fine"
    assert judge(step_of(rng, scale=3.0), history()).kind == "fine"


@pytest.mark.parametrize("value", [nan, inf, -1.0])
@pytest.mark.parametrize("rank", range(STAGES * REPLICAS))
def test_the_rank_that_made_it_is_named_with_its_stage(rank: int, value: float) -> None:
    verdict = judge(step_of(random.Random(7), **{f"r{rank}": value}), History())
    assert (verdict.kind, verdict.ranks) == ("not finite", (rank,))
    assert f"rank {rank} (stage {rank % STAGES}, replica {rank // STAGES})" in verdict.reason


def test_ranks_that_were_sent_a_nan_are_not_to_blame() -> None:
    """Rank 1 broke in its forward: 2 got its activation, 1 the gradient of that, 0 the gradient of this."""
    reports = step_of(random.Random(7))
    reports[0] = Report(0, 0, 0, layers(0), nan, bad_gradient=True)
    reports[1] = Report(1, 0, 1, layers(1), nan, bad_gradient=True)
    reports[2] = Report(2, 0, 2, layers(2), nan, bad_activation=True)
    assert judge(reports, history()).ranks == (1,)


def test_a_nan_that_is_born_in_the_backward_is_found_at_its_source() -> None:
    reports = step_of(random.Random(7))
    reports[0] = Report(0, 0, 0, layers(0), nan, bad_gradient=True)
    reports[1] = Report(1, 0, 1, layers(1), nan)
    assert judge(reports, history()).ranks == (1,)


def test_one_of_each_broken_replica_is_named() -> None:
    reports = step_of(random.Random(7), r2=nan, r3=inf)
    assert judge(reports, history()).ranks == (2, 3)


def test_when_every_replica_has_it_the_run_diverges() -> None:
    verdict = judge(step_of(random.Random(7), r0=nan, r3=nan, r6=inf), history())
    assert (verdict.kind, verdict.ranks) == ("diverged", ())


@pytest.mark.parametrize("times", [30.0, 1e6, 1 / 30.0, 0.0])
def test_a_norm_far_off_the_stages_history_is_named(times: float) -> None:
    verdict = judge(step_of(random.Random(7), r4=(2.0 * times) ** 2), history(100))
    assert (verdict.kind, verdict.ranks) == ("far off", (4,))
    assert "times the median of 100 steps" in verdict.reason


def test_a_step_that_is_hard_for_all_replicas_is_nobodys_fault() -> None:
    assert judge(step_of(random.Random(7), scale=5 * FACTOR), history()).kind == "fine"


def test_nothing_is_far_off_before_there_is_a_history() -> None:
    odd = step_of(random.Random(7), r4=1e12)
    assert judge(odd, history(LEAST_HISTORY - 1)).kind == "fine"
    assert judge(odd, history(LEAST_HISTORY)).kind == "far off"


def test_old_norms_are_forgotten_and_few_bad_ones_do_not_move_the_scale() -> None:
    assert {len(n) for n in history(MOST_HISTORY + 50).norms.values()} == {MOST_HISTORY}
    rng, found = random.Random(3), history(60)
    for _ in range(6):
        found = found.add(step_of(rng, scale=1e4))
    assert judge(step_of(rng, r4=(2.0 * 40) ** 2), found).ranks == (4,)


def test_unequal_shares_are_not_mistaken_for_bad_numbers() -> None:
    one, twelve = (
        Report(0, 0, 0, layers(0), 4.0, micro_batches=1),
        Report(1, 1, 0, layers(0), 576.0, micro_batches=12),
    )
    assert one.norm == twelve.norm
    assert judge([one, twelve], History({layers(0): (2.0,) * 20})).kind == "fine"


def test_a_stage_is_not_held_to_the_norms_of_other_layers() -> None:
    """A new plan may leave it a tenth of the gradient; the layers that it had before keep their history."""
    found = History()
    for _ in range(2 * LEAST_HISTORY):
        found = found.add([Report(0, 0, 0, (0, 8), 1.0)])
    for _ in range(LEAST_HISTORY):
        small = [Report(0, 0, 0, (0, 5), 1e-4), Report(1, 0, 1, (5, 8), 1.0)]
        assert judge(small, found).kind == "fine"
        found = found.add(small)
    assert judge([Report(0, 0, 0, (0, 5), 1.0), Report(1, 0, 1, (5, 8), 1.0)], found).ranks == (0,)
    assert judge([Report(0, 0, 0, (0, 8), 1e-4)], found).ranks == (0,)


# ---- what follows

FAR = Verdict("far off", (4,), "rank 4 is far off")
NAN = Verdict("not finite", (4,), "rank 4 made a NaN")


def test_the_step_is_done_again_without_it_and_then_it_is_quarantined() -> None:
    conduct, actions = Conduct(), []
    for step in range(10, 10 + STRIKES):
        decision, conduct = decide(NAN, NAMES, REPLICAS, step, conduct, repeated=False)
        actions.append((decision.action, decision.workers))
    assert actions == [("repeat without", ("w4",))] * (STRIKES - 1) + [("quarantine", ("w4",))]
    assert "w4 was at fault 3 times" in decision.reason


def test_faults_long_ago_and_twice_in_a_step_count_as_they_should() -> None:
    conduct = Conduct()
    for step in (0, STRIKES_WITHIN, 2 * STRIKES_WITHIN):
        decision, conduct = decide(NAN, NAMES, REPLICAS, step, conduct, repeated=False)
        assert decision.action == "repeat without"
    for _ in range(5):
        decision, conduct = decide(NAN, NAMES, REPLICAS, 9000, conduct, repeated=True)
    assert conduct.strikes("w4", 9000) == 1


def test_with_one_replica_the_same_again_is_the_data_if_it_is_a_number() -> None:
    for verdict, then in ((FAR, "commit"), (NAN, "diverged")):
        first, conduct = decide(verdict, NAMES, 1, 5, Conduct(), repeated=False)
        second, _ = decide(verdict, NAMES, 1, 5, conduct, repeated=True)
        assert (first.action, second.action) == ("repeat", then)


def test_what_is_fine_is_committed_and_what_diverges_ends() -> None:
    fine, _ = decide(Verdict("fine"), NAMES, REPLICAS, 1, Conduct(), repeated=False)
    over, _ = decide(Verdict("diverged", (), "all"), NAMES, REPLICAS, 1, Conduct(), repeated=False)
    assert (fine.action, over.action, over.reason) == ("commit", "diverged", "all")
