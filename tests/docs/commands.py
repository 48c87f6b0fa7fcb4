"""Command lines as texts have them, held against the commands themselves.

Parses as the command would, without running it and without asking whether files exist.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from typer.main import get_command

PROGRAMS = ("coordinator", "worker", "sim", "deploy")
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_SPOKEN = re.compile(rf"`((?:{'|'.join(PROGRAMS)}) [a-z][^`]*)`")
_CALL = re.compile(rf"(?:^|[\s/;&|(])((?:{'|'.join(PROGRAMS)}) [a-z].*)")


def fences(text: str) -> Iterator[tuple[str, str]]:
    """(language, content) of each fenced block of a Markdown text."""
    for found in _FENCE.finditer(text):
        yield found[2], found[3]


def in_blocks(text: str) -> Iterator[str]:
    """Calls of our programs in a Markdown text's code blocks, a line each; comments and what follows a
    pipe or another command left out."""
    for language, content in fences(text):
        if language in ("", "bash", "sh", "console"):
            for line in content.replace("\\\n", " ").splitlines():
                if found := _CALL.search(re.sub(r"(^|\s)#.*", "", line)):
                    yield re.split(r" (?:&&|;|>|\|) |;|&$", found[1])[0].strip()


def in_words(text: str) -> Iterator[str]:
    """Calls in a text's running words, between backticks; those with alternatives are not calls."""
    for block in _FENCE.findall(text):
        text = text.replace(block[2], "")
    for found in _SPOKEN.finditer(text):
        yield " ".join(found[1].split())


def options_of(program: str, *path: str) -> set[str]:
    """The options of a command, such as `worker join`; those that its help hides are left out."""
    command: Any = get_command(import_module(f"{program}.cli").app)
    for name in path:
        command = command.get_command(None, name)
    return {o for p in command.params if not getattr(p, "hidden", False) for o in _spellings(p)} | {"--help"}


def _spellings(p: Any) -> tuple[str, ...]:
    return (*p.opts, *p.secondary_opts)


def complaint(line: str, whole: bool = True) -> str:
    """What is wrong with a command line; '' if its command would take it. `whole`: required arguments, too.

    `[…]`, `…` and `A | B` in it mean that only what is there is said.
    """
    loose = bool(re.search(r"…|\.\.\.|\[| \| ", line)) or not whole
    words = [w for w in shlex.split(line.replace("…", " ").replace("...", " ")) if w not in ("[", "]", "|")]
    command: Any = get_command(import_module(f"{words[0]}.cli").app)
    at = 1
    while hasattr(command, "get_command"):
        if at == len(words):
            return ""
        inner = command.get_command(None, words[at])
        if inner is None:
            return "" if words[at].isupper() else f"{' '.join(words[:at])} knows no {words[at]!r}"
        command, at = inner, at + 1
    return _parsed(command, words[at:], loose)


def _parsed(command: Any, words: list[str], loose: bool) -> str:
    if loose:
        known = {o for p in command.params for o in _spellings(p)} | {"--help"}
        said = {w.strip("[]").partition("=")[0] for w in words if w.strip("[").startswith("--") and w != "--"}
        return f"knows no {', '.join(sorted(said - known))}" if said - known else ""
    if "--help" in words:
        return ""
    context = command.context_class(command, info_name=command.name)
    try:
        given, rest, _ = command.make_parser(context).parse_args(list(words))
    except Exception as e:  # click's own, under whichever name this version has it
        return getattr(e, "message", str(e)) or type(e).__name__
    missing = [
        p.name for p in command.params if p.required and not p.envvar and given.get(p.name) in (None, ())
    ]
    if missing:
        return f"needs {', '.join(missing)}"
    return f"takes no {' '.join(rest)}" if rest and not command.allow_extra_args else ""
