"""The blocks of a model as a job writes them: `layers: [[h3, mlp], 11 x [attention, mlp]]`.

A number stands for so many blocks of attention and MLP. A part may have options behind its name,
`attention window=128 kv_heads=1`. Knows no costs and no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from pydantic import ValidationError

from scheduler.mixers import MIXERS, AttentionSpec, MixerSpec, MlpSpec
from scheduler.names import nearest

Layers = int | tuple[str | tuple[str, ...], ...]
"""As a job has it: how many blocks, or a list of blocks, each a list of parts or `N x [part, ...]`."""
Block = tuple[MixerSpec, ...]

PLAIN: Block = (AttentionSpec(), MlpSpec())
"""What a number of blocks counts."""

MAX_BLOCKS = 10_000
REQUIRED = "a number of blocks, or a list of blocks such as [[h3, mlp], 11 x [attention, mlp]]"

_REPEATED = re.compile(r"(\d+)\s*x\s*\[([^\[\]]*)\]")
_UNQUOTED = re.compile(rf"""(?<!["'])\b{_REPEATED.pattern}(?!["'])""")
_LIST = re.compile(r"(?m)^(\s*layers\s*:\s*)(\[(?:[^\[\]]*\[[^\[\]]*\])*[^\[\]]*\])")


class PatternError(ValueError):
    """Blocks that cannot be: `found` and `required`."""

    def __init__(self, found: str, required: str) -> None:
        super().__init__(f"found {found}; required {required}")
        self.found, self.required = found, required


@lru_cache(maxsize=256)
def parse_layers(layers: Layers) -> tuple[Block, ...]:
    """The blocks that `layers` means, each its parts. Raises PatternError."""
    if isinstance(layers, int):
        return (PLAIN,) * layers
    blocks = tuple(tuple(parse_part(part) for part in parts) for parts in spelled_out(layers))
    if not blocks:
        raise PatternError("no block", "at least one")
    return blocks


def spelled_out(layers: tuple[str | tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    """Each block's parts as they are written, repetitions carried out. Raises PatternError."""
    blocks: list[tuple[str, ...]] = []
    for item in layers:
        times, parts = _repeated(item) if isinstance(item, str) else (1, item)
        if not 1 <= times <= MAX_BLOCKS - len(blocks):
            raise PatternError(f"{len(blocks) + times} blocks", f"1 to {MAX_BLOCKS}")
        if not parts:
            raise PatternError("a block without parts", f"one or more of: {', '.join(sorted(MIXERS))}")
        blocks += [parts] * times
    return tuple(blocks)


def parse_part(text: str) -> MixerSpec:
    """The part that `text` names, with its options. Raises PatternError with the known ones."""
    name, *options = text.split() or [""]
    if name not in MIXERS:
        known = sorted(MIXERS)
        raise PatternError(f"an unknown part {name!r}{nearest(name, known)}", f"one of: {', '.join(known)}")
    kind = MIXERS[name]
    pairs = [option.partition("=") for option in options]
    keys = [key for key, _, _ in pairs]
    for key, sign, _ in pairs:
        if key not in kind.model_fields or not sign or keys.count(key) > 1:
            known = sorted(kind.model_fields)
            near = "" if key in known else nearest(key, known)
            raise PatternError(
                f"the option {key!r} of {name}{near}",
                f"key=value, each key once, of: {', '.join(known)}"
                if known
                else f"no option: {name} has none",
            )
    try:
        return kind.model_validate_strings({key: value for key, _, value in pairs})
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        wanted = str(first["msg"]).removeprefix("Input should be ")
        raise PatternError(f"{name} {first['loc'][0]}={first['input']}", wanted) from None


def quoted(text: str) -> str:
    """A job's text with each `N x [...]` in a list behind `layers:` in quotes, which YAML wants there."""
    return _LIST.sub(lambda found: found[1] + _UNQUOTED.sub(r'"\g<0>"', found[2]), text)


def _repeated(item: str) -> tuple[int, tuple[str, ...]]:
    match = _REPEATED.fullmatch(item.strip())
    if match is None:
        raise PatternError(repr(item), "a list of parts, or N x [part, ...]")
    return int(match[1]), tuple(match[2].split(","))


def part_names(block: Block) -> Iterator[str]:
    """What each part is called in its layer and so in checkpoints: sequence mixers `mixer`, `mixer2`, …,
    channel mixers `ffn`, `ffn2`, …, in the order of the block."""
    seen = {"mixer": 0, "ffn": 0}
    for part in block:
        base = "mixer" if part.is_sequence else "ffn"
        seen[base] += 1
        yield base if seen[base] == 1 else f"{base}{seen[base]}"
