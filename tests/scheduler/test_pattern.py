"""Blocks as a job writes them: what they mean, and what is said of those that mean none."""

from __future__ import annotations

import pytest

from scheduler.job import JobError, ModelSpec, job_from_json, job_to_json, parse_job, resolve_model
from scheduler.mixers import AttentionSpec, MlpSpec
from scheduler.pattern import PLAIN, PatternError, parse_layers, parse_part, part_names

JOB = """\
name: x
model:
  family: llama
  hidden: 32
  layers: {layers}
data: {{files: [a.txt]}}
sequence_length: 16
global_batch: 4
micro_batch: 2
steps: 1
"""
LOCAL = AttentionSpec(window=8)


def job_with(layers: str) -> str:
    return JOB.format(layers=layers)


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        ("3", (PLAIN,) * 3),
        ("[[attention, mlp]]", (PLAIN,)),
        (
            "[[attention window=8, mlp], 2 x [attention, mlp], [mlp]]",
            ((LOCAL, MlpSpec()), PLAIN, PLAIN, (MlpSpec(),)),
        ),
        ("['2 x [attention, mlp]']", (PLAIN,) * 2),
        ('["2 x [attention, mlp]", 1x[mlp]]', (PLAIN, PLAIN, (MlpSpec(),))),
        ("[[attention, mlp],\n    2 x [attention,\n      mlp],\n  ]", (PLAIN,) * 3),
        (
            "\n  - [attention window=8, mlp]\n  - 2 x [attention, mlp]",
            ((LOCAL, MlpSpec()), PLAIN, PLAIN),
        ),
    ],
)
def test_a_job_means_its_blocks(layers: str, blocks: object) -> None:
    job = parse_job(job_with(layers), "j.yaml")
    assert job.model.blocks == blocks
    assert job.n_layers == len(job.model.blocks) + 2
    assert job_from_json(job_to_json(job)) == job


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("0", "j.yaml:5: model.layers: found 0; required a number of blocks"),
        ("true", "found true; required a number of blocks, or a list of blocks such as"),
        ("[]", "j.yaml:5: model.layers: found no block; required at least one"),
        ("[[]]", "found a block without parts; required one or more of: attention"),
        (
            "[[attentoin]]",
            r"found an unknown part 'attentoin' \(did you mean 'attention'\?\); required one of",
        ),
        ("[twice mlp]", r"found 'twice mlp'; required a list of parts, or N x \[part, ...\]"),
        ("[0 x [mlp]]", "found 0 blocks; required 1 to 10000"),
        ("[99999999999 x [mlp]]", "found 99999999999 blocks; required 1 to 10000"),
        ("[[attention windw=3]]", r"found the option 'windw' of attention \(did you mean 'window'\?\)"),
        ("[[attention window]]", "found the option 'window' of attention; required key=value"),
        ("[[attention window=0]]", "found attention window=0; required greater than or equal to 1"),
        ("[[attention window=2 window=3]]", "each key once"),
        ("[[attention positions=learned]]", "found attention positions=learned; required 'rotary' or 'none'"),
        ("[[attention window=2 butterfly=4]]", "found both window and butterfly; required one of them"),
        ("[[attention heads=5]]", "model.layers: found 5 heads for hidden 32"),
        ("[[attention causal=false]]", "sees later positions; required parts that see none"),
    ],
)
def test_blocks_that_cannot_be_are_refused_by_line_and_with_what_is_known(layers: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        parse_job(job_with(layers), "j.yaml")


def test_the_text_of_a_part_gives_it_back() -> None:
    for text in ("mlp", "attention causal=false kv_heads=1 window=9"):
        assert parse_part(text).text == text
    with pytest.raises(PatternError, match="unknown part ''"):
        parse_part(" ")


def test_parts_are_called_by_what_they_mix_in_their_order() -> None:
    (block,) = parse_layers((("attention", "mlp", "attention window=2", "mlp", "mlp"),))
    assert list(part_names(block)) == ["mixer", "ffn", "mixer2", "ffn2", "ffn3"]


def test_other_text_in_a_job_is_left_alone() -> None:
    text = job_with("2") + 'prompt: "layers: [2 x [mlp]]"\n'
    assert parse_job(text, "j.yaml").prompt == "layers: [2 x [mlp]]"


def test_a_number_over_a_preset_of_other_blocks_takes_so_many_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = {"layers": ("2 x [mlp]", ("attention", "mlp"))}
    monkeypatch.setattr("scheduler.presets.PRESETS", {"mixed": shape})
    five = resolve_model(ModelSpec(preset="mixed", layers=5))
    assert five.blocks == ((MlpSpec(),), (MlpSpec(),), PLAIN, (MlpSpec(),), (MlpSpec(),))
