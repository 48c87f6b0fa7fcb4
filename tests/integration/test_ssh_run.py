"""Workers started over ssh: twice does no harm, they train, and they leave when told to.

By OpenSSH against a server of our own on loopback where one is installed, else by a stand-in that hands the
same script to the same shell.
"""

from __future__ import annotations

import getpass
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.over_ssh import script
from deploy.over_ssh.hosts import Hosts, read_hosts
from deploy.over_ssh.shell import Answer, say
from deploy.processes import Child, command, free_port
from scheduler.exit_codes import ExitCode

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
TEXT = Path(__file__).parent.parent / "data" / "text.txt"
JOB = f"""
name: over-ssh
model: {{family: gpt2, layers: 2, hidden: 32, heads: 4}}
data: {{files: ["{TEXT}"], held_out: 0.05, eval_samples: 8}}
sequence_length: 32
global_batch: 4
micro_batch: 2
steps: 100000
parallelism: {{stages: 2, replicas: 1}}
"""


def stand_in(at: Path) -> tuple[str, ...]:
    path = at / "ssh"
    path.write_text("#!/bin/sh\nexec bash -s\n")
    path.chmod(0o755)
    return (str(path),)


@pytest.fixture(
    params=["stand-in", pytest.param("sshd", marks=pytest.mark.skipif(SSHD is None, reason="no sshd"))]
)
def ssh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[tuple[str, ...], int]]:
    """The ssh to call and the server's port."""
    if request.param == "stand-in":
        yield stand_in(tmp_path), 22
        return
    assert SSHD is not None
    for name in ("host_key", "user_key"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(make, check=True)
    (tmp_path / "authorized").write_text((tmp_path / "user_key.pub").read_text())
    port = free_port()
    config = tmp_path / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host_key\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {tmp_path}/authorized\nStrictModes no\nPasswordAuthentication no\n"
    )
    client = tmp_path / "ssh_config"
    key = (tmp_path / "host_key.pub").read_text()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {key}")
    client.write_text(f"IdentityFile {tmp_path}/user_key\nUserKnownHostsFile {tmp_path}/known\n")
    if getpass.getuser() == "root":
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    assert "listening" in server.stderr.readline()
    yield ("ssh", "-F", str(client)), port
    server.terminate()
    server.communicate()


def hosts_of(tmp_path: Path, address: str, token_file: str, ssh_port: int, data_port: int) -> Hosts:
    home = tmp_path / "home"
    venv = home / "venv" / "bin"
    venv.mkdir(parents=True)
    root = Path(__file__).parents[2]
    for name in ("deploy", "worker"):
        words = f'#!/bin/sh\nexport PYTHONPATH={root}\nexec {sys.executable} -m {name}.cli "$@"\n'
        (venv / name).write_text(words)
        (venv / name).chmod(0o755)
    file = tmp_path / "hosts.yaml"
    file.write_text(
        f"coordinator: {address}\ntoken_file: {token_file}\ninsecure: true\nhome: {home}\n"
        "install: ''\nhosts:\n"
        f"  - {{host: 127.0.0.1, port: {ssh_port}, name: w, devices: [cpu, cpu], data_port: {data_port},"
        f" bind: 127.0.0.1, region: lab, data_dir: {tmp_path}}}\n"
    )
    return read_hosts(file)


def test_workers_come_train_and_leave(ssh: tuple[tuple[str, ...], int], tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    state = ["--bind", "127.0.0.1:0", "--state-dir", str(tmp_path / "state"), "--json"]
    coordinator = Child("coordinator", command("coordinator", "start", str(job), *state), tmp_path / "c.log")
    try:
        listening = coordinator.wait_for("listening", 120.0)
        data_port = free_port()
        hosts = hosts_of(tmp_path, listening["address"], listening["token_file"], ssh[1], data_port)
        token = hosts.token_file.read_text()

        def answer(of_host: str) -> Answer:
            words = {
                "up": lambda host: script.up(hosts, host, token, None),
                "status": lambda host: script.status(hosts, host),
                "down": lambda host: script.down(hosts, host, 120),
            }[of_host]
            [found] = say(hosts, words, 300.0, ssh[0])
            assert found.code == 0, found.said
            return found

        assert "supervised already" not in answer("up").said
        assert answer("up").said.count("is supervised already") == 2
        coordinator.wait_for("step", 180.0)
        assert answer("status").said.count("runs, process") == 2
        assert answer("down").said.count("told to finish its step and leave") == 2
        assert answer("status").said.count("does not run") == 2
    finally:
        code = coordinator.stop(30.0)
    assert code != ExitCode.INTERNAL, coordinator.tail()


def test_a_host_that_is_not_there_is_an_answer(tmp_path: Path) -> None:
    if shutil.which("ssh") is None:
        pytest.skip("no ssh")
    (tmp_path / "token").write_text("t")
    port = free_port()
    hosts = hosts_of(tmp_path, "127.0.0.1:1", str(tmp_path / "token"), port, 1)
    [found] = say(hosts, lambda host: script.status(hosts, host), 60.0)
    assert found.code == 255
    assert "refused" in found.said.lower()
