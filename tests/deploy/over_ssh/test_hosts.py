"""A hosts file is read strictly, and what is said to a host follows from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.over_ssh import script
from deploy.over_ssh.hosts import HostsError, read_hosts
from deploy.over_ssh.shell import argv

GOOD = """
coordinator: coordinator.example.org:29520
token_file: token
insecure: true
user: ana
hosts:
  - {host: gpu.example.org, region: oregon, devices: ["cuda:0", "cuda:1"], data_dir: /data}
  - {host: 10.0.0.7, name: lab, user: bo, port: 2222}
"""


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "token").write_text("secret\n")
    path = tmp_path / "hosts.yaml"
    path.write_text(text)
    return path


def test_a_host_has_a_worker_for_each_device(tmp_path: Path) -> None:
    hosts = read_hosts(written(tmp_path, GOOD))
    assert [host.names for host in hosts.hosts] == [("gpu-0", "gpu-1"), ("lab",)]
    said = script.up(hosts, hosts.hosts[0], "secret", None)
    for word in ("--device cuda:1", "--advertise gpu.example.org:29531", "--region oregon", "--insecure"):
        assert word in said
    assert argv(hosts, hosts.hosts[1])[-4:] == ["-p", "2222", "bo@10.0.0.7", "bash -s"]
    assert "secret" not in " ".join(argv(hosts, hosts.hosts[0]))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("insecure: true", ""), "found neither `ca` nor `insecure"),
        (("token_file: token", "token_file: nowhere"), "token_file: found no file"),
        (("name: lab", "name: gpu-1"), "found the worker name 'gpu-1' twice"),
        (("port: 2222", "port: 0"), "hosts.1.port"),
        (("user: ana", "usr: ana"), "usr: found an unknown key .did you mean 'user'"),
        (('"cuda:0"', '"gpu"'), "hosts.0.devices.0"),
        (("host: 10.0.0.7", 'host: "-oProxyCommand=x"'), "hosts.1.host"),
        ((":29520", ""), "coordinator: found .*, required"),
        (("token_file: token", ""), "token_file: found no such key"),
        (("hosts:", "hosts: ["), "found no hosts to read"),
    ],
)
def test_a_file_that_cannot_be_names_the_key(tmp_path: Path, change: tuple[str, str], found: str) -> None:
    with pytest.raises(HostsError, match=found):
        read_hosts(written(tmp_path, GOOD.replace(*change)))
