"""The reference of the commands, written from the commands themselves whenever the site is built."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

PROGRAMS = ("coordinator", "worker", "sim", "deploy")
PAGE = "reference/cli.md"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return f"{markdown}\n{commands_page()}" if page.file.src_uri == PAGE else markdown


def commands_page() -> str:
    """Every command with its arguments and options, as Markdown."""
    return "\n".join(line for name in PROGRAMS for line in _section(name, root(name), 2))


def root(program: str) -> Any:
    """The click command behind one of our programs."""
    from typer.main import get_command

    return get_command(import_module(f"{program}.cli").app)


def children(command: Any) -> dict[str, Any]:
    """The commands of a group by name; {} where it has none."""
    if not hasattr(command, "list_commands"):
        return {}
    names = command.list_commands(None)
    return {n: c for n in names if not (c := command.get_command(None, n)).hidden}


def _section(name: str, command: Any, level: int) -> Iterator[str]:
    yield f"\n{'#' * min(level, 4)} `{name}` {{ #{name.replace(' ', '-')} }}\n"
    yield _plain(command.help or "")
    below = children(command)
    if below:
        for short, child in below.items():
            yield from _section(f"{name} {short}", child, level + 1)
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    words = [name, *(_argument(p) for p in arguments), *(["[OPTIONS]"] if options else [])]
    yield f"\n```text\n{' '.join(words)}\n```\n"
    rows = [(f"`{_argument(p)}`", "", _meaning(p)) for p in arguments if _meaning(p)]
    rows += [(_spelled(p), _default(p), _meaning(p)) for p in options if p.name != "help"]
    if rows:
        yield "| option | default | meaning |\n|---|---|---|"
        yield from (f"| {' | '.join(_cell(x) for x in row)} |" for row in rows)


def _argument(p: Any) -> str:
    word = (p.metavar or p.name).upper().strip("[]")
    word += "..." if p.nargs == -1 else ""
    return word if p.required else f"[{word}]"


def _spelled(p: Any) -> str:
    names = ", ".join(f"`{o}`" for o in (*p.opts, *p.secondary_opts))
    return names if p.is_flag else f"{names} {_kind(p)}"


def _kind(p: Any) -> str:
    """What an option wants: as it says, else by its annotation, where this version of typer keeps that."""
    wanted: Any = getattr(getattr(p, "type_descriptor", None), "annotation", None)
    if get_origin(wanted) is Literal:
        return "\\|".join(map(str, get_args(wanted)))
    return str(p.metavar or {int: "N", float: "NUMBER", Path: "PATH"}.get(wanted, "TEXT"))


def _default(p: Any) -> str:
    if p.required:
        return "required"
    value = p.default
    if p.is_flag or value is None or value in ("", [], ()) or callable(value) or not _simple(value):
        return ""
    return f"`{value}`"


def _simple(value: Any) -> bool:
    return isinstance(value, str | int | float) or (isinstance(value, Path) and not value.is_absolute())


def _meaning(p: Any) -> str:
    parts = [p.help or ""]
    if p.param_type_name == "option" and p.multiple and "repeated" not in parts[0]:
        parts.append("May be repeated.")
    if isinstance(p.envvar, str):
        parts.append(f"Environment: `{p.envvar}`.")
    return " ".join(x for x in parts if x)


def _plain(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def _cell(text: str) -> str:
    text = " ".join(text.split())
    return text if "`" in text or "\\|" in text else text.replace("|", "\\|")
