"""The process that holds network namespaces open: run as `python -m sim.namespace_holder FD SPEC`.

It makes one anonymous namespace after the other, each with a TUN device, and hands the devices to
whoever started it over the Unix socket FD; then it waits until that socket closes, and ends. As
nothing has a name and nobody else holds them, namespaces and devices end with it, however the
starter ended. Apart, and with nothing but the standard library, because a user namespace can only
be entered by a process without threads. Linux only; knows nothing of packets.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
SIOCADDRT, SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x890B, 0x8914, 0x8916, 0x891C
SIOCSIFMTU = 0x8922
IFF_UP, RTF_UP, RTF_WINDOW = 0x1, 0x1, 0x80
DEVICE = b"isthmus0"
TUNED_BUFFER_BYTES = 64 << 20
"""What TCP may tune a socket's buffers up to: enough for 10 Gbit/s over 50 ms."""


class RouteEntry(ctypes.Structure):
    """`struct rtentry` of linux/route.h."""

    _fields_ = (
        ("pad1", ctypes.c_ulong),
        ("destination", ctypes.c_ubyte * 16),
        ("gateway", ctypes.c_ubyte * 16),
        ("mask", ctypes.c_ubyte * 16),
        ("flags", ctypes.c_ushort),
        ("pad2", ctypes.c_short),
        ("pad3", ctypes.c_ulong),
        ("pad4", ctypes.c_void_p),
        ("metric", ctypes.c_short),
        ("device", ctypes.c_char_p),
        ("mtu", ctypes.c_ulong),
        ("window", ctypes.c_ulong),
        ("irtt", ctypes.c_ushort),
    )


def unshare(flags: int) -> None:
    """Move this process into new namespaces. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def new_user_namespace() -> None:
    """Become privileged over nothing but new namespaces; user and group keep their numbers."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def sockaddr(address: str) -> bytes:
    return struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))


def request(name: bytes, body: bytes) -> bytes:
    """`struct ifreq`."""
    return struct.pack("16s24s", name, body)


def configure(address: str, mtu: int, window_bytes: int) -> None:
    """Loopback up; the TUN device with `address`/24; TCP's buffers or its window."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, SIOCSIFFLAGS, request(b"lo", struct.pack("H", IFF_UP)))
        fcntl.ioctl(s, SIOCSIFMTU, request(DEVICE, struct.pack("i", mtu)))
        fcntl.ioctl(s, SIOCSIFADDR, request(DEVICE, sockaddr(address)))
        fcntl.ioctl(s, SIOCSIFNETMASK, request(DEVICE, sockaddr("255.255.255.255")))
        fcntl.ioctl(s, SIOCSIFFLAGS, request(DEVICE, struct.pack("H", IFF_UP)))
        network = socket.inet_ntoa(socket.inet_aton(address)[:3] + b"\0")
        route = RouteEntry(
            destination=(ctypes.c_ubyte * 16)(*sockaddr(network)),
            gateway=(ctypes.c_ubyte * 16)(*sockaddr("0.0.0.0")),
            mask=(ctypes.c_ubyte * 16)(*sockaddr("255.255.255.0")),
            flags=RTF_UP | (RTF_WINDOW if window_bytes else 0),
            device=DEVICE,
            window=window_bytes,
        )
        fcntl.ioctl(s, SIOCADDRT, bytes(route))
    tcp = Path("/proc/sys/net/ipv4")
    buffers = f"4096 {max(4 * window_bytes, 131072)} {max(4 * window_bytes, TUNED_BUFFER_BYTES)}"
    (tcp / "tcp_rmem").write_text(buffers)
    (tcp / "tcp_wmem").write_text(buffers)
    # A tuned buffer would raise the window beyond what the route says.
    (tcp / "tcp_moderate_rcvbuf").write_text("0" if window_bytes else "1")
    with contextlib.suppress(OSError):  # a kernel without IPv6 has nothing to switch off
        Path("/proc/sys/net/ipv6/conf/isthmus0/disable_ipv6").write_text("1")


def make_namespace(spec: dict[str, Any], address: str) -> list[int]:
    """Enter a new namespace and furnish it: [namespace, TUN device, a listener for each door]."""
    unshare(CLONE_NEWNET)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, request(DEVICE, struct.pack("H", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)))
    fcntl.ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 if spec["offload"] else 0)
    configure(address, int(spec["mtu"]), int(spec["window_bytes"]))
    doors = [socket.create_server(("127.0.0.1", port)).detach() for port in spec["door_ports"]]
    return [os.open("/proc/self/ns/net", os.O_RDONLY), tun, *doors]


def hold(channel: socket.socket, spec: dict[str, Any]) -> None:
    """Make what `spec` asks for, hand it over, and wait for the other end to close."""
    own = False
    namespaces = []
    try:
        try:
            unshare(CLONE_NEWNET)  # is it allowed as we are?
        except PermissionError:
            new_user_namespace()
            own = True
        for address in spec["addresses"]:
            namespace, *given = make_namespace(spec, address)
            namespaces.append(namespace)  # kept open: nothing else keeps it while nobody is in it
            channel.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", given))])
            for fd in given:
                os.close(fd)
        reply: dict[str, Any] = {"namespaces": namespaces, "own_user_namespace": own}
    except OSError as error:
        reply = {"error": str(error), "errno": error.errno}
    channel.sendall(json.dumps(reply).encode() + b"\n")
    channel.recv(1)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter has it too, and decides
    hold(socket.socket(fileno=int(sys.argv[1])), json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
