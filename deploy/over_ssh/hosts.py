"""The hosts file of `deploy ssh`: which machines, and how their workers join. Strict: no key is ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from scheduler.names import nearest
from scheduler.reasons import reason_of

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Address = Annotated[str, Field(pattern=r"^[^\s:]+:[0-9]{1,5}$|^\[[0-9a-fA-F:]+\]:[0-9]{1,5}$")]
MAX_BYTES = 1 << 20


class HostsError(ValueError):
    """A hosts file that cannot be: names file and key, what was found and what is required."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Host(_Strict):
    """One machine. `devices`: one worker each (`cpu`, `cuda:0`, …); `advertise`: where peers reach it."""

    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")]
    user: Word | None = None
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    name: Word | None = None
    region: Word | None = None
    devices: Annotated[
        list[Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$")]], Field(min_length=1)
    ] = ["auto"]
    data_port: Annotated[int, Field(ge=1, le=65000)] = 29530
    bind: str | None = None
    advertise: str | None = None
    data_dir: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of its workers, one a device."""
        base = self.name or self.host.partition(".")[0].replace(":", "-")
        return (base,) if len(self.devices) == 1 else tuple(f"{base}-{i}" for i in range(len(self.devices)))


class Hosts(_Strict):
    """A hosts file. Paths are of this machine and relative to the file; `home` is the hosts'."""

    coordinator: Address
    token_file: Path
    ca: Path | None = None
    insecure: bool = False
    user: Word | None = None
    identity: Path | None = None
    """The ssh key; none: ssh's own choice."""
    home: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./~-]+$")] = "isthmus"
    python: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]+$")] = "python3"
    install: str = "isthmus[worker]"
    """A requirement for pip; '' leaves what is there (and wants it at HOME/venv)."""
    options: list[str] = []
    """More words for `worker join`."""
    hosts: Annotated[list[Host], Field(min_length=1, max_length=10_000)]

    @model_validator(mode="after")
    def _agree(self) -> Hosts:
        names = [name for host in self.hosts for name in host.names]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"found the worker name {twice[0]!r} twice; required a `name` of its own for each host"
            )
        if self.ca is None and not self.insecure:
            raise ValueError(
                "found neither `ca` nor `insecure: true`; required one: how tensors and token travel"
            )
        return self


def read_hosts(path: Path) -> Hosts:
    """The hosts of a file, its paths made absolute. HostsError if it says what cannot be."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise HostsError(f"{path}: found {path.stat().st_size} bytes, required at most {MAX_BYTES}")
        found = Hosts.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise HostsError(f"{path}: found no hosts to read ({reason_of(error)})") from None
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise HostsError("\n".join(f"{path}: {_problem(p)}" for p in problems)) from None
    at = path.resolve().parent
    update = {"token_file": at / found.token_file, "ca": at / found.ca if found.ca is not None else None}
    update["identity"] = at / found.identity.expanduser() if found.identity is not None else None
    for key, file in update.items():
        if file is not None and not file.is_file():
            raise HostsError(f"{path}: {key}: found no file {file}; required one")
    return found.model_copy(update=update)


def _problem(error: ErrorDetails) -> str:
    """One of pydantic's, as `key: found …, required …`."""
    at = error["loc"]
    key = ".".join(map(str, at)) or "the file"
    match error["type"]:
        case "missing":
            return f"{key}: found no such key, required a value for it"
        case "extra_forbidden":
            known = list((Host if len(at) > 1 else Hosts).model_fields)
            near = nearest(str(at[-1]), known)
            return f"{key}: found an unknown key{near}, required one of: {', '.join(known)}"
        case "value_error":
            return f"{key}: {error['ctx']['error']}"
        case _:
            required = error["msg"].removeprefix("Input should be ")
            return f"{key}: found {str(error['input'])[:80]!r}, required {required}"
