"""What is said to one host's shell. Pure text: secrets travel in it (ssh's stdin), never as arguments."""

from __future__ import annotations

from shlex import join, quote

from deploy.over_ssh.hosts import Host, Hosts

_BEGIN = """\
set -euo pipefail
umask 077
home={home}
case $home in "~/"*) home=$HOME/${{home#"~/"}} ;; /*) ;; *) home=$HOME/$home ;; esac
mkdir -p "$home/logs" "$home/state"
run="$home/run"
"""
_INSTALL = """\
wanted={install}
if [ ! -x "$home/venv/bin/python" ]; then {python} -m venv "$home/venv"; fi
if [ "$(cat "$home/installed" 2>/dev/null || true)" != "$wanted" ]; then
  "$home/venv/bin/pip" install -q --disable-pip-version-check "$wanted"
  printf %s "$wanted" > "$home/installed"
  echo "installed $wanted"
fi
"""
_FILE = """\
cat > "$home/{name}.new" <<'{mark}'
{text}
{mark}
mv "$home/{name}.new" "$home/{name}"
"""
_MARK = "END-OF-FILE-7c1e5a"
_STOP = """\
stopped=
for name in {names}; do
  pid=$(cat "$run/$name.lock" 2>/dev/null || true)
  if [ -n "$pid" ] && kill -TERM "$pid" 2>/dev/null; then
    echo "$name: told to finish its step and leave (process $pid)"; stopped="$stopped $pid"
  else echo "$name: does not run"; fi
done
for pid in $stopped; do
  n=0
  while kill -0 "$pid" 2>/dev/null && [ $n -lt {grace_s} ]; do sleep 1; n=$((n + 1)); done
  if kill -0 "$pid" 2>/dev/null; then kill -KILL "$pid"; echo "process $pid was killed after {grace_s} s"; fi
done
"""
_STATUS = """\
for name in {names}; do
  pid=$(cat "$run/$name.lock" 2>/dev/null || true)
  state="does not run"
  if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; then state="runs, process $pid"; fi
  echo "$name: $state; $(tail -n 1 "$home/logs/$name.log" 2>/dev/null || true)"
done
"""


def up(hosts: Hosts, host: Host, token: str, ca: str | None) -> str:
    """Install if another version is wanted, leave token and CA, start what does not run yet."""
    parts = [_begin(hosts)]
    if hosts.install:
        parts.append(_INSTALL.format(install=quote(hosts.install), python=quote(hosts.python)))
    for name, text in (("token", token), ("ca.pem", ca)):
        if text is not None:
            if _MARK in text:
                raise ValueError(f"{name}: found {_MARK} in it, required a token or certificate")
            parts.append(_FILE.format(name=name, text=text.strip(), mark=_MARK))
    parts += [_worker(hosts, host, i, ca is not None) for i in range(len(host.devices))]
    return "".join(parts)


def down(hosts: Hosts, host: Host, grace_s: int) -> str:
    """Tell each worker to finish its step and leave; kill what is there after the grace."""
    return _begin(hosts) + _STOP.format(names=join(host.names), grace_s=grace_s)


def status(hosts: Hosts, host: Host) -> str:
    """One line a worker: whether it runs, and what it said last."""
    return _begin(hosts) + _STATUS.format(names=join(host.names))


def _begin(hosts: Hosts) -> str:
    return _BEGIN.format(home=quote(hosts.home))


def _worker(hosts: Hosts, host: Host, i: int, secure: bool) -> str:
    name, port = host.names[i], host.data_port + i
    address = host.advertise or host.host
    told = [
        "join", hosts.coordinator, "--name", name, "--device", host.devices[i], "--json",
        "--bind", f"{host.bind or '0.0.0.0'}:{port}", "--advertise", f"{address}:{port}",
        *(("--region", host.region) if host.region else ()),
        *(("--data-dir", host.data_dir) if host.data_dir else ()),
        *(() if secure else ("--insecure",)),
        *hosts.options,
    ]  # fmt: skip
    own = f'--token-file "$home/token" --state-dir "$home/state/{name}"' + (
        ' --ca "$home/ca.pem"' if secure else ""
    )
    return (
        f'"$home/venv/bin/deploy" supervise {quote(name)} --run-dir "$run" --detach '
        f'--log "$home/logs/{name}.log" -- "$home/venv/bin/worker" {join(told)} {own}\n'
        f"echo {quote(f'{name}: started')}\n"
    )
