"""YAML text to plain values, remembering the line of every key. Knows no job, reads no file.

A deliberate subset: mappings with text keys, lists, and YAML 1.2's core scalars (`3e-4` is a
number, `no` is text). Anchors, tags, merge keys and a key given twice are refused, so that what a
person reads in the file is what is used, and a small file cannot unfold into a large one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

MAX_TEXT_CHARS = 1 << 20
"""A job file is a page or two; more than this is not a job file."""

Path = tuple[str | int, ...]
"""Where a value stands: mapping keys and list indices from the root."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: 1-based line, dotted key ('' for the file itself), found, required."""

    line: int
    key: str
    found: str
    required: str

    def __str__(self) -> str:
        where = f"{self.key}: " if self.key else ""
        return f"{where}found {self.found}; required {self.required}"


class MarkedYamlError(ValueError):
    """The text is not YAML, or not the subset; carries the Problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"line {problem.line}: {problem}")
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Marked:
    """`value` is dict, list, str, int, float, bool or None; `lines[path]` the 1-based line of each key."""

    value: Any
    lines: dict[Path, int]

    def line(self, path: Path) -> int:
        """The line of `path`, or of its nearest parent that the text has."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


class _Loader(yaml.SafeLoader):
    """PyYAML's composer with YAML 1.2's scalars in place of 1.1's (which reads 3e-4 as text)."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own class attribute, replaced and not extended

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise MarkedYamlError(
                Problem(event.start_mark.line + 1, "", f"the alias *{event.anchor}", "the value itself")
            )
        return super().compose_node(parent, index)


_SCALARS: tuple[tuple[str, str, str], ...] = (
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
)
for _tag, _pattern, _first in _SCALARS:
    _firsts = ["" if c == "\0" else c for c in _first]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _firsts)


def load_marked(text: str) -> Marked:
    """Plain values and their lines. Raises MarkedYamlError with the line, what was found and required."""
    if len(text) > MAX_TEXT_CHARS:
        raise MarkedYamlError(Problem(1, "", f"{len(text)} characters", f"at most {MAX_TEXT_CHARS}"))
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        raise MarkedYamlError(
            Problem(mark.line + 1 if mark else 1, "", e.problem or str(e), "valid YAML")
        ) from None
    except yaml.reader.ReaderError as e:
        line = text.count("\n", 0, e.position) + 1
        raise MarkedYamlError(Problem(line, "", f"the character U+{e.character:04X}", "plain text")) from None
    except RecursionError:
        raise MarkedYamlError(Problem(1, "", "lists or mappings nested too deeply", "a few levels")) from None
    lines: dict[Path, int] = {}
    value = None if root is None else _plain(root, (), lines)
    return Marked(value, lines)


def dotted(path: Path) -> str:
    """`('data', 'files', 0)` as `data.files[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _plain(node: yaml.Node, path: Path, lines: dict[Path, int]) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, lines)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, i), lines) for i, item in enumerate(node.value)]
    return _scalar(node, path)


def _mapping(node: yaml.MappingNode, path: Path, lines: dict[Path, int]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = key_node.value
        if not isinstance(key_node, yaml.ScalarNode) or not key_node.tag.endswith(":str"):
            shown = repr(key) if isinstance(key, str) else f"a {key_node.id}"
            raise MarkedYamlError(Problem(line, dotted(path), f"the key {shown}", "keys that are words"))
        here = (*path, key)
        if key in values:
            first = lines[here]
            raise MarkedYamlError(
                Problem(line, dotted(here), f"the key again (first on line {first})", "each key once")
            )
        lines[here] = line
        values[key] = _plain(value_node, here, lines)
    return values


def _scalar(node: yaml.Node, path: Path) -> Any:
    kind, text = node.tag.rpartition(":")[2], node.value
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    line = node.start_mark.line + 1
    if kind in ("int", "float") and len(text) > 40:
        raise MarkedYamlError(
            Problem(line, dotted(path), f"a number of {len(text)} characters", "at most 40 characters")
        )
    if kind == "int":
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if kind == "float":  # Python writes inf and nan without YAML's dot
        return float(text.replace(".", "", 1) if "n" in text.lower() else text)
    raise MarkedYamlError(Problem(line, dotted(path), f"the tag {node.tag!r}", "a plain value without a tag"))
