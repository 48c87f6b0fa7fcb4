"""The compression section: what may be written, what it means, and errors that name line and key."""

from __future__ import annotations

import pytest

from compression.spec import codec_spec
from scheduler.job import JobError, JobSpec, LocalStepsSpec, job_from_json, job_to_json, parse_job
from scheduler.job_compression import Kind

BASE = """name: c
model: {hidden: 96, heads: 4}
data: {files: [a.txt]}
sequence_length: 16
global_batch: 4
micro_batch: 2
steps: 2
compression:
  activations: %s
"""


def parsed(activations: str) -> JobSpec:
    return parse_job(BASE % activations, "c.yaml")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("identity", "identity"),
        ("fp16", "fp16"),
        ("{kbit: {bits: 4, group: 32}}", "kbit:bits=4,group=32"),
        ("{kbit: {scale: channel, rounding: stochastic}}", "kbit:scale=channel,rounding=stochastic"),
    ],
)
def test_a_codec_is_a_name_or_a_name_with_options(text: str, name: str) -> None:
    job = parsed(text)
    assert job.compression.activations.spec().name == name
    assert job.compression.gradients.spec().name == "identity"
    assert job_from_json(job_to_json(job)) == job


def test_acsgd_says_both_directions() -> None:
    job = parsed("{acsgd: {forward_bits: 3, backward_bits: 6, group: 32, first_bits: 8, buffer_bits: 4}}")
    assert job.compression.activations.spec().name == "acsgd:bits=3,group=32,first=8,store=4"
    assert job.compression.rules("gradients")[-1][1].spec().name == "kbit:bits=6,group=32,rounding=stochastic"
    both = parse_job(BASE % "{acsgd: {group: 32}}" + "  gradients: fp16\n", "c.yaml")
    assert both.compression.rules("gradients")[-1][1].spec().name == "fp16"
    assert job_from_json(job_to_json(both)) == both


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "{acsgd: {group: 32, backward_bits: 4}}\n  gradients: fp16\n",
            "c.yaml:9: compression.activations.acsgd.backward_bits: found it beside compression.gradients",
        ),
        (
            "identity\n  gradients: acsgd\n",
            "c.yaml:10: compression.gradients.acsgd: found an unknown key; required one of: identity",
        ),
        (
            "{acsgd: {group: 32, budget_mb: 1}}\nsequence_length: 8192\nmicro_batch: 4\n",
            "c.yaml:9: compression.activations.acsgd.budget_mb: found 1; required at least 7: a micro",
        ),
        (
            "{acsgd: {group: 32, buffer_bits: 5}}\n",
            "c.yaml:9: compression.activations.acsgd.buffer_bits: found 5; required 16, 8 or 4",
        ),
    ],
)
def test_what_cannot_be_with_acsgd_names_line_and_key(text: str, said: str) -> None:
    base = BASE if "sequence_length" not in text else BASE.replace("sequence_length: 16", "eval_every: 0")
    if "micro_batch" in text:
        base = base.replace("micro_batch: 2", "seed: 1")
    with pytest.raises(JobError) as e:
        parse_job(base % text, "c.yaml")
    assert said in str(e.value)


def test_tiles_cross_boundaries_and_feedback_reduces() -> None:
    job = parse_job(
        BASE % "{tile: {bits: 3, group: 32}}" + "  gradients: {tile: {rounding: stochastic}}\n"
        "  reduce: {topk: {per_mille: 5, bits: 8}}\n",
        "c.yaml",
    )
    c = job.compression
    assert [x.spec().name for _, _, x in c.choices()] == [
        "tile:bits=3",
        "tile:rounding=stochastic",
        "topk:per_mille=5,bits=8",
    ]
    assert job_from_json(job_to_json(job)) == job
    feedback = parse_job(BASE % "fp16" + "  reduce: feedback\n", "c.yaml").compression.reduce
    assert feedback.spec().name == "feedback"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{tile: {group: 24}}", "activations.tile.group: found 24; required a power of two, such as 32"),
        (
            "{tile: {group: 64}}",
            "activations.tile: found rows of 96 values; required a multiple of the group",
        ),
        ("{tile: {bits: 1}}", "activations.tile.bits: found 1; required greater than or equal to 2"),
        ("fp16\n  reduce: tile", "reduce.tile: found an unknown key; required one of: identity"),
        ("fp16\n  reduce: {topk: {bits: 9}}", "reduce.topk.bits: found 9; required 1, 2, 3"),
        ("feedback", "activations.feedback: found an unknown key"),
    ],
)
def test_what_cannot_be_with_tiles_and_feedback(text: str, said: str) -> None:
    with pytest.raises(JobError) as e:
        parsed(text)
    assert said in str(e.value)


def test_momentum_reduces_behind_a_warm_up() -> None:
    text = BASE.replace("steps: 2", "steps: 40") % "fp16"
    job = parse_job(text + "  reduce: {momentum: {bits: 1, warmup_steps: 8}}\n", "c.yaml")
    spec = job.compression.reduce.spec()
    assert spec.name == "momentum:bits=1,warmup_steps=8"
    assert codec_spec(spec.name) == spec
    assert spec.wire_bytes((1000,), 4) == codec_spec("feedback:bits=1").wire_bytes((1000,), 4)
    assert job_from_json(job_to_json(job)) == job


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{momentum: {warmup_steps: 2}}", "warmup_steps: found 2 for a run of 2 steps, which so never"),
        ("{momentum: {warmup_steps: 0}}", "warmup_steps: found 0; required greater than or equal to 1"),
        (
            "{momentum: {warmup_steps: 1}}\noptimizer: {name: sgd}",
            "momentum: found it beside optimizer sgd; required optimizer.name adamw",
        ),
        (
            "{momentum: {warmup_steps: 1}}\nparallelism: {stages: 2, replicas: 1}",
            "momentum: found it with parallelism.replicas 1, which exchanges no gradients",
        ),
        (
            "{momentum: {warmup_steps: 1}}\n  links: [{between: hosts, reduce: fp16}]",
            "links[0].reduce: found an exception although momentum is exchanged somewhere",
        ),
    ],
)
def test_what_cannot_be_with_momentum(text: str, said: str) -> None:
    with pytest.raises(JobError) as e:
        parsed("fp16\n  reduce: " + text)
    assert said in str(e.value)


def test_local_steps_are_off_unless_they_are_asked_for() -> None:
    assert parsed("fp16").local_steps is None
    job = parsed("fp16\n  reduce: {feedback: {bits: 8}}\nlocal_steps: {every: 2}")
    assert job.local_steps == LocalStepsSpec(every=2, lr=0.7, momentum=0.9)
    assert job_from_json(job_to_json(job)) == job


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\nlocal_steps: {every: 1}", "local_steps.every: found 1; required greater than or equal to 2"),
        ("\nlocal_steps: {every: 3}", "local_steps.every: found 3 for a run of 2 steps"),
        ("\nlocal_steps: {every: 2, often: 1}", "local_steps.often: found an unknown key; required one of"),
        (
            "\nlocal_steps: {every: 2}\nparallelism: {stages: 1, replicas: 1}",
            "local_steps: found it with parallelism.replicas 1, whose steps are local anyway",
        ),
        ("\n  reduce: auto\nlocal_steps: {every: 2}", "reduce.auto: found auto beside local_steps, which is"),
        (
            "\n  reduce: {feedback: {bits: 9}}\nlocal_steps: {every: 2}",
            "reduce.feedback.bits: found 9; required less than or equal to 8",
        ),
        (
            "\n  reduce: {feedback: {rounding: stochastic}}\nlocal_steps: {every: 2}",
            "reduce.feedback.rounding: found stochastic beside local_steps and a tied weight",
        ),
        (
            "\n  links: [{between: hosts, reduce: fp16}]\nlocal_steps: {every: 2}",
            "links[0].reduce: found an exception beside local_steps",
        ),
    ],
)
def test_what_cannot_be_with_local_steps(text: str, said: str) -> None:
    with pytest.raises(JobError) as e:
        parsed("fp16" + text)
    assert said in str(e.value)


def test_auto_may_have_a_budget() -> None:
    auto = parsed("{auto: {max_error: 0.05}}").compression.activations.auto
    assert auto is not None
    assert auto.max_error == 0.05


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zip", "activations.zip: found an unknown key; required one of: identity, fp16, kbit"),
        ("{kbit: {bits: 9}}", "activations.kbit.bits: found 9; required less than or equal to 8"),
        ("{kbit: {bits: 0}}", "activations.kbit.bits: found 0; required greater than or equal to 1"),
        ("{kbit: {bit: 4}}", "activations.kbit.bit: found an unknown key (did you mean 'bits'?)"),
        ("kbit", "activations.kbit: found rows of 96 values; required a multiple of the group, 64"),
        ("{kbit: {group: 32}, fp16: {}}", "activations: found a mapping; required exactly one codec"),
        ("{}", "exactly one codec of"),
        ("7", "activations: found 7; required"),
        ("{auto: {max_error: 0}}", "activations.auto.max_error: found 0; required greater than 0"),
    ],
)
def test_what_cannot_be_names_line_and_key(text: str, said: str) -> None:
    with pytest.raises(JobError) as e:
        parsed(text)
    assert str(e.value).startswith("c.yaml:9: compression.activations")
    assert said in str(e.value)


LINKS = """  links:
    - between: regions
      activations: {tile: {bits: 3}}
      reduce: {feedback: {bits: 4}}
    - {between: hosts, below_mbps: 100, activations: {acsgd: {group: 32}}}
"""


def test_links_have_codecs_of_their_own_for_the_traffic_they_name() -> None:
    job = parse_job(BASE % "fp16" + LINKS, "c.yaml")

    def names(kind: Kind) -> list[tuple[str | None, str]]:
        return [(link.between if link else None, c.spec().name) for link, c in job.compression.rules(kind)]

    assert names("activations") == [("regions", "tile:bits=3"), ("hosts", "acsgd:group=32"), (None, "fp16")]
    assert names("gradients") == [("hosts", "kbit:group=32,rounding=stochastic"), (None, "identity")]
    assert names("reduce") == [("regions", "feedback"), (None, "identity")]
    assert job_from_json(job_to_json(job)) == job


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{activations: fp16}", "links[0]: found a mapping; required which links: between, below_mbps, or"),
        ("{between: hosts}", "links[0]: found a mapping; required a codec for activations, gradients or"),
        ("{between: towns, reduce: kbit}", "links[0].between: found \"towns\"; required 'regions', 'hosts'"),
        ("{below_mbps: 0, reduce: kbit}", "links[0].below_mbps: found 0; required greater than 0"),
        ("{between: hosts, reduce: tile}", "links[0].reduce.tile: found an unknown key; required one of:"),
        ("{between: hosts, codec: fp16}", "links[0].codec: found an unknown key; required one of: between"),
        ("{between: hosts, activations: kbit}", "links[0].activations.kbit: found rows of 96 values"),
        (
            "{between: hosts, activations: {acsgd: {group: 32, backward_bits: 4}}, gradients: fp16}",
            "links[0].activations.acsgd.backward_bits: found it beside compression.links[0].gradients",
        ),
    ],
)
def test_links_that_cannot_be_name_line_and_key(text: str, said: str) -> None:
    with pytest.raises(JobError) as e:
        parse_job(BASE % "fp16" + f"  links:\n    - {text}\n", "c.yaml")
    assert str(e.value).startswith(f"c.yaml:11: compression.{said}")
