"""Throughput against bandwidth: more of either never hurts, and the end of the curve is the engine's step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from scheduler.cost import predict
from scheduler.planner import make_plan
from scheduler.scenarios import scenario
from scheduler.topology import Topology
from sim import inputs as i
from sim.codec_curve import BANDWIDTHS_BPS, CODECS, throughput
from sim.network import StillNetwork


def test_more_bandwidth_and_fewer_bits_never_cost_throughput() -> None:
    links = scenario("worldwide", n_devices=8)
    gpus = i.read_gpus(["a100-40"], "bf16")
    given = i.JobInput(model="gpt2", sequence_length=256, global_batch=16, stages=8, replicas=1)
    job = i.read_job(given)
    devices = StillNetwork(links).devices
    plain = i.read_work(job, devices, gpus)
    plan = make_plan(job, plain.model, plain.profiles, links, 1)
    curves = dict(throughput(plan, plain, links, 4096))
    for points in curves.values():
        assert [x for x, _ in points] == list(BANDWIDTHS_BPS)
        assert all(b[1] >= a[1] for a, b in pairwise(points))
    for more, fewer in pairwise(name for name, _, _ in CODECS):
        assert all(b[1] >= a[1] for a, b in zip(curves[more], curves[fewer], strict=True))
    region = np.array([d.region for d in devices])
    fastest = np.where(region[:, None] != region[None, :], BANDWIDTHS_BPS[-1], links.bandwidth_Bps)
    step = predict(plan, plain.model, plain.profiles, Topology(devices, links.latency_s, fastest))
    assert curves["uncompressed"][-1][1] == pytest.approx(4096 / step.duration_s)


def test_within_one_region_there_is_nothing_to_show() -> None:
    links = scenario("datacenter", n_devices=8).subset([0, 1, 2, 3])
    assert len({d.region for d in links.devices}) == 1
    gpus = i.read_gpus(["a100-40"], "bf16")
    job = i.read_job(i.JobInput(model="gpt2", sequence_length=256, global_batch=16, stages=4, replicas=1))
    work = i.read_work(job, links.devices, gpus)
    plan = make_plan(job, work.model, work.profiles, links, 1)
    assert throughput(plan, work, links, 4096) == ()
