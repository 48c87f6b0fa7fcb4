"""A run's measured links are a trace: each measurement a row, across plans and starts of the run."""

from __future__ import annotations

from pathlib import Path

from coordinator.commands import MakePlan
from coordinator.events import LinkSample
from coordinator.links import record_links
from scheduler.profile import ModelProfile
from scheduler.topology import Device
from sim.network import TraceNetwork
from sim.trace import load

NOW_S = 1_790_000_000.0


def request(latency_s: float, *names: str) -> MakePlan:
    devices = tuple(Device(n, region=f"region of {n}") for n in names)
    links = tuple((a, LinkSample(b, latency_s, 1e8)) for a in names for b in names if a != b)
    return MakePlan(1, ModelProfile((), 1, 1), devices, (), links)


def test_each_measurement_is_a_row_at_its_time(tmp_path: Path) -> None:
    record_links(tmp_path, request(0.05, "w0", "w1"), NOW_S)
    record_links(tmp_path, request(0.08, "w0", "w1", "w2"), NOW_S + 90)
    trace = load(tmp_path / "links")
    assert list(trace.nodes) == ["w0", "w1", "w2"]
    assert trace.links["w0", "w1"].times_s.tolist() == [0, 90]
    assert (trace.at(0, "w0", "w1").rtt_s, trace.at(90, "w0", "w1").rtt_s) == (0.1, 0.16)
    assert trace.at(90, "w2", "w0").one_way_s == 0.08
    assert trace.nodes["w1"].region == "region of w1"
    assert trace.about.start.startswith("2026-09-21T")


def test_todays_run_is_tomorrows_replay(tmp_path: Path) -> None:
    record_links(tmp_path, request(0.05, "w0", "w1"), NOW_S)
    topology = TraceNetwork(load(tmp_path / "links.csv")).topology(0.0)
    assert [d.name for d in topology.devices] == ["w0", "w1"]
    assert topology.latency_s[0, 1] == 0.05
    assert topology.bandwidth_Bps[0, 1] == 1e8


def test_a_clock_that_was_set_back_does_not_run_backwards(tmp_path: Path) -> None:
    for now_s in (NOW_S, NOW_S - 3600, NOW_S - 7200):
        record_links(tmp_path, request(0.05, "w0", "w1"), now_s)
    assert len(load(tmp_path / "links").links["w0", "w1"]) == 3


def test_one_worker_alone_has_no_links_to_record(tmp_path: Path) -> None:
    record_links(tmp_path, request(0.05, "w0"), NOW_S)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_begins_anew(tmp_path: Path) -> None:
    record_links(tmp_path, request(0.05, "w0", "w1"), NOW_S)
    (tmp_path / "links.csv").write_text("?")
    record_links(tmp_path, request(0.07, "w0", "w1"), NOW_S + 5)
    assert load(tmp_path / "links").at(0, "w0", "w1").one_way_s == 0.07
