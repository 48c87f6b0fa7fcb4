"""What a TUN device hands over: IP packets, several of one TCP flow joined in a frame. Cuts them again.

A frame is `struct virtio_net_hdr` (10 bytes) and an IPv4 packet of up to 64 KiB. If the header names
a segment size, the packet stands for n packets on the wire, each with the headers of the first and
at most so much payload (TCP segmentation offload, linux/virtio_net.h). A run of them is again a
frame, with sequence number, lengths and flags as segmentation would have made them. Pure.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

HEADER_BYTES = 10
FRAME_BYTES = HEADER_BYTES + 65535
_VIRTIO = struct.Struct("=BBHHHH")
"""flags, kind of segmentation, header bytes, segment size, start of what is summed, where its sum goes."""
NEEDS_CHECKSUM = 1
TCP_V4 = 1
_TCP = 6
_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_MIN_IP_BYTES, _MIN_TCP_BYTES = 20, 20


@dataclass(slots=True)
class Packet:
    """A frame and what it stands for: `n` packets, all but the last of `full_bytes`, of IP on the wire."""

    frame: bytes
    destination: bytes
    """IPv4 address, 4 bytes."""
    n: int
    full_bytes: int
    last_bytes: int

    def bytes_of(self, first: int, stop: int) -> int:
        """IP bytes on the wire of packets `first` .. `stop`."""
        short = self.full_bytes - self.last_bytes if stop == self.n else 0
        return self.full_bytes * (stop - first) - short


def parse(frame: bytes) -> Packet | None:
    """The packet of a frame; None for what is not IPv4, or not whole."""
    if len(frame) < HEADER_BYTES + _MIN_IP_BYTES or frame[HEADER_BYTES] >> 4 != 4:
        return None
    _, kind, _, segment, _, _ = _VIRTIO.unpack_from(frame)
    size = len(frame) - HEADER_BYTES
    destination = frame[HEADER_BYTES + 16 : HEADER_BYTES + 20]
    if not segment or kind & 0x7F != TCP_V4:
        return Packet(frame, destination, 1, size, size)
    ip_bytes, headers = _headers(frame)
    if frame[HEADER_BYTES + 9] != _TCP or headers < ip_bytes + _MIN_TCP_BYTES or size < headers:
        return None
    payload = size - headers
    n = max(1, -(-payload // segment))
    return Packet(frame, destination, n, headers + segment, headers + payload - (n - 1) * segment)


def _headers(frame: bytes) -> tuple[int, int]:
    """(bytes of the IP header, bytes of both headers) of a TCP packet."""
    ip_bytes = 4 * (frame[HEADER_BYTES] & 0x0F)
    at = HEADER_BYTES + ip_bytes + 12
    return ip_bytes, ip_bytes + (4 * (frame[at] >> 4) if at < len(frame) else 0)


def part(packet: Packet, first: int, stop: int) -> bytes:
    """The frame of packets `first` .. `stop` (not included) of `packet`."""
    if first == 0 and stop == packet.n:
        return packet.frame
    frame = packet.frame
    ip_bytes, headers = _headers(frame)
    segment = packet.full_bytes - headers
    body = frame[HEADER_BYTES + headers + first * segment : HEADER_BYTES + headers + stop * segment]
    flags, kind, _, _, sum_start, sum_at = _VIRTIO.unpack_from(frame)
    if stop - first == 1:
        kind, segment = 0, 0
    head = bytearray(frame[HEADER_BYTES : HEADER_BYTES + headers])
    identifier, sequence = (
        struct.unpack_from("!H", head, 4)[0],
        struct.unpack_from("!I", head, ip_bytes + 4)[0],
    )
    struct.pack_into("!H", head, 2, headers + len(body))
    struct.pack_into("!H", head, 4, (identifier + first) & 0xFFFF)
    struct.pack_into("!H", head, 10, 0)
    struct.pack_into("!H", head, 10, 0xFFFF ^ ones_sum(head[:ip_bytes]))
    struct.pack_into(
        "!I", head, ip_bytes + 4, (sequence + first * (packet.full_bytes - headers)) & 0xFFFFFFFF
    )
    if stop < packet.n:
        head[ip_bytes + 13] &= ~(_FIN | _PSH)
    if first:
        head[ip_bytes + 13] &= ~_CWR & 0xFF
    # The sum over addresses, protocol and length; whoever takes the frame completes or trusts it.
    length = headers - ip_bytes + len(body)
    pseudo = head[12:20] + struct.pack("!HH", _TCP, length)
    struct.pack_into("!H", head, ip_bytes + 16, ones_sum(pseudo))
    return _VIRTIO.pack(flags | NEEDS_CHECKSUM, kind, headers, segment, sum_start, sum_at) + head + body


def ones_sum(data: bytes | bytearray) -> int:
    """The ones' complement sum of 16-bit words (RFC 1071), not complemented; `data` of even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)
