"""What the replicas of a stage share, where that is open: each way is planned, and the shorter step is taken.

And what to do where they were to share the batch and no plan fits in memory: a part of every sequence needs
less of it. The search is handed in; of it nothing is known but what it finds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from scheduler.combinations import why_undivided
from scheduler.job import JobSpec
from scheduler.partition import DoesNotFit
from scheduler.plan import PlanError
from scheduler.sequence import Split
from scheduler.units import duration

if TYPE_CHECKING:
    from scheduler.plan_search import Chosen, Ways

Search = Callable[[JobSpec], "tuple[Ways, Chosen]"]

_SHARE: dict[Split, str] = {"batch": "share the batch", "sequence": "share every sequence"}
_OTHER: dict[Split, str] = {"batch": "sharing every sequence", "sequence": "sharing the batch"}


class Searched(NamedTuple):
    """What a plan was chosen from."""

    ways: Ways
    chosen: Chosen
    why: str = ""
    """Replicas share what they do because of this; '': the job says what."""


def search_splits(job: JobSpec, search: Search) -> Searched:
    """The shortest step under what the job lets replicas share. Raises what `search` raises."""
    if len(job.splits) > 1:
        return _shorter(job, search)
    try:
        return Searched(*search(job.sharing(job.splits[0])), _not_open(job))
    except DoesNotFit as unfit:
        if job.splits != ("batch",) or why_undivided(job):
            raise
        return _instead(job, search, unfit)


def _shorter(job: JobSpec, search: Search) -> Searched:
    found: dict[Split, tuple[Ways, Chosen]] = {}
    errors: dict[Split, PlanError] = {}
    for split in job.splits:
        try:
            found[split] = search(job.sharing(split))
        except PlanError as e:
            errors[split] = e
    if not found:
        raise _with(errors["batch"], f"nor can replicas share every sequence: {errors['sequence']}")
    best = min(found, key=lambda split: found[split][1].plan.predicted_step_s)
    ways, chosen = found[best]
    if errors:
        instead = f"cannot be: {next(iter(errors.values()))}"
    else:
        (other,) = (c for split, (_, c) in found.items() if split != best)
        more_s = other.plan.predicted_step_s - chosen.plan.predicted_step_s
        shape = f"{other.plan.n_stages} x {other.plan.n_replicas}"
        instead = f"takes {duration(other.plan.predicted_step_s)} ({shape}), {duration(more_s)} more"
    return Searched(ways, chosen, f"Replicas {_SHARE[best]}: {_OTHER[best]} {instead}.")


def _not_open(job: JobSpec) -> str:
    """Why there was nothing to choose, where the job left it open."""
    if job.parallelism == "auto" or job.parallelism.split != "auto":
        return ""
    return f"Replicas share the batch: sequences cannot be divided, because {why_undivided(job)}."


def _instead(job: JobSpec, search: Search, unfit: DoesNotFit) -> Searched:
    """Shared sequences where a shared batch does not fit: taken if the job leaves all to the planner, else
    named as the way out."""
    try:
        ways, chosen = search(job.sharing("sequence"))
    except PlanError:
        raise unfit from None
    shape = f"{chosen.plan.n_stages} x {chosen.plan.n_replicas}"
    if job.parallelism != "auto":
        raise _with(
            unfit,
            f"or let replicas share every sequence (parallelism.split: sequence), which fits as {shape}",
        ) from None
    return Searched(ways, chosen, f"Replicas {_SHARE['sequence']}: {_OTHER['sequence']}, {unfit}.")


def _with(error: PlanError, more: str) -> PlanError:
    error.args = (f"{error}; {more}",)
    return error
