"""The `worker` command. Reads options and prints; torch is imported only by what needs it.

What the exit codes mean is `scheduler.exit_codes`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from protos.address import AddressError, split_host_port
from protos.log_lines import LogFormat, LogLines
from protos.relay_key import relay_key
from protos.tls import Authority, TlsError, is_loopback, read_authority
from scheduler.exit_codes import EXITS, ExitCode
from scheduler.reasons import reason_of

app = typer.Typer(
    help="Hold a stage of a model and run its steps. Exit codes: `coordinator exit-codes`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Address = Annotated[
    str, typer.Argument(metavar="HOST:PORT", help="The coordinator.", envvar="ISTHMUS_ADDRESS")
]
TokenFile = Annotated[
    Path | None, typer.Option(help="File with the coordinator's token.", envvar="ISTHMUS_TOKEN_FILE")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
Bind = Annotated[
    str | None,
    typer.Option(help="HOST:PORT for tensors; default: a free port of loopback.", envvar="ISTHMUS_DATA_BIND"),
]
CaFile = Annotated[
    Path | None,
    typer.Option("--ca", help="The ca.pem that `coordinator certs` made.", envvar="ISTHMUS_CA"),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Go beyond this machine without --ca: whoever reads the network reads token and keys.",
        envvar="ISTHMUS_INSECURE",
    ),
]


class _Say:
    """What a worker tells of itself: a line for people, or a JSON object."""

    def __init__(self, as_json: bool, logs: LogLines | None = None) -> None:
        self._as_json = as_json
        self._logs = logs

    def __call__(self, event: str, **values: object) -> None:
        if self._logs is not None:
            typer.echo(self._logs.of_event({"event": event, **values}))
        elif self._as_json:
            typer.echo(json.dumps({"event": event, **values}))
        elif event == "stage":
            typer.echo(
                f"stage {values['stage']} of replica {values['replica']}: "
                f"layers {values['first_layer']} to {values['last_layer']}"
            )
        else:
            typer.echo(f"{event}: " + ", ".join(f"{k} {v}" for k, v in values.items()))


def _end(code: ExitCode, message: str, as_json: bool = False) -> NoReturn:
    if as_json:
        error = {"event": "error", "code": int(code), "reason": message, "remedy": EXITS[code].remedy}
        typer.echo(json.dumps(error))
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(int(code))


def _token(path: Path | None, as_json: bool = False) -> str:
    if path is None:
        return os.environ.get("ISTHMUS_TOKEN", "")
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as e:
        reason = f"--token-file {path}: found no token to read ({reason_of(e)}), required the coordinator's"
        _end(ExitCode.TOKEN, reason, as_json)


def _require_address(where: str, what: str, as_json: bool) -> None:
    try:
        split_host_port(where, what)
    except AddressError as e:
        _end(ExitCode.USAGE, str(e), as_json)


def _allow(address: str, bind: str, ca: Path | None, insecure: bool, as_json: bool) -> Authority | None:
    """Who must have signed the coordinator's certificate; None: nobody. Without --ca or --insecure nothing
    leaves this machine in the clear; tensors are always encrypted, with keys that the coordinator names."""
    addresses = address.split(",")
    for what, where in (*(("the coordinator's address", a) for a in addresses), ("--bind", bind)):
        _require_address(where, what, as_json)
    if ca is not None:
        try:
            return read_authority(ca)
        except TlsError as e:
            _end(ExitCode.TLS, str(e), as_json)
    if not insecure and not all(is_loopback(a.rpartition(":")[0]) for a in addresses):
        _end(
            ExitCode.INSECURE_BIND,
            f"HOST:PORT: found {address}, beyond this machine, and no --ca; the token and the keys of the "
            "data plane would travel in the clear. Pass --ca with the coordinator's ca.pem, or --insecure "
            "on a network that is private already",
            as_json,
        )
    return None


@app.command()
def join(
    address: Address,
    token_file: TokenFile = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", envvar="ISTHMUS_DEVICE")] = "auto",
    bind: Bind = None,
    advertise: Annotated[
        str | None,
        typer.Option(help="HOST:PORT that peers connect to, if not --bind.", envvar="ISTHMUS_ADVERTISE"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Default: host name and process id.", envvar="ISTHMUS_NAME")
    ] = None,
    region: Annotated[
        str,
        typer.Option(help="Where this machine is; neighbours are placed together.", envvar="ISTHMUS_REGION"),
    ] = "",
    max_memory: Annotated[
        str | None, typer.Option(help="Use at most this, like 20GB.", envvar="ISTHMUS_MAX_MEMORY")
    ] = None,
    data_dir: Annotated[
        Path, typer.Option(help="Paths of the job are relative to it.", envvar="ISTHMUS_DATA_DIR")
    ] = Path(),
    state_dir: Annotated[
        Path, typer.Option(help="Packed data and the pid file of this worker.", envvar="ISTHMUS_WORKER_DIR")
    ] = Path.home() / ".cache" / "isthmus",
    peer_map: Annotated[
        Path | None,
        typer.Option(help='JSON {"peer": "host:port"}: reach these peers there.', envvar="ISTHMUS_PEER_MAP"),
    ] = None,
    streams: Annotated[
        int, typer.Option(min=1, max=64, help="TCP streams to each peer.", envvar="ISTHMUS_STREAMS")
    ] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.", envvar="ISTHMUS_THREADS")] = 1,
    join_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds to keep trying to join.", envvar="ISTHMUS_JOIN_TIMEOUT")
    ] = 120.0,
    rejoin_timeout: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds to keep trying to join again when the coordinator is gone; 0: end.",
            envvar="ISTHMUS_REJOIN_TIMEOUT",
        ),
    ] = 300.0,
    identity: Annotated[
        Path | None,
        typer.Option(
            help="Directory of this worker's key pair, made on first use; default: the first one of "
            "--state-dir that no other worker uses.",
            envvar="ISTHMUS_IDENTITY",
        ),
    ] = None,
    ca: CaFile = None,
    insecure: Insecure = False,
    fail_at: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            help="json: as --json, with time, level, run, worker and step in every line.",
            envvar="ISTHMUS_LOG_FORMAT",
        ),
    ] = "text",
    as_json: AsJson = False,
) -> None:
    """Join the run of the coordinator at HOST:PORT and work until it ends."""
    as_json = as_json or log_format == "json"
    bind = bind or "127.0.0.1:0"
    authority = _allow(address, bind, ca, insecure, as_json)
    if advertise is not None:
        _require_address(advertise, "--advertise", as_json)
    token = _token(token_file, as_json)
    try:
        import torch  # noqa: F401 (the rest of this command cannot do without)
    except ImportError:
        _end(ExitCode.DEVICE, "found no torch; install it with: pip install 'isthmus[worker]'", as_json)
    from worker.allocator import keep_freed_memory
    from worker.device import DeviceError, choose_device, parse_bytes
    from worker.faults import parse_fault
    from worker.identity import IdentityError, first_free, open_identity
    from worker.member import MemberOptions, run_member
    from worker.session import JoinRefused
    from worker.transport import TransportError

    keep_freed_memory()
    name = name or f"{socket.gethostname()}-{os.getpid()}"
    logs = LogLines(time.time, name) if log_format == "json" else None
    if logs is not None:
        logs.take_over_logging()
    say = _Say(as_json, logs)
    try:
        limit = parse_bytes(max_memory) if max_memory else None
        local = choose_device(device, name=name, region=region, max_memory_bytes=limit)
    except DeviceError as e:
        _end(ExitCode.DEVICE, str(e), as_json)
    try:
        faults = tuple(parse_fault(text) for text in fail_at or ())
    except ValueError as e:
        _end(ExitCode.USAGE, f"--fail-at: {e}", as_json)
    try:
        own = open_identity(identity) if identity else first_free(state_dir / "identities")
    except IdentityError as e:
        _end(ExitCode.STATE_DIR, str(e), as_json)
    options = MemberOptions(
        address=address,
        token=token,
        name=name,
        bind=bind,
        advertise=advertise,
        data_dir=data_dir,
        cache_dir=state_dir / "tokens",
        peer_map=peer_map,
        streams=streams,
        threads=threads,
        join_timeout_s=join_timeout,
        rejoin_timeout_s=rejoin_timeout,
        identity=own,
        authority=authority,
        faults=faults,
        at_step=logs.at_step if logs is not None else lambda _: None,
    )
    pid_file = state_dir / f"worker-{os.getpid()}.json"
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    pid_file.write_text(json.dumps({"pid": os.getpid(), "name": name, "address": address}))
    try:
        code = asyncio.run(run_member(options, local, say))
    except JoinRefused as e:
        _end(e.code, str(e), as_json)
    except TransportError as e:
        _end(ExitCode.PORT_IN_USE, str(e), as_json)
    finally:
        pid_file.unlink(missing_ok=True)
        own.close()
    raise typer.Exit(int(code))


@app.command()
def check(
    address: Address,
    token_file: TokenFile = None,
    bind: Bind = None,
    ca: CaFile = None,
    insecure: Insecure = False,
    record: Annotated[
        Path | None,
        typer.Option(
            help="Measure the links to all workers (some seconds each) and write them here as a trace "
            "(NAME.csv and its companions), to be replayed by `sim run --trace`."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="This machine in the trace; default: its host name.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether this machine could join: the coordinator answers, the token fits, the data port is free,
    and the workers that are there can be reached."""
    from worker.check import CheckFailed, check_all, write_trace

    bind = bind or "127.0.0.1:0"
    authority = _allow(address, bind, ca, insecure, as_json)
    here = name or socket.gethostname()
    try:
        checked = check_all(address, _token(token_file, as_json), bind, here, record is not None, authority)
        found = list(checked.found)
        if record is not None and checked.trace is None:
            _end(
                ExitCode.USAGE,
                "--record: found no worker to measure a link to, required one or more",
                as_json,
            )
        if record is not None and checked.trace is not None:
            found.append(f"the links from {here} are in {write_trace(record, checked.trace)}")
    except CheckFailed as e:
        _end(e.code, str(e), as_json)
    except OSError as e:
        _end(ExitCode.USAGE, f"--record {record}: {e}", as_json)
    if as_json:
        typer.echo(json.dumps({"event": "ok", "found": found}))
    else:
        typer.echo("\n".join(f"ok: {line}" for line in found))


@app.command()
def relay(
    token_file: TokenFile = None,
    bind: Annotated[
        str, typer.Option(help="HOST:PORT that workers connect to.", envvar="ISTHMUS_RELAY_BIND")
    ] = "127.0.0.1:29540",
    as_json: AsJson = False,
) -> None:
    """Pass on the tensors of workers that cannot reach each other; `coordinator start --relay HOST:PORT`
    tells them of it. It needs the run's own token, and sees nothing but encrypted bytes."""
    from protos.relay import serve

    _require_address(bind, "--bind", as_json)
    token = _token(token_file, as_json)
    if not token:
        _end(ExitCode.TOKEN, "found no token; pass --token-file with the run's own", as_json)
    try:
        asyncio.run(serve(bind, relay_key(token), _Say(as_json)))
    except OSError as e:
        _end(
            ExitCode.PORT_IN_USE, f"--bind {bind}: found {e.strerror or e}, required a free address", as_json
        )


@app.command()
def leave(
    name: Annotated[str | None, typer.Option(help="Which worker; default: every one of --state-dir.")] = None,
    state_dir: Annotated[
        Path, typer.Option(help="As given to `worker join`.", envvar="ISTHMUS_WORKER_DIR")
    ] = Path.home() / ".cache" / "isthmus",
) -> None:
    """Ask the workers of this machine to finish their step and leave."""
    told = []
    for file in sorted(state_dir.glob("worker-*.json")):
        entry = json.loads(file.read_text())
        if name in (None, entry["name"]):
            try:
                os.kill(int(entry["pid"]), signal.SIGINT)  # SIGTERM is a machine's that is taken back
                told.append(entry["name"])
            except ProcessLookupError:
                file.unlink(missing_ok=True)  # it was killed and could not tidy up
    if not told:
        _end(ExitCode.USAGE, f"found no worker{f' named {name}' if name else ''} in {state_dir}")
    typer.echo(f"told to leave: {', '.join(told)}")


Checkpoint = Annotated[Path, typer.Argument(help="STATE/checkpoints/step-…", exists=True, file_okay=False)]
DataDir = Annotated[Path | None, typer.Option(help="Paths of the job are relative to it; default: here.")]


@app.command()
def export(
    checkpoint: Checkpoint,
    target: Annotated[Path, typer.Argument(help="Directory to write.")],
    data_dir: DataDir = None,
) -> None:
    """Write a checkpoint in Hugging Face's layout, to be loaded by `transformers`."""
    from worker.export import ExportError, export_checkpoint

    try:
        export_checkpoint(checkpoint, target, data_dir or Path())
    except ExportError as e:
        _end(e.code, str(e))
    typer.echo(f"written: {target}")


@app.command()
def generate(
    checkpoint: Checkpoint,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "\n",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="0: of all.")] = 40,
    seed: int = 0,
    data_dir: DataDir = None,
) -> None:
    """Continue PROMPT with the model of a checkpoint."""
    from worker.export import ExportError, continue_text

    try:
        text = continue_text(checkpoint, prompt, max_new_tokens, temperature, top_k, seed, data_dir or Path())
    except ExportError as e:
        _end(e.code, str(e))
    typer.echo(text)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
