"""Where a search's tasks run: in this process, over processes of this machine, or over a Ray cluster.

All three give results in the order of the tasks, so what is found depends on the seed alone. Knows no search.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from scheduler.reasons import reason_of

CONNECT_S = 5.0
T = TypeVar("T")
R = TypeVar("R")

HERE = "local"
"""Instead of a cluster's address: one that is started on this machine, and ended with the search."""


class SpreadError(ValueError):
    """Tasks that cannot be spread as asked: says what to do."""


class MapTasks(Protocol):
    """`map`, of one iterable: results in the order of the tasks, as they come."""

    def __call__(self, function: Callable[[T], R], tasks: Iterable[T], /) -> Iterable[R]: ...


@contextmanager
def spread(processes: int = 1, ray: str | None = None) -> Iterator[MapTasks]:
    """The map to search with, while the context is open. `ray`: a cluster's address, `auto` for the one this
    machine belongs to, HERE for one of this machine's cores. Raises SpreadError."""
    if ray is not None and processes > 1:
        raise SpreadError("found --processes and --ray, required one of them")
    if ray is not None:
        with _ray_map(ray) as map_tasks:
            yield map_tasks
    elif processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            yield pool.map
    else:
        yield map


@contextmanager
def _ray_map(address: str) -> Iterator[MapTasks]:
    """Function and tasks travel pickled: every node needs this version of isthmus installed."""
    where: dict[str, Any] = {"address": address}
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "//" not in host:
        if why := why_nobody_answers(address):
            raise SpreadError(f"--ray {address}: {why}")
        if host in ("127.0.0.1", "localhost"):
            where["_node_ip_address"] = "127.0.0.1"  # else Ray looks for it at this machine's outer address
    if address == HERE:
        where = {"address": "local", "_node_ip_address": "127.0.0.1", "include_dashboard": False}
        if "RAY_AUTH_MODE" not in os.environ:  # nobody else on this machine may run code as us
            os.environ["RAY_AUTH_MODE"] = "token"  # read when ray is imported
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ImportError as e:
        raise SpreadError("--ray: found no ray; install it with: pip install 'isthmus[deploy]'") from e
    try:
        ray.init(**where, logging_level="warning", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise SpreadError(f"--ray {address}: found no cluster that takes us in: {e}") from e

    def map_tasks(function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        remote = ray.remote(function)
        for future in [remote.remote(task) for task in tasks]:
            try:
                found: R = ray.get(future)
            except ray.exceptions.RayError as e:
                raise SpreadError(
                    f"--ray {address}: a task failed; is this version of isthmus on every node? {e}"
                ) from e
            yield found

    try:
        yield map_tasks
    finally:
        ray.shutdown()


def why_nobody_answers(address: str) -> str:
    """'' or why there is no cluster at HOST:PORT or ray://HOST:PORT. Ray itself takes minutes to say so."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return ""
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as e:
        return f"nobody answers there ({reason_of(e)}); required the head of a cluster (ray start --head)"
    return ""
