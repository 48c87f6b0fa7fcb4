"""Hugging Face's config.json, to and from a ModelSpec. Values only; reads no file.

A configuration whose model would compute something else than ours does (another activation, scaled
rotary positions, biases where we have none) is refused by the name of the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from typing import Any

from pydantic import ValidationError

from scheduler.job import ModelSpec
from scheduler.pattern import PLAIN
from worker.model.layer import ModelError

Config = Mapping[str, Any]


class HuggingFaceError(ModelError):
    """Weights or a configuration in Hugging Face's layout that are missing, broken or of another model."""


_FIELDS = {
    "gpt2": {
        "layers": "n_layer",
        "hidden": "n_embd",
        "heads": "n_head",
        "ffn": "n_inner",
        "vocab": "vocab_size",
        "max_positions": "n_positions",
        "tied": "tie_word_embeddings",
        "norm_eps": "layer_norm_epsilon",
    },
    "llama": {
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "ffn": "intermediate_size",
        "vocab": "vocab_size",
        "max_positions": "max_position_embeddings",
        "tied": "tie_word_embeddings",
        "norm_eps": "rms_norm_eps",
    },
}
"""Family -> our field -> theirs."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": None, "n_positions": 1024, "tie_word_embeddings": True, "layer_norm_epsilon": 1e-5},
    "llama": {
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-6,
    },
}
"""What transformers takes for a field that config.json leaves out."""

_MAY_BE_NULL = ("n_inner", "num_key_value_heads")
"""Null means: as it follows from the others."""

_REQUIRED: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    "llama": {"hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,)},
}
"""Fields that may be left out, and the values under which our layers compute the same."""

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def spec_from_config(config: Config) -> ModelSpec:
    """The resolved spec of the model that `config` (config.json, decoded) describes.

    Raises HuggingFaceError, naming the field, what was found and what is required.
    """
    family = config.get("model_type")
    if family not in _FIELDS:
        raise _refused("model_type", family, " or ".join(map(repr, _FIELDS)))
    for field, accepted in _REQUIRED[family].items():
        if config.get(field, accepted[0]) not in accepted:
            raise _refused(field, config[field], " or ".join(map(repr, accepted)))
    values: dict[str, Any] = {"family": family}
    for ours, theirs in _FIELDS[family].items():
        if theirs not in config and theirs not in _DEFAULTS[family]:
            raise HuggingFaceError(f"config.json: {theirs}: found no such field; required a value for it")
        values[ours] = config.get(theirs, _DEFAULTS[family].get(theirs))
        if values[ours] is None and theirs not in _MAY_BE_NULL:
            raise _refused(theirs, None, "a value")
    if family == "llama":
        values["rope_theta"] = _rope_theta(config)
        values["kv_heads"] = values["kv_heads"] or values["heads"]
    else:
        values["kv_heads"] = values["heads"]
        values["ffn"] = values["ffn"] or 4 * _whole("n_embd", values["hidden"])
    try:
        spec = ModelSpec(**values)
    except ValidationError as e:
        error = e.errors()[0]
        ours = str(error["loc"][0])
        raise _refused(_FIELDS[family].get(ours, ours), error["input"], error["msg"]) from None
    head_width = config.get("head_dim")
    if family == "llama" and head_width not in (None, spec.hidden // spec.heads):
        required = f"hidden_size / num_attention_heads, {spec.hidden // spec.heads}"
        raise _refused("head_dim", head_width, required)
    return spec


def check_config(model: ModelSpec, config: Config) -> None:
    """Whether weights under `config` are those of `model` (resolved). Raises HuggingFaceError if not."""
    _check_plain(model)
    theirs = spec_from_config(config)
    names = {"family": "model_type", "rope_theta": "rope_theta", **_FIELDS[theirs.family]}
    for ours, field in names.items():
        found, required = getattr(theirs, ours), model.depth if ours == "layers" else getattr(model, ours)
        if ours == "rope_theta" and model.family == "gpt2":
            continue
        if ours == "max_positions" and model.family == "llama":
            # Rotary positions have no weights, so training on fewer of them is fine.
            agrees = required is None or required <= found
        elif isinstance(required, float):
            agrees = isclose(found, required, rel_tol=1e-6)
        else:
            agrees = found == required
        if not agrees:
            raise _refused(field, found, f"{required!r}, the job's model.{ours}")


def config_of(model: ModelSpec, source: Config | None = None) -> dict[str, Any]:
    """config.json for `model` (resolved). Special tokens are those of `source`, the configuration
    that the weights began from, or none."""
    _check_plain(model)
    config: dict[str, Any] = {"model_type": model.family}
    config |= {token: (source or {}).get(token) for token in _TOKENS}
    config |= {theirs: getattr(model, ours) for ours, theirs in _FIELDS[model.family].items()}
    config[_FIELDS[model.family]["layers"]] = model.depth
    config |= {field: accepted[0] for field, accepted in _REQUIRED[model.family].items()}
    if model.family == "gpt2":
        # Ours drops nothing out, and training goes on as it was.
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return {"architectures": ["GPT2LMHeadModel"], **config, **dropout}
    if model.max_positions is None:
        config["max_position_embeddings"] = _DEFAULTS["llama"]["max_position_embeddings"]
    # Both spellings: the second is that of transformers 5.
    config["rope_theta"] = model.rope_theta
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": model.rope_theta}
    return {"architectures": ["LlamaForCausalLM"], **config}


def _check_plain(model: ModelSpec) -> None:
    strange = next((parts for parts in model.blocks if parts != PLAIN), None)
    if strange is not None:
        raise HuggingFaceError(
            f"model.layers: found a block [{', '.join(part.text for part in strange)}]; required"
            " [attention, mlp] without options: Hugging Face's layout has no other"
        )


def _rope_theta(config: Config) -> Any:
    """Rotary's base, from either spelling; positions scaled in any way are refused."""
    parameters: Any = {}
    for field in ("rope_parameters", "rope_scaling"):
        parameters = config.get(field) or parameters
        if not isinstance(parameters, Mapping):
            raise _refused(field, parameters, "a mapping, or none")
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind != "default":
            raise _refused(field, kind, "rope_type 'default': unscaled rotary positions")
    return parameters.get("rope_theta", config.get("rope_theta", 10000.0))


def _whole(field: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _refused(field, value, "a whole number")
    return value


def _refused(field: str, found: object, required: str) -> HuggingFaceError:
    return HuggingFaceError(f"config.json: {field}: found {found!r}; required {required}")
