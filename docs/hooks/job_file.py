"""The reference of the job file, written from the classes that check it and the texts below their fields."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from scheduler.job import JobSpec
from scheduler.mixers import MIXERS
from scheduler.presets import PRESETS

PAGE = "reference/job.md"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return f"{markdown}\n{job_page()}" if page.file.src_uri == PAGE else markdown


def job_page() -> str:
    """Every section with its keys, the parts of blocks and the presets, as Markdown."""
    out = []
    sections = dict(_reached("", JobSpec))
    for model, paths in sections.items():
        title = "The job" if model is JobSpec else f"`{paths[0]}`"
        also = f"Also {', '.join(f'`{p}`' for p in paths[1:])}." if len(paths) > 1 else ""
        out += [f"\n## {title} {{ #{_anchor(model)} }}\n", _about(model), "", also, "", *_table(model)]
    out += [
        "\n## Parts of a block\n",
        "In `model: layers:`, as `[[h3, mlp], 11 x [attention window=128, mlp]]`.",
    ]
    for name, part in MIXERS.items():
        out += [f"\n### `{name}` {{ #part-{name.replace('_', '-')} }}\n", _about(part), "", *_table(part)]
    out += ["\n## Presets\n", "Of `model: preset:`.", "", ", ".join(f"`{p}`" for p in PRESETS)]
    return "\n".join(out)


def _reached(path: str, model: type[BaseModel]) -> Iterator[tuple[type[BaseModel], list[str]]]:
    """(section, the keys that it stands under), the job first, each section once."""
    found: dict[type[BaseModel], list[str]] = {}
    waiting = [(path, model)]
    while waiting:
        at, section = waiting.pop(0)
        if section in found:
            found[section].append(at)
            continue
        found[section] = [at]
        for key, field in section.model_fields.items():
            name = f"{at}.{key}" if at else key
            waiting += [(name, inner) for inner in _models(field.annotation)]
    yield from found.items()


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _anchor(model: type[BaseModel]) -> str:
    return model.__name__.lower()


def _about(model: type[BaseModel]) -> str:
    own = model.__dict__.get("__doc__")
    return inspect.cleandoc(own) if own else ""


def _table(model: type[BaseModel]) -> list[str]:
    if not model.model_fields:
        return ["No options."]
    texts = _texts(model)
    rows = []
    for key, field in model.model_fields.items():
        said = texts.get(key) or next((_first_sentence(_about(m)) for m in _models(field.annotation)), "")
        rows.append(f"| `{key}` | {_kind(field)} | {_default(field)} | {' '.join(said.split())} |")
    return ["| key | value | default | meaning |", "|---|---|---|---|", *rows]


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.:])\s", text, maxsplit=1)[0]


def _texts(model: type[BaseModel]) -> dict[str, str]:
    """What stands below each field, of the class and of those it comes from."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls is BaseModel:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                text = (
                    below.value.value
                    if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                    else ""
                )
                found[node.target.id] = str(text)
    return found


def _kind(field: FieldInfo) -> str:
    return _shown(field.annotation, field.metadata)


def _shown(annotation: Any, limits: list[Any]) -> str:
    """A type as a job's author sees it: `one of …`, a number with its range, a link to a section."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _shown(inner[0], [*_flat(inner[1:]), *limits])
    if origin is Literal:
        return ", ".join(f"`{json.dumps(v) if not isinstance(v, str) else v}`" for v in inner)
    if origin in (Union, UnionType):
        kinds = [_shown(k, limits) for k in inner if k is not NoneType]
        return " or ".join(dict.fromkeys(kinds))
    if origin is tuple:
        items = [_shown(k, []) for k in inner if k is not Ellipsis]
        return f"a list of {items[0]}" if Ellipsis in inner else f"[{', '.join(items)}]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[section](#{_anchor(annotation)})"
    names = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return names.get(annotation, str(annotation)) + _range(limits)


def _flat(limits: Any) -> Iterator[Any]:
    for limit in limits:
        yield from limit.metadata if isinstance(limit, FieldInfo) else (limit,)


def _range(limits: list[Any]) -> str:
    words = {"ge": "{} or more", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
    said = [
        words[name].format(f"{value:g}" if abs(value) < 2**40 else "2^63")
        for limit in limits
        for name in words
        if (value := getattr(limit, name, None)) is not None
    ]
    return f", {', '.join(said)}" if said else ""


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if value is None or isinstance(value, BaseModel) or value == () or value == "":
        return ""
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
