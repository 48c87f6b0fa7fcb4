"""A run's measured links are a trace: each measurement a row, across plans and starts of the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator import links as links_module
from coordinator.commands import MakePlan
from coordinator.events import LinkSample
from coordinator.links import LinksFile, recorded_links
from scheduler.profile import ModelProfile
from scheduler.topology import Device
from scheduler.trace_write import format_trace
from sim.network import TraceNetwork
from sim.trace import load

NOW_S = 1_790_000_000.0


def request(latency_s: float, *names: str) -> MakePlan:
    devices = tuple(Device(n, region=f"region of {n}") for n in names)
    links = tuple((a, LinkSample(b, latency_s, 1e8)) for a in names for b in names if a != b)
    return MakePlan(1, ModelProfile((), 1, 1), devices, (), links)


def test_each_measurement_is_a_row_at_its_time(tmp_path: Path) -> None:
    LinksFile(tmp_path).record(request(0.05, "w0", "w1"), NOW_S)
    LinksFile(tmp_path).record(request(0.08, "w0", "w1", "w2"), NOW_S + 90)
    trace = load(tmp_path / "links")
    assert list(trace.nodes) == ["w0", "w1", "w2"]
    assert trace.links["w0", "w1"].times_s.tolist() == [0, 90]
    assert (trace.at(0, "w0", "w1").rtt_s, trace.at(90, "w0", "w1").rtt_s) == (0.1, 0.16)
    assert trace.at(90, "w2", "w0").one_way_s == 0.08
    assert trace.nodes["w1"].region == "region of w1"
    assert trace.about.start.startswith("2026-09-21T")


def test_todays_run_is_tomorrows_replay(tmp_path: Path) -> None:
    LinksFile(tmp_path).record(request(0.05, "w0", "w1"), NOW_S)
    topology = TraceNetwork(load(tmp_path / "links.csv")).topology(0.0)
    assert [d.name for d in topology.devices] == ["w0", "w1"]
    assert topology.latency_s[0, 1] == 0.05
    assert topology.bandwidth_Bps[0, 1] == 1e8


def test_a_clock_that_was_set_back_does_not_run_backwards(tmp_path: Path) -> None:
    for now_s in (NOW_S, NOW_S - 3600, NOW_S - 7200):
        LinksFile(tmp_path).record(request(0.05, "w0", "w1"), now_s)
    assert len(load(tmp_path / "links").links["w0", "w1"]) == 3


def test_one_worker_alone_has_no_links_to_record(tmp_path: Path) -> None:
    LinksFile(tmp_path).record(request(0.05, "w0"), NOW_S)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_begins_anew(tmp_path: Path) -> None:
    LinksFile(tmp_path).record(request(0.05, "w0", "w1"), NOW_S)
    (tmp_path / "links.csv").write_text("?")
    LinksFile(tmp_path).record(request(0.07, "w0", "w1"), NOW_S + 5)
    assert load(tmp_path / "links").at(0, "w0", "w1").one_way_s == 0.07


def test_only_what_is_new_is_added(tmp_path: Path) -> None:
    kept = LinksFile(tmp_path)
    assert kept.record(request(0.05, "w0", "w1"), NOW_S) == 2
    before = (tmp_path / "links.csv").read_text()
    assert kept.record(request(0.05, "w0", "w1"), NOW_S + 9) == 0
    assert (tmp_path / "links.csv").read_text() == before
    assert kept.record(request(0.05, "w0", "w1", "w2"), NOW_S + 20) == 4
    after = (tmp_path / "links.csv").read_text()
    assert after.startswith(before)
    trace = load(tmp_path / "links")
    assert trace.links["w0", "w1"].times_s.tolist() == [0]
    assert trace.links["w0", "w2"].times_s.tolist() == [20]
    assert kept.record(request(0.06, "w0", "w1"), NOW_S + 30) == 2
    assert load(tmp_path / "links").links["w0", "w1"].times_s.tolist() == [0, 30]


def test_what_is_added_reads_as_what_is_written_at_once(tmp_path: Path) -> None:
    kept = LinksFile(tmp_path)
    for i, latency_s in enumerate((0.05, 0.1 / 3, 1e-7)):
        kept.record(request(latency_s, "w0", "w1", "w,2"), NOW_S + 7.5 * i)
    trace = recorded_links(tmp_path)
    assert trace is not None
    for suffix, lines in format_trace(trace).items():
        assert (tmp_path / f"links{suffix}").read_text() == "".join(lines)


def test_half_a_row_of_a_process_that_was_killed_is_cut_off(tmp_path: Path) -> None:
    LinksFile(tmp_path).record(request(0.05, "w0", "w1"), NOW_S)
    with (tmp_path / "links.csv").open("a") as out:
        out.write("12.5,w0,w")
    trace = recorded_links(tmp_path)
    assert trace is not None
    assert trace.duration_s == 0
    LinksFile(tmp_path).record(request(0.07, "w0", "w1"), NOW_S + 20)
    assert load(tmp_path / "links").links["w0", "w1"].times_s.tolist() == [0, 20]


def test_a_trace_that_grew_too_large_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LinksFile(tmp_path).record(request(0.05, "w0", "w1"), NOW_S)
    monkeypatch.setattr(links_module, "MAX_BYTES", 10)
    LinksFile(tmp_path).record(request(0.07, "w0", "w1"), NOW_S + 20)
    assert load(tmp_path / "links").at(0, "w0", "w1").one_way_s == 0.07
