"""The generated references say all there is, and the site's pages hang together."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from scheduler.exit_codes import EXITS
from scheduler.job import JobSpec
from scheduler.job_compression import AcsgdOptions, LinkSpec
from scheduler.mixers import MIXERS
from tests.docs.examples import load

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PROTO = (ROOT / "protos" / "orchestrator.proto").read_text(encoding="utf-8")
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def hook(name: str) -> Any:
    return load(DOCS / "hooks" / f"{name}.py")


def test_every_command_and_option_is_listed() -> None:
    cli = hook("cli")
    page = cli.commands_page()
    seen = 0

    def walk(name: str, command: Any) -> None:
        nonlocal seen
        below = cli.children(command)
        for short, child in below.items():
            walk(f"{name} {short}", child)
        if not below:
            seen += 1
            section = page.split(f"`{name}` {{ #")[1].split("\n#")[0]
            for p in command.params:
                if p.param_type_name == "option" and not p.hidden and p.name != "help":
                    assert f"`{p.opts[0]}`" in section, f"{name} {p.opts[0]}"

    for program in cli.PROGRAMS:
        walk(program, cli.root(program))
    assert seen > 25
    assert "--silence" not in page, "what is hidden stays so"


def test_every_key_of_a_job_is_listed_with_its_default_and_meaning() -> None:
    page = hook("job_file").job_page()
    sections: tuple[type[BaseModel], ...] = (JobSpec, LinkSpec, AcsgdOptions, *MIXERS.values())
    for model in sections:
        for key in model.model_fields:
            assert f"| `{key}` |" in page, f"{model.__name__}.{key}"
    assert "| `clip_norm` | number, 0 or more | `1.0` | Global gradient norm; 0: no clipping. |" in page
    assert "| `steps` | whole number, 1 or more | required |" in page
    assert "| `micro_batch` | `auto` or whole number, 1 or more | required |" in page
    assert not re.search(r"<class|typing\.|Annotated|FieldInfo", page)
    anchors = set(re.findall(r"\{ #(\S+) \}", page))
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= anchors


def test_every_message_of_the_protocol_is_listed_whole() -> None:
    page = hook("protocol").protocol_page(PROTO)
    names = re.findall(r"^(?:service|message) (\w+)", PROTO, re.MULTILINE)
    assert re.findall(r"^### (\w+)", page, re.MULTILINE) == names
    code = "".join(re.findall(r"```proto\n(.*?)```", page, re.DOTALL))
    fields = re.findall(r"\w+ = \d+;", PROTO)
    assert sorted(re.findall(r"\w+ = \d+;", code)) == sorted(fields)


def test_every_exit_code_is_listed() -> None:
    page = hook("exit_codes").exits_table()
    assert all(
        f"| {int(e.code)} | {e.code.name} | {e.meaning} | {e.remedy} |" in page for e in EXITS.values()
    )


def test_what_the_python_reference_names_exists() -> None:
    text = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    for name in named:
        module, _, thing = name.rpartition(".")
        assert getattr(import_module(module), thing).__doc__, name
    api = [import_module(m) for m in ("sim.api", "deploy.api")]
    shown = {n.rpartition(".")[2] for n in named}
    functions = {n for m in api for n in m.__all__ if callable(getattr(m, n)) and n[0].islower()}
    assert functions <= shown


def pages() -> set[str]:
    return {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md")}


def named(entries: Any) -> list[str]:
    if isinstance(entries, str):
        return [entries]
    inner = entries.values() if isinstance(entries, dict) else entries
    return [page for entry in inner for page in named(entry)]


def test_every_page_is_in_the_menu_once() -> None:
    found = named(SITE["nav"])
    assert sorted(found) == sorted(pages())


@pytest.mark.parametrize("page", sorted(pages()))
def test_what_a_page_links_and_shows_is_there(page: str) -> None:
    text = re.sub(r"```.*?```", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    shown = re.findall(r"^--8<-- \"(.+)\"$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    run = re.findall(r"<!-- output: (\S+) -->", text)
    missing = [link for link in links if not (DOCS / page).parent.joinpath(link).exists()]
    missing += [path for path in shown if not (ROOT / path).exists()]
    missing += [name for name in run if not (DOCS / "examples" / name).exists()]
    assert not missing


def test_every_example_is_shown_as_it_is() -> None:
    text = "".join((DOCS / p).read_text(encoding="utf-8") for p in pages())
    shown = set(re.findall(r"^--8<-- \"docs/examples/(.+)\"$", text, re.MULTILINE))
    assert shown == {p.name for p in (DOCS / "examples").glob("*.py")}


def test_the_site_takes_nothing_from_other_hosts() -> None:
    assert SITE["theme"]["font"] is False
    assert "extra_javascript" not in SITE
    assert not [
        p for p in pages() if re.search(r"!\[[^]]*\]\(https?:", (DOCS / p).read_text(encoding="utf-8"))
    ]
