"""Says a script to hosts over plain OpenSSH, many at once, and tells what each answered."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from deploy.over_ssh.hosts import Host, Hosts

AT_ONCE = 16
CONNECT_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What a host said; `code` 255 is ssh's own failure (unreachable, refused)."""

    host: str
    code: int
    said: str


def argv(hosts: Hosts, host: Host, ssh: tuple[str, ...] = ("ssh",)) -> list[str]:
    """ssh, never asking anything: a host that is not known or wants a password is an answer, not a prompt."""
    user = host.user or hosts.user
    return [
        *ssh, "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}", "-p", str(host.port),
        *(("-i", str(hosts.identity)) if hosts.identity else ()),
        f"{user}@{host.host}" if user else host.host, "bash -s",
    ]  # fmt: skip


def say(
    hosts: Hosts, script: Callable[[Host], str], timeout_s: float, ssh: tuple[str, ...] = ("ssh",)
) -> Iterator[Answer]:
    """Each host's answer, in the file's order. A host that fails costs the others nothing."""

    def one(host: Host) -> Answer:
        try:
            done = subprocess.run(
                argv(hosts, host, ssh), input=script(host), capture_output=True, text=True, check=False,
                timeout=timeout_s,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Answer(host.host, 255, f"no answer within {timeout_s:g} s")
        return Answer(host.host, done.returncode, (done.stdout + done.stderr).strip())

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(one, hosts.hosts)
