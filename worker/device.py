"""Which device a worker computes on, and what the planner has to know of it."""

from __future__ import annotations

import os
import platform
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scheduler.topology import Device

if TYPE_CHECKING:
    import torch

_UNITS = {p: 10 ** (3 * i) for i, p in enumerate(("", "k", "m", "g", "t"))}
_UNITS |= {f"{p}i": 1024**i for i, p in enumerate(("", "k", "m", "g", "t")) if p}
CPU_SHARE = 0.8
"""Of the memory that is free when a worker on a CPU joins: the rest of the machine needs some."""


class DeviceError(Exception):
    """A device that is not there, or a memory size that is none; names what there is."""


@dataclass(frozen=True, slots=True)
class LocalDevice:
    """The torch device, and what the coordinator is told of it."""

    torch_device: torch.device
    kind: str
    model: str
    described: Device


def parse_bytes(text: str) -> int:
    """`20GB`, `512 MiB`, `1e9`: bytes. Raises DeviceError."""
    m = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*((?:[kmgt]i?)?)b?\s*", text.lower())
    try:
        if m is None:
            raise ValueError
        value, unit = float(m[1]), _UNITS[m[2]]
    except ValueError:
        raise DeviceError(
            f"found {text!r} as a size, required a number of bytes like 20GB or 512MiB"
        ) from None
    return int(value * unit)


def free_memory_bytes() -> int:
    """Memory of this machine that could be had now; 0 where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # macOS has no such figure
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        except (ValueError, OSError):
            return 0


def memory_meter(device: LocalDevice) -> Callable[[], int]:
    """What says how many bytes are in use: of the GPU by this process, else of the machine; 0: not known."""
    if device.kind == "cuda":
        import torch

        return lambda: int(torch.cuda.memory_reserved(device.torch_device))
    return _resident_bytes


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):  # macOS has no such file
        return 0


def choose_device(
    asked: str, *, name: str, region: str, max_memory_bytes: int | None, host: str | None = None
) -> LocalDevice:
    """`auto`, `cpu`, `cuda` or `cuda:N`. Raises DeviceError naming the devices there are."""
    import torch

    n_gpus = torch.cuda.device_count()
    if asked == "auto":
        asked = "cuda:0" if n_gpus else "cpu"
    host = host or socket.gethostname()
    if asked == "cpu":
        memory = int(free_memory_bytes() * CPU_SHARE)
        model = platform.processor() or platform.machine()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        found, kind = torch.device("cpu"), "cpu"
    else:
        m = re.fullmatch(r"cuda(?::(\d+))?", asked)
        index = int(m[1] or 0) if m else -1
        if not 0 <= index < n_gpus:
            there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(n_gpus))])
            raise DeviceError(f"--device: found {asked!r}, required one of: auto, {there}")
        found, kind = torch.device("cuda", index), "cuda"
        memory, model, cores = torch.cuda.mem_get_info(index)[0], torch.cuda.get_device_name(index), 0
    if max_memory_bytes is not None:
        memory = min(memory, max_memory_bytes) if memory else max_memory_bytes
    described = Device(name, region, host, memory, host_cores=cores)
    return LocalDevice(found, kind, model, described)
