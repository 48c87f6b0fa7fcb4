"""What a rank votes of its own numbers: enough to tell who broke a step, though all sums are broken."""

from __future__ import annotations

from math import isfinite, isnan

import pytest
import torch

from scheduler.bad_numbers import History, Report, judge
from worker.agreement import Committee, Vote
from worker.step import Diverged

from .pipelines import Rank, in_threads, make_job, make_plan, make_ranks


@pytest.fixture
def votes(monkeypatch: pytest.MonkeyPatch) -> dict[int, Vote]:
    """By rank, as the committee is told them."""
    found: dict[int, Vote] = {}
    vote = Committee.vote

    def listen(self: Committee, rank: int, cast: Vote) -> float:
        found[rank] = cast
        return vote(self, rank, cast)

    monkeypatch.setattr(Committee, "vote", listen)
    return found


def reports(votes: dict[int, Vote], stages: int) -> list[Report]:
    return [
        Report(
            rank,
            rank // stages,
            rank % stages,
            (rank % stages, rank % stages + 1),
            v.own_square,
            1,
            v.bad_activation,
            v.bad_gradient,
        )
        for rank, v in sorted(votes.items())
    ]


def breaks(rank: Rank) -> None:
    with pytest.raises(Diverged):
        rank.run_step(0)


def test_own_squares_of_replicas_differ_where_their_sums_do_not(votes: dict[int, Vote]) -> None:
    job = make_job()
    in_threads(make_ranks(job, make_plan(job, 2, (2, 2))), lambda rank: rank.run_step(0))
    assert votes[0].squares == votes[2].squares
    assert votes[0].own_square != votes[2].own_square
    assert all(v.own_square > 0 and not (v.bad_activation or v.bad_gradient) for v in votes.values())
    assert judge(reports(votes, 2), History()).kind == "fine"


def test_with_one_replica_it_is_the_sum_of_the_layers(votes: dict[int, Vote]) -> None:
    job = make_job("llama")
    in_threads(make_ranks(job, make_plan(job, 2, (4,))), lambda rank: rank.run_step(0))
    assert all(v.own_square == pytest.approx(sum(v.squares), rel=1e-12) for v in votes.values())


def test_a_tied_head_counts_with_one_replica_as_with_two(votes: dict[int, Vote]) -> None:
    """Else a run that loses a replica takes the last stage's next step for a broken one."""
    job, norms = make_job(), []
    for replicas in ((2, 2), (4,)):
        in_threads(make_ranks(job, make_plan(job, 2, replicas)), lambda rank: rank.run_step(0))
        norms.append([Report(r, 0, r, (r, r + 1), votes[r].own_square, replicas[0]).norm for r in (0, 1)])
    for two, one in zip(*norms, strict=True):
        assert 0.5 < one / two < 1.0  # of other samples: their noise cancels in the sum of more
    assert votes[1].own_square > 1.1 * sum(votes[1].squares)  # whose tied head is counted at the first stage


@pytest.mark.parametrize("broken", [0, 1, 2, 3])
def test_a_rank_with_a_broken_weight_is_found_out(votes: dict[int, Vote], broken: int) -> None:
    """Its NaN reaches every rank of its pipeline, and through the sums the other replica."""
    job = make_job()
    ranks = make_ranks(job, make_plan(job, 2, (2, 2)))
    layer = ranks[broken].stage.layers[-1 if broken % 2 == 0 else 0]
    with torch.no_grad():
        next(layer.parameters()).fill_(float("nan"))
    in_threads(ranks, breaks)
    assert any(isnan(s) for v in votes.values() for s in v.squares)
    other = [v for rank, v in votes.items() if rank // 2 != broken // 2]
    assert all(isfinite(v.own_square) and not (v.bad_activation or v.bad_gradient) for v in other)
    verdict = judge(reports(votes, 2), History())
    assert (verdict.kind, verdict.ranks) == ("not finite", (broken,))
