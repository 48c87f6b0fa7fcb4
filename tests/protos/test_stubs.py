"""The committed stubs are what the committed .proto generates."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = "1.71.2"
STUBS = ("orchestrator_pb2.py", "orchestrator_pb2.pyi", "orchestrator_pb2_grpc.py")


def _generator() -> str:
    """A Python whose grpcio-tools is the version that made the stubs; skips where there is none."""
    for python in (sys.executable, str(ROOT / ".venv" / "protoc" / "bin" / "python")):
        if Path(python).exists():
            ask = "from importlib.metadata import version; print(version('grpcio-tools'))"
            found = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
            if found.stdout.strip() == GENERATOR:
                return python
    have = "another version" if find_spec("grpc_tools") else "none"
    pytest.skip(f"needs grpcio-tools {GENERATOR}, found {have}; `make test` provides it")


def test_regenerated_stubs_are_the_committed_ones(tmp_path: Path) -> None:
    argv = [_generator(), "-m", "grpc_tools.protoc", "-I."]
    argv += [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([*argv, "protos/orchestrator.proto"], cwd=ROOT, check=True, capture_output=True)
    for name in STUBS:
        assert (tmp_path / "protos" / name).read_text() == (ROOT / "protos" / name).read_text(), (
            f"protos/{name} is not what protos/orchestrator.proto generates: regenerate it"
        )
