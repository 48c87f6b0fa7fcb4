"""How often samples come again: the figures against runs through the real order of samples."""

from __future__ import annotations

from collections import OrderedDict

import pytest

from compression.spec import AcsgdSpec, FeedbackSpec, MomentumSpec
from scheduler.samples import step_samples
from scheduler.visits import CHANGES, UNKNOWN, Visits, acsgd_bytes, flat_bytes

SPEC = AcsgdSpec()
SHAPE = (2, 16, 64)


def seen(n_samples: int, batch: int, steps: int, n_replicas: int, room: int) -> tuple[float, float]:
    """(share of visits that were first, or forgotten since; samples that a replica has met in the end)."""
    buffers: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(n_replicas)]
    met: list[set[int]] = [set() for _ in range(n_replicas)]
    first, share = 0, batch // n_replicas
    for step in range(steps):
        for at, sample in enumerate(step_samples(3, n_samples, batch, step)):
            buffer = buffers[at // share]
            first += sample not in buffer
            buffer[sample] = None
            buffer.move_to_end(sample)
            met[at // share].add(sample)
            if len(buffer) > room:
                buffer.popitem(last=False)
    return first / (steps * batch), sum(map(len, met)) / n_replicas


@pytest.mark.parametrize("n_replicas", [1, 2, 4])
@pytest.mark.parametrize("epochs", [0.5, 1, 3, 10])
def test_first_visits_and_samples_met_are_those_of_a_run(n_replicas: int, epochs: float) -> None:
    n, batch = 400, 8
    steps = int(epochs * n / batch)
    visits = Visits(n, steps * batch)
    first, met = seen(n, batch, steps, n_replicas, room=n)
    assert visits.first_share(n_replicas, room=n) == pytest.approx(first, abs=0.02)
    assert visits.met(n_replicas) == pytest.approx(met, rel=0.03)


def test_what_finds_no_room_is_as_good_as_new() -> None:
    n, batch, steps = 400, 8, 500
    visits = Visits(n, steps * batch)
    shares = [visits.first_share(1, room) for room in (0, 100, 200, 400, 800)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0
    assert shares[-1] == shares[-2] == pytest.approx(0.1)
    for room in (100, 200, 300, 380):
        assert visits.first_share(1, room) == pytest.approx(seen(n, batch, steps, 1, room)[0], abs=0.02)
    for replicas in (2, 4):
        found = seen(n, batch, steps, replicas, 200)[0]
        assert visits.first_share(replicas, 200) == pytest.approx(found, abs=0.04)


def test_bytes_are_the_average_over_the_run_and_of_an_unknown_run_those_of_later_visits() -> None:
    later, first = SPEC.wire_bytes(SHAPE, 4), SPEC.first_wire_bytes(SHAPE, 4)
    assert acsgd_bytes(SPEC, SHAPE, 4, UNKNOWN, 1) == later
    assert acsgd_bytes(SPEC, SHAPE, 4, Visits(100, 100), 1) == first
    assert acsgd_bytes(SPEC, SHAPE, 4, Visits(100, 1000), 1) == round(0.1 * first + 0.9 * later)
    assert acsgd_bytes(SPEC, SHAPE, 4, Visits(100, 1000), 4) > acsgd_bytes(
        SPEC, SHAPE, 4, Visits(100, 1000), 1
    )


def test_buffers_grow_with_the_samples_met_up_to_their_budget() -> None:
    each = SPEC.slot_bytes(SHAPE)
    assert each == 2 * 16 * 64
    assert Visits(100, 1000).buffer_bytes(SPEC, SHAPE, 1) == 100 * each
    assert Visits(100, 50).buffer_bytes(SPEC, SHAPE, 2) == 25 * each
    assert Visits(10**9, 10**10).buffer_bytes(SPEC, SHAPE, 1) == SPEC.budget_bytes
    assert Visits(100, 1000).buffer_bytes(AcsgdSpec(memory="disk"), SHAPE, 1) == 0


def test_an_activation_is_taken_to_change_less_the_more_often_it_comes() -> None:
    assert [Visits(100, 100 * n).change for n in (0, 1, 2, 3)] == [1.0, 1.0, CHANGES[0], CHANGES[0]]
    assert UNKNOWN.change == 1.0
    assert Visits(100, 600).change == pytest.approx(sum(CHANGES) / 5)
    assert Visits(100, 100 * 1006).change == pytest.approx(CHANGES[-1], rel=0.01)


def test_momentum_s_warm_up_is_paid_for_so_feedback_beats_it_at_every_width() -> None:
    spec, n = MomentumSpec(bits=4, warmup_steps=25), 6400
    later = spec.wire_bytes((n,), 4)
    assert flat_bytes(spec, n, 4, UNKNOWN) == later
    assert flat_bytes(spec, n, 4, Visits(0, 0, steps=100)) == round(0.25 * 4 * n + 0.75 * later)
    assert flat_bytes(spec, n, 4, Visits(0, 0, steps=10)) == 4 * n
    assert flat_bytes(FeedbackSpec(4), n, 4, Visits(0, 0, steps=10)) == later
    for bits in range(1, 9):  # why `auto` leaves it to the job
        momentum, feedback = MomentumSpec(bits, warmup_steps=1), FeedbackSpec(bits)
        assert momentum.relative_error((n,)) == feedback.relative_error((n,))
        assert flat_bytes(momentum, n, 4, Visits(0, 0, 1000)) > flat_bytes(feedback, n, 4, Visits(0, 0, 1000))
    assert FeedbackSpec(1).relative_error((n,)) > 1  # of which no budget may ask
