"""Whoever goes leaves a code behind, the one that is true."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import nan

import pytest

from coordinator import commands as c
from coordinator import events as e
from scheduler.bad_numbers import STRIKES, Conduct
from scheduler.departures import Departure, departure_from_wire
from scheduler.exit_codes import ExitCode
from scheduler.spot_checks import SpotCheck

from .world import World, with_options


def four() -> World:
    w = World(with_options(steps=60, min_workers=4), replicas=2, least=2)
    w.join("a", "b", "c", "d")
    w.settle(until="running")
    return w


def spoil(w: World) -> None:
    """d's gradients are no numbers in the step that is to be done."""
    for name in w.state.ranks:
        vote = w.a_step(name, w.state.done)
        w.feed(replace(vote, own_square=nan) if name == "d" else replace(vote, own_square=1.0))


def silent(w: World) -> None:
    for _ in range(12):
        for name in set(w.state.members) - {"d"}:
            w.feed(e.Heartbeat(name))
        w.feed(e.Tick(), after_s=2.0)


def disagree(w: World) -> None:
    """What d sent in a step is not what the other replica of its stage makes of it."""
    plan = w.state.plan
    assert plan is not None
    d = plan.rank_of_device("d")
    assert d is not None
    (other,) = set(plan.group(plan.stage_of(d))) - {d}
    check = SpotCheck(w.state.done, plan.stage_of(d), plan.replica_of(d), 0, (other,))
    w.state = replace(w.state, check=check)
    for name in w.state.ranks:
        vote = w.a_step(name, w.state.done)
        w.feed(replace(vote, check_error=0.5) if name == plan.device(other) else vote)


def unfit(w: World) -> None:
    profiled = w.state.profiles["d"]
    w.feed(replace(profiled, data_digest="another"))
    w.feed(e.Disconnected("d", "it was stopped"))


def leaving(code: Departure) -> Callable[[World], None]:
    def leave(w: World) -> None:
        w.feed(e.Leaving("d", "told to", code))
        w.settle(until="loading")
        w.settle()

    return leave


HOWS: dict[Departure, Callable[[World], object]] = {
    Departure.SILENT: silent,
    Departure.CONNECTION: lambda w: w.feed(e.Disconnected("d", "reset")),
    Departure.LEFT: leaving(Departure.LEFT),
    Departure.NOTICE: leaving(Departure.NOTICE),
    Departure.FAILED: lambda w: w.feed(e.Failed("d", ExitCode.DEVICE, "fell off the bus", fatal=True)),
    Departure.BAD_NUMBERS: spoil,
    Departure.DISAGREED: disagree,
    Departure.UNFIT: unfit,
}


@pytest.mark.parametrize("code", HOWS, ids=lambda c: c.words)
def test_every_departure_has_its_code_in_the_state_and_for_the_log(code: Departure) -> None:
    w = four()
    HOWS[code](w)
    assert w.state.departed["d"].code is code
    (evicted,) = [x for x in w.given if isinstance(x, c.Evict) and x.worker == "d"]
    assert evicted.code is code
    assert evicted.reason == w.state.departed["d"].reason


def test_the_last_of_several_strikes_is_a_quarantine() -> None:
    w = four()
    w.state = replace(w.state, conduct=Conduct({"d": tuple(range(STRIKES - 1))}), done=STRIKES)
    w.state = replace(w.state, granted=STRIKES + 2)
    spoil(w)
    assert w.state.departed["d"].code is Departure.QUARANTINED


def test_who_goes_when_the_run_is_over_was_released() -> None:
    w = four()
    w.settle()
    w.feed(e.Disconnected("d", "reset"))
    assert w.state.departed["d"].code is Departure.RELEASED


def test_a_coordinator_that_stood_still_suspects_nobody() -> None:
    """What workers sent meanwhile waits to be read: their silence was its own."""
    w = four()
    w.now += 60.0
    w.feed(e.Overslept(60.0), after_s=0.0)
    w.feed(e.Tick())
    assert set(w.state.members) == {"a", "b", "c", "d"}
    w.feed(e.Tick(), after_s=60.0)
    assert not w.state.members


def test_a_code_of_a_later_version_is_unknown() -> None:
    assert departure_from_wire(Departure.OVERDUE) is Departure.OVERDUE
    assert departure_from_wire(9999) is Departure.UNKNOWN
    assert len({d.words for d in Departure}) == len(Departure)
