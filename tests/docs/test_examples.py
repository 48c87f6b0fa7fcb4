"""The examples of the documentation run, and do what their pages say.

`local_cluster.py` is run by `tests/integration/test_run.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compression.codec import CODECS
from compression.spec import SPECS
from scheduler.mixers import MIXERS
from sim.api import (
    Faults,
    InputError,
    JobError,
    PlanError,
    load_job,
    open_network,
    plan,
    preset_job,
    simulate,
)
from tests.docs.examples import EXAMPLES, load_example
from worker.model.mixers import MAKERS


@pytest.fixture(autouse=True)
def _registries_as_before() -> Iterator[None]:
    """What an example registers is forgotten after the test."""
    registries: tuple[dict[Any, Any], ...] = (SPECS, CODECS, MIXERS, MAKERS)
    before = [dict(r) for r in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


def test_every_example_is_run() -> None:
    run = Path(__file__).read_text() + (Path(__file__).parents[1] / "integration/test_run.py").read_text()
    assert {p.stem for p in EXAMPLES.glob("*.py")} == set(re.findall(r'load_example\("(\w+)"\)', run))


def test_a_run_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    found = load_example("plan_a_run").found
    said = capsys.readouterr().out
    assert f"{found.plan.n_stages} stages x {found.plan.n_replicas} replicas" in said
    assert said.count("holds layers") == found.plan.n_ranks > 1
    assert found.lower_bound_s <= found.plan.predicted_step_s
    assert found.timeline.duration_s == pytest.approx(found.plan.predicted_step_s)


def test_a_loss_is_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("simulate_a_loss")
    assert len(example.calm.steps) == len(example.result.steps) == 20
    assert example.result.recoveries == 1
    assert example.result.tokens_per_s < example.calm.tokens_per_s
    assert f"{example.lost} is lost" in capsys.readouterr().out


def test_a_codec_of_ones_own_keeps_its_word(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("sign_codec")
    assert example.encoded.n_bytes == example.codec.spec.wire_bytes(example.x.shape, 4)
    assert "expected 0.60" in capsys.readouterr().out


def test_a_part_of_ones_own_is_built_and_is_its_dense_form(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("gated_conv_layer")
    assert example.model.depth == 2
    assert "forward is its dense form" in capsys.readouterr().out


def test_errors_say_what_was_found_and_required(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_job(tmp_path / "none.yaml")
    (tmp_path / "job.yaml").write_text("name: x\nmodle: {}\n")
    with pytest.raises(JobError, match=r"job\.yaml:2: modle: found an unknown key"):
        load_job(tmp_path / "job.yaml")
    with pytest.raises(JobError, match="preset"):
        preset_job("gpt7")
    with pytest.raises(InputError, match="exactly one"):
        open_network()
    with pytest.raises(ValueError, match="gpu9"):
        open_network(trace="four_cities", gpu="gpu9")
    large, network = preset_job("llama-70b", global_batch=4), open_network(trace="four_cities", gpu="t4")
    with pytest.raises(PlanError):
        plan(large, network, evaluations=10)


def test_a_simulated_run_makes_its_own_plan_and_ends_as_a_real_one() -> None:
    job = preset_job("gpt2", sequence_length=256, global_batch=8)
    network = open_network(scenario="regional", devices=4, gpu="t4")
    assert network.at(0.0).devices == network.devices
    everybody = Faults()
    for device in network.devices:
        everybody = everybody.leave(device.name, at_s=0.5)
    ended = simulate(job, network, steps=50, faults=everybody)
    assert ended.code != 0
    assert ended.reason
