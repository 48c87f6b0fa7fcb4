"""Tasks over processes or Ray: results in order, the same plan, and what is said when it cannot be."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from math import factorial

import pytest

from scheduler.dtfm import Volumes
from scheduler.scenarios import scenario
from scheduler.search import SearchOptions
from sim import inputs
from sim.commands.plan import Planned, make_plan
from sim.spread import HERE, SpreadError, spread
from sim.step_plan import StepPlanned, plan_step


def planned(processes: int = 1, ray: str | None = None) -> Planned:
    """A search that has to look: 16 devices, and volumes for which the bound is not reached at once."""
    topology = scenario("worldwide", n_devices=16)
    options = SearchOptions(evaluations=3000)
    return make_plan(topology, {}, 4, 4, Volumes(1e9, 3e8), 5, None, options, processes, ray)


def assert_same_search(one: Planned, other: Planned) -> None:
    assert one.result.placement == other.result.placement
    assert one.result.evaluations == other.result.evaluations > 1000


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_tasks(processes: int) -> None:
    with spread(processes) as map_tasks:
        assert list(map_tasks(factorial, range(20))) == [factorial(n) for n in range(20)]


def test_processes_find_the_same_plan() -> None:
    assert_same_search(planned(), planned(processes=2))


def stepped(processes: int) -> StepPlanned:
    topology = scenario("worldwide", n_devices=16)
    job = inputs.read_job(
        inputs.JobInput(model="gpt2", sequence_length=1024, global_batch=64, stages=4, replicas=4)
    )
    work = inputs.read_work(job, topology.devices, inputs.read_gpus(["v100"], "fp16"))
    return plan_step(job, work, topology, 5, None, 1000, processes)


def test_processes_find_the_same_plan_by_step_time() -> None:
    one, other = stepped(1), stepped(2)
    assert one.plan == other.plan
    assert one.evaluations == other.evaluations > 1000


SMALL = ["--devices", "16", "--stages", "4", "--replicas", "4"]


@pytest.mark.parametrize(
    "asked",
    [
        ["--evaluations", "3000"],
        ["--model", "gpt2", "--sequence", "1024", "--batch", "64", "--gpu", "v100", "--evaluations", "20000"],
    ],
    ids=["dtfm", "step_time"],
)
def test_a_ray_cluster_finds_the_same_plan(asked: list[str]) -> None:
    """In a process of its own: Ray leaves processes to be reaped, which a strict test run takes for leaks."""
    pytest.importorskip("ray", reason="ray is the extra `deploy`")
    command = [sys.executable, "-m", "sim.cli", "plan", "--scenario", "worldwide", "--json", "--seed", "5"]
    # Else Ray ends and repeats its tasks for ever while other programs need the machine's memory.
    env = {**os.environ, "RAY_memory_monitor_refresh_ms": "0"}
    found = []
    for more in ([], ["--ray", HERE]):
        asks = [*command, *SMALL, *asked, *more]
        ran = subprocess.run(asks, check=True, capture_output=True, text=True, env=env)
        found.append(json.loads(ran.stdout))
    assert found[0]["objective"] == ("step_time" if "--model" in asked else "dtfm")
    assert found[0]["evaluations"] > 1000
    assert all(f.pop("elapsed_s") > 0 for f in found)
    assert found[0] == found[1]


def test_an_address_where_nobody_listens_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # it is not even asked
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SpreadError, match=f"{address}: nobody answers there"), spread(ray=address):
            pass


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SpreadError, match=r"isthmus\[deploy\]"), spread(ray="auto"):
        pass


def test_processes_or_ray() -> None:
    with pytest.raises(SpreadError, match="required one of them"), spread(2, "auto"):
        pass
