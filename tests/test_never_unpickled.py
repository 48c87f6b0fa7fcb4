"""Nothing that is read from a file or another machine is unpickled or executed: there is no way to do it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("compression", "scheduler", "protos", "coordinator", "worker", "sim", "deploy")
MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "jsonpickle"}
CALLS = {
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "eval",
    "exec",
    "pandas.read_pickle",
    "pd.read_pickle",
}
NUMPY_LOADS = {"np.load", "numpy.load"}
"""Allowed with `allow_pickle=False` written beside it."""


def name_of(node: ast.expr) -> str:
    """`a.b.c` of such an expression, else ''."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := name_of(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def offences(source: str) -> Iterator[str]:
    """What must not be there, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        for name in names:
            if name.split(".")[0] in MODULES:
                yield f"import of {name}"
        if isinstance(node, ast.Call):
            called = name_of(node.func)
            refuses = any(
                k.arg == "allow_pickle" and isinstance(k.value, ast.Constant) and k.value.value is False
                for k in node.keywords
            )
            if called in CALLS or (called in NUMPY_LOADS and not refuses):
                yield f"{node.lineno}: call of {called}"
            if any(
                k.arg == "trust_remote_code" and not (isinstance(k.value, ast.Constant) and not k.value.value)
                for k in node.keywords
            ):
                yield f"{node.lineno}: trust_remote_code"


def files() -> list[Path]:
    return [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]


def test_the_tree_is_walked() -> None:
    assert len(files()) > 200


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_can_unpickle_or_execute_what_it_reads(package: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{offence}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for offence in offences(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle.cloudpickle as c",
        "x = torch.load(f)",
        "x = torch.load(f, weights_only=True)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "numpy.load(f, allow_pickle=flag)",
        "yaml.load(t, Loader=L)",
        "eval('1')",
        "AutoModel.from_pretrained(d, trust_remote_code=True)",
    ],
)
def test_each_way_would_be_noticed(source: str) -> None:
    assert list(offences(source))


@pytest.mark.parametrize(
    "source",
    ["np.load(f, allow_pickle=False)", "model.eval()", "yaml.compose(t)", "safetensors.torch.load(d)"],
)
def test_what_is_safe_is_let_be(source: str) -> None:
    assert not list(offences(source))
