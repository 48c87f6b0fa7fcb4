"""One who joins over a slow link gets its layers while the steps go on, and the run's numbers are those of
one process, bit for bit."""

from __future__ import annotations

from pathlib import Path

from coordinator.history import read_history
from tests.joined import LATE, checkpoint, first, job_of, losses, run_of, worker_events
from tests.survival import left_over


def test_layers_travel_while_steps_go_on_and_every_bit_is_that_of_one_process(tmp_path: Path) -> None:
    job = job_of(layers=6, global_batch=16, steps=40)
    alone = run_of(tmp_path / "alone", job, joins=False)
    events = run_of(tmp_path / "joined", job, joins=True, rests=range(2, 36))
    begins, pause = first(events, "following"), first(events, "pause")
    assert begins["followers"] == [LATE]
    assert pause["step"] >= begins["step"] + 1, "steps went on meanwhile"
    assert pause["followed"] == 3, "all the layers of the newcomer's stage came beside the steps"
    assert pause["step"] < job.steps
    recovery = first(events, "recovery")
    assert (recovery["way"], recovery["step"], recovery["loading_s"]) == ("move", pause["step"], 0.0)
    assert "unfollowed" not in {e["event"] for e in events}
    assert losses(events) == losses(alone), "to the last bit"
    assert checkpoint(tmp_path / "joined", job.steps) == checkpoint(tmp_path / "alone", job.steps)
    layers = [e for e in worker_events(tmp_path / "joined", LATE) if e["event"] == "layers"]
    assert [(e["kept"], e["from_peers"]) for e in layers] == [(3, 0)]
    history = read_history(tmp_path / "joined" / "state")
    assert history.plan is not None
    assert LATE in history.plan.devices
    assert left_over(tmp_path) == []
