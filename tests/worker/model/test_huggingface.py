"""Weights in Hugging Face's layout, against transformers itself: the same logits and gradients, both ways."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.autograd import backward
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from scheduler.job import ModelSpec
from tests.worker.model.shapes import KINDS, layers_of, logits_of, loss_of, spec, tokens_of
from worker.model import Layer, build_layer, build_layers
from worker.model import huggingface as hf
from worker.model.huggingface import (
    HuggingFaceError,
    load_layer,
    read_config,
    save_pretrained,
    spec_from_config,
)
from worker.model.huggingface_config import config_of
from worker.model.huggingface_names import sources

every_kind = pytest.mark.parametrize("kind", KINDS)


def theirs_of(model: ModelSpec) -> Any:
    """A random model of transformers, of the shape of `model`."""
    torch.manual_seed(11)
    common: dict[str, Any] = {
        "vocab_size": model.vocab,
        "tie_word_embeddings": model.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,
    }
    if model.family == "gpt2":
        shape = {"n_layer": model.depth, "n_embd": model.hidden, "n_head": model.heads, "n_positions": 40}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        theirs: Any = GPT2LMHeadModel(GPT2Config(**common, **shape, **dropout))
    else:
        config = LlamaConfig(
            **common,
            hidden_size=model.hidden,
            intermediate_size=model.ffn,
            num_hidden_layers=model.depth,
            num_attention_heads=model.heads,
            num_key_value_heads=model.kv_heads,
            max_position_embeddings=40,
            rms_norm_eps=model.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        )
        theirs = LlamaForCausalLM(config)
    with torch.no_grad():  # biases and norms at their start would hide an exchange of two of them
        for parameter in theirs.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return theirs.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Kind -> a directory that transformers wrote, and the model."""
    models = {kind: theirs_of(model) for kind, model in KINDS.items()}
    root = tmp_path_factory.mktemp("theirs")
    for kind, theirs in models.items():
        theirs.save_pretrained(root / kind)
    return {kind: (root / kind, theirs) for kind, theirs in models.items()}


def loaded(directory: Path, model: ModelSpec) -> list[Layer]:
    layers = build_layers(model, 0, model.depth + 2)
    for index, layer in enumerate(layers):
        load_layer(directory, model, layer, index)
    return layers


def states(layers: list[Layer]) -> dict[int, dict[str, Tensor]]:
    return {index: dict(layer.state_dict()) for index, layer in enumerate(layers)}


@every_kind
def test_their_weights_give_their_logits_and_gradients(kind: str, saved: dict[str, tuple[Path, Any]]) -> None:
    model, (directory, theirs) = KINDS[kind], saved[kind]
    layers = loaded(directory, model)
    tokens, targets = tokens_of(model), tokens_of(model, seed=8)
    logits = theirs(tokens).logits
    torch.testing.assert_close(logits_of(layers, tokens), logits, atol=1e-5, rtol=1e-5)

    theirs.zero_grad()
    backward((torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"),))
    backward((loss_of(layers, tokens, targets),))
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    seen = set()
    for index, layer in enumerate(layers):
        ours = dict(layer.named_parameters())
        for source in sources(model, index):
            for piece in source.pieces:
                found = ours[source.own].grad
                assert found is not None
                expected = gradients[piece.name]
                torch.testing.assert_close(piece.out_of(found), expected, atol=2e-4, rtol=1e-4)
                seen.add(piece.name)
    assert seen == set(gradients)  # none of theirs is without a place in ours


@every_kind
def test_our_weights_give_transformers_our_logits(kind: str, tmp_path: Path) -> None:
    model = KINDS[kind]
    layers = layers_of(model, dtype=torch.float32)
    for layer in layers:
        for parameter in layer.parameters():
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    save_pretrained(tmp_path / "out", model, states(layers))
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    tokens = tokens_of(model)
    torch.testing.assert_close(theirs(tokens).logits, logits_of(layers, tokens), atol=1e-5, rtol=1e-5)
    assert theirs.config.tie_word_embeddings == model.tied
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


@every_kind
def test_what_was_loaded_is_saved_unchanged(
    kind: str, saved: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    model, (directory, _) = KINDS[kind], saved[kind]
    source = read_config(directory)
    save_pretrained(tmp_path, model, states(loaded(directory, model)), source)
    before, after = load_file(directory / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = read_config(tmp_path)
    assert spec_from_config(config) == spec_from_config(source)
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


@every_kind
def test_the_spec_is_read_from_their_configuration(kind: str, saved: dict[str, tuple[Path, Any]]) -> None:
    found = spec_from_config(read_config(saved[kind][0]))
    model = KINDS[kind]
    fields = set(ModelSpec.model_fields) - ({"rope_theta"} if model.family == "gpt2" else set())
    assert found.model_dump(include=fields) == model.model_dump(include=fields)


def test_a_sharded_checkpoint_loads(saved: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    _, theirs = saved["llama-grouped"]
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    model = KINDS["llama-grouped"]
    tokens = tokens_of(model)
    layers = loaded(tmp_path, model)
    torch.testing.assert_close(logits_of(layers, tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def test_a_layer_needs_no_more_than_its_own_shard(saved: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    model = KINDS["llama-grouped"]
    saved["llama-grouped"][1].save_pretrained(tmp_path, max_shard_size="20KB")
    places = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    own = {place for name, place in places.items() if ".layers.1." in name}
    for shard in tmp_path.glob("model-*.safetensors"):
        if shard.name not in own:
            shard.unlink()
    layer = build_layer(model, 2)
    load_layer(tmp_path, model, layer, 2)
    assert all(p.isfinite().all() for p in layer.parameters())
    with pytest.raises(HuggingFaceError, match=r"found no such file; required: .*index.json names it"):
        load_layer(tmp_path, model, build_layer(model, 0), 0)


def test_names_without_their_prefix_load(saved: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    model, (directory, theirs) = KINDS["gpt2"], saved["gpt2"]
    tensors = load_file(directory / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): t for name, t in tensors.items()}, tmp_path / "model.safetensors"
    )
    shutil.copy(directory / "config.json", tmp_path)
    tokens = tokens_of(model)
    layers = loaded(tmp_path, model)
    torch.testing.assert_close(logits_of(layers, tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def test_weights_take_the_layers_dtype(saved: dict[str, tuple[Path, Any]]) -> None:
    model = KINDS["llama"]
    layer = build_layer(model, 1).to(torch.bfloat16)
    load_layer(saved["llama"][0], model, layer, 1)
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert all(p.isfinite().all() for p in layer.parameters())


@pytest.fixture
def broken(saved: dict[str, tuple[Path, Any]], tmp_path: Path) -> Path:
    """A copy of a directory that may be broken."""
    shutil.copytree(saved["llama"][0], tmp_path / "copy")
    return tmp_path / "copy"


def refused(directory: Path, message: str, index: int = 1) -> None:
    model = KINDS["llama"]
    with pytest.raises(HuggingFaceError, match=message) as error:
        load_layer(directory, model, build_layer(model, index), index)
    assert str(directory) in str(error.value)


def test_missing_files_are_named(broken: Path, tmp_path: Path) -> None:
    (broken / "model.safetensors").unlink()
    refused(broken, "found neither model.safetensors nor model.safetensors.index.json")
    refused(tmp_path / "nowhere", "nowhere/config.json: found no such file")


def test_a_missing_tensor_is_named(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.0.self_attn.k_proj.weight"]
    save_file(tensors, broken / "model.safetensors")
    refused(broken, r"model.safetensors: model.layers.0.self_attn.k_proj.weight: found no such tensor")


def test_a_tensor_of_another_shape_or_type_is_named(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name][:5].clone()}, broken / "model.safetensors")
    refused(broken, r"up_proj.weight: found F32 of shape \(5, 32\); .* of shape \(128, 32\)")
    save_file({**tensors, name: tensors[name].to(torch.int8)}, broken / "model.safetensors")
    refused(broken, r"up_proj.weight: found I8 .*; required floats")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_named(broken: Path, keep: int) -> None:
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[:keep])
    refused(broken, "model.safetensors: the file is truncated, corrupted or no safetensors file")


def test_a_header_that_was_changed_is_named(broken: Path) -> None:
    whole = bytearray((broken / "model.safetensors").read_bytes())
    whole[10] ^= 0xFF
    (broken / "model.safetensors").write_bytes(whole)
    refused(broken, "model.safetensors: the file is truncated, corrupted")


def test_an_index_that_leads_out_of_the_directory_is_refused(broken: Path) -> None:
    (broken / "model.safetensors").rename(broken.parent / "model.safetensors")
    name = "model.embed_tokens.weight"
    index = broken / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: "../model.safetensors"}}))
    refused(broken, "found the file '../model.safetensors'", index=0)
    index.write_text(json.dumps({"weight_map": [name]}))
    refused(broken, "found no weight_map", index=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "text that is not JSON"), ("[]", "found list; required a JSON object"), ("[" * 9999, "not JSON")],
)
def test_a_broken_configuration_is_named(broken: Path, text: str, message: str) -> None:
    (broken / "config.json").write_text(text)
    refused(broken, message)


def test_a_configuration_too_large_to_be_one_is_not_read(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf, "_JSON_BYTES", 10)
    refused(broken, "config.json: found .* bytes; required at most 10")


LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type: found 'mamba'; required 'gpt2' or 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act: found 'gelu'; required 'silu'"),
        ({"attention_bias": True}, "attention_bias: found True; required False"),
        ({"head_dim": 32}, "head_dim: found 32; required .*, 16"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling: found 'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling: found 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters: found 'yarn'"),
        ({"rope_parameters": 3}, "rope_parameters: found 3; required a mapping"),
        ({"hidden_size": "wide"}, "hidden_size: found 'wide'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: found 0"),
        ({"vocab_size": None}, "vocab_size: found None"),
    ],
)
def test_a_configuration_of_another_model_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(HuggingFaceError, match=message):
        spec_from_config({**LLAMA, **change})


def test_a_configuration_without_a_needed_field_is_refused() -> None:
    for field in set(LLAMA) - {"model_type"}:
        with pytest.raises(HuggingFaceError, match=f"{field}: found no such field"):
            spec_from_config({key: value for key, value in LLAMA.items() if key != field})


def test_older_configurations_keep_their_base_and_their_defaults() -> None:
    found = spec_from_config({**LLAMA, "rope_theta": 500000, "rope_scaling": None})
    assert (found.rope_theta, found.kv_heads, found.tied) == (500000.0, 4, False)
    assert found.norm_eps == LlamaConfig().rms_norm_eps
    gpt2 = spec_from_config(
        {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "n_inner": None, "vocab_size": 9}
    )
    assert (gpt2.ffn, gpt2.max_positions, gpt2.tied) == (32, 1024, True)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layers": 4}, "num_hidden_layers: found 3; required 4, the job's model.layers"),
        ({"vocab": 257}, "vocab_size: found 61; required 257"),
        ({"tied": True}, "tie_word_embeddings: found False; required True"),
        ({"kv_heads": 2}, "num_key_value_heads: found 4; required 2"),
        ({"norm_eps": 1e-6}, "rms_norm_eps: found 1e-05; required 1e-06"),
        ({"rope_theta": 5e5}, "rope_theta: found 10000.0; required 500000.0"),
        ({"max_positions": 99}, "max_position_embeddings: found 40; required 99"),
        ({"family": "gpt2"}, "model_type: found 'llama'; required 'gpt2'"),
    ],
)
def test_a_job_that_disagrees_with_its_weights_is_refused(
    keys: dict[str, Any], message: str, saved: dict[str, tuple[Path, Any]]
) -> None:
    model = spec(**{"family": "llama", "tied": False, **keys})
    with pytest.raises(HuggingFaceError, match=message):
        load_layer(saved["llama"][0], model, build_layer(model, 1), 1)


def test_fewer_rotary_positions_than_the_weights_were_trained_on_are_fine(
    saved: dict[str, tuple[Path, Any]],
) -> None:
    for positions in (16, None):
        model = spec(family="llama", tied=False, max_positions=positions)
        load_layer(saved["llama"][0], model, build_layer(model, 1), 1)


def test_a_model_that_is_not_whole_is_not_saved(tmp_path: Path) -> None:
    model = KINDS["llama-tied"]
    whole = states(layers_of(model, dtype=torch.float32))
    cases: list[tuple[dict[int, dict[str, Tensor]], str]] = [
        ({i: s for i, s in whole.items() if i not in (2, 4)}, r"found no state for layers \[2, 4\]"),
        ({**whole, 1: {}}, "layer 1: found no mixer_norm.weight"),
        ({**whole, 0: {"weight": torch.zeros(3, 32)}}, r"weight: found shape \(3, 32\); required \(61, 32\)"),
        ({**whole, 4: {**whole[4], "weight": whole[4]["weight"] + 1}}, "tied head that is up to 1 from"),
    ]
    for state_by_layer, message in cases:
        with pytest.raises(HuggingFaceError, match=message):
            save_pretrained(tmp_path / "out", model, state_by_layer)
    assert not (tmp_path / "out").exists()


def test_a_failed_write_leaves_the_model_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = KINDS["gpt2"]
    whole = states(layers_of(model, dtype=torch.float32))
    save_pretrained(tmp_path, model, whole)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        del tensors, metadata
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, "save_file", full)
    with pytest.raises(HuggingFaceError, match=r"could not be written: .*No space left on device"):
        save_pretrained(tmp_path, model, whole)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_blocks_that_hugging_face_has_no_name_for_are_not_written() -> None:
    model = spec(family="llama", layers=(("attention", "mlp"), ("ssd", "mlp")))
    with pytest.raises(HuggingFaceError, match=r"found a block \[ssd, mlp\]; required \[attention, mlp\]"):
        config_of(model)
    plain = config_of(spec(family="llama", layers=("3 x [attention, mlp]",)))
    assert plain == config_of(spec(family="llama", layers=3))
