"""Network namespaces of this machine, each with a TUN device whose other end is in our hands.

    with Namespaces(4) as spaces:
        subprocess.run([*spaces.enter(0), "ip", "addr"])     # runs inside
        os.read(spaces.tuns[0], FRAME_BYTES)                 # what it sends

As root, or for any user whom the kernel allows user namespaces. The namespaces hold one another's
addresses (10.99.0.0/24) and loopback, and no way out: what is in them reaches nothing but the
others, through us, and the doors that were asked for. Knows nothing of links or traces.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

TUN_DEVICE = Path("/dev/net/tun")
MAX_NODES = 250
MIN_MTU, MAX_MTU = 576, 65_000
HOLDER_TIMEOUT_S = 30.0


class SwitchUnavailable(RuntimeError):
    """This machine or user cannot have such namespaces: what was found, what is required, what to do."""


_INSTEAD = "or use the relay (--backend relay), which needs no privilege"


def require_linux() -> None:
    """Raises SwitchUnavailable for what can be told without trying."""
    if not sys.platform.startswith("linux"):
        raise SwitchUnavailable(
            f"found {sys.platform}, required Linux with network namespaces and {TUN_DEVICE}; "
            f"run it in a Linux virtual machine, {_INSTEAD}"
        )
    if not os.access(TUN_DEVICE, os.R_OK | os.W_OK):
        found = "cannot be opened by this user" if TUN_DEVICE.exists() else "does not exist"
        raise SwitchUnavailable(
            f"found that {TUN_DEVICE} {found}, required to read and write it; load it (modprobe tun), "
            f"in a container pass --device {TUN_DEVICE}, {_INSTEAD}"
        )
    if shutil.which("nsenter") is None:
        raise SwitchUnavailable(
            f"found no nsenter, required to run programs in a namespace; install util-linux, {_INSTEAD}"
        )


def _refused(number: int, words: str) -> SwitchUnavailable:
    if number in (errno.EPERM, errno.EACCES, errno.EUSERS, errno.ENOSPC):
        return SwitchUnavailable(
            f"found that the kernel refuses namespaces to user {os.geteuid()} ({words}), required root or "
            "the right to make user namespaces (`unshare -Urn true` succeeds); run as root, allow them "
            "(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0), "
            f"in a container add the capabilities SYS_ADMIN and NET_ADMIN, {_INSTEAD}"
        )
    return SwitchUnavailable(
        f"found that namespaces cannot be made: {words}; required TUN devices, {_INSTEAD}"
    )


class Namespaces:
    """`n` namespaces until it is closed.

    Raises SwitchUnavailable where that cannot be, ValueError for bad numbers.
    """

    def __init__(
        self,
        n: int,
        *,
        mtu: int = 1500,
        window_bytes: int = 0,
        offload: bool = True,
        door_ports: tuple[int, ...] = (),
    ) -> None:
        """`window_bytes`: TCP's receive window in them, 0: tuned by the kernel up to 64 MiB of buffers.

        `offload`: TCP hands over up to 64 KiB at once, to be cut into packets of `mtu` by whoever
        reads. `door_ports`: ports of loopback that are listened on inside each.
        """
        if not 1 <= n <= MAX_NODES:
            raise ValueError(f"found {n} nodes, required 1 to {MAX_NODES}")
        if not MIN_MTU <= mtu <= MAX_MTU:
            raise ValueError(f"found an MTU of {mtu}, required {MIN_MTU} to {MAX_MTU}")
        require_linux()
        self.addresses = tuple(f"10.99.0.{i + 1}" for i in range(n))
        self.tuns: list[int] = []
        """Descriptors of the TUN devices: frames with a header of 10 bytes (virtio_net_hdr) before IP."""
        self.doors: list[list[socket.socket]] = []
        """Listeners inside each namespace, in the order of `door_ports`."""
        self.door_ports = door_ports
        self._channel, theirs = socket.socketpair()
        spec = {
            "addresses": self.addresses,
            "mtu": mtu,
            "window_bytes": window_bytes,
            "offload": offload,
            "door_ports": door_ports,
        }
        argv = [sys.executable, "-m", "sim.namespace_holder", str(theirs.fileno()), json.dumps(spec)]
        # Found as we were found, wherever we were started.
        path = os.pathsep.join(
            [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        with theirs:
            self._holder = subprocess.Popen(
                argv,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
            )
        try:
            self._receive(n, 1 + len(door_ports))
        except BaseException:
            self.close()
            raise

    def _receive(self, n: int, fds_each: int) -> None:
        """Take what the holder made. Raises SwitchUnavailable with its words if it could not."""
        self._channel.settimeout(HOLDER_TIMEOUT_S)
        text = b""
        while not text.endswith(b"\n"):
            # A message carries at most one set of descriptors, so none can be cut off.
            data, fds, _, _ = socket.recv_fds(self._channel, 1 if len(self.tuns) < n else 4096, fds_each)
            if not data:
                raise SwitchUnavailable(
                    f"the holder of the namespaces ended by itself with {self._holder.wait()}"
                )
            if fds:
                self.tuns.append(fds[0])
                self.doors.append([socket.socket(fileno=fd) for fd in fds[1:]])
            text += data
        reply = json.loads(text.lstrip(b"+"))
        if "error" in reply:
            raise _refused(int(reply["errno"] or 0), str(reply["error"]))
        self._namespace_fds: list[int] = reply["namespaces"]
        self._own_user_namespace: bool = reply["own_user_namespace"]

    @property
    def holder_pid(self) -> int:
        return self._holder.pid

    def enter(self, index: int) -> list[str]:
        """What to put before a command so that it runs in namespace `index`."""
        here = f"/proc/{self._holder.pid}"
        user = [f"--user={here}/ns/user", "--preserve-credentials"] if self._own_user_namespace else []
        return ["nsenter", *user, f"--net={here}/fd/{self._namespace_fds[index]}", "--"]

    def close(self) -> None:
        """End the holder and with it namespaces and devices. Idempotent."""
        for tun in self.tuns:
            with contextlib.suppress(OSError):
                os.close(tun)
        self.tuns.clear()
        for listeners in self.doors:
            for listener in listeners:
                listener.close()
        self._channel.close()
        self._holder.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
