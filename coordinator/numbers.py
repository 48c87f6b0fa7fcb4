"""The votes of a step as reports of each rank's numbers, for `scheduler/bad_numbers.py` to judge. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.bad_numbers import Report
from scheduler.plan import Plan

from .events import StepVote


def reports(plan: Plan, votes: Mapping[str, StepVote]) -> list[Report]:
    """One a rank; every rank must have voted."""
    found = []
    for rank in range(plan.n_ranks):
        vote, replica, stage = votes[plan.device(rank)], plan.replica_of(rank), plan.stage_of(rank)
        share, own = plan.micro_batches[replica], vote.own_square
        found.append(Report(rank, replica, stage, own, share, vote.bad_activation, vote.bad_gradient))
    return found
