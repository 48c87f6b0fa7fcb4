"""Who takes part: devices, peers with their keys, and who checks whom."""

from __future__ import annotations

from dataclasses import dataclass

from protos import orchestrator_pb2 as pb
from scheduler.spot_checks import SpotCheck
from scheduler.topology import Device


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """Where a worker's tensors arrive; `curve_public_key` is empty when the link is not encrypted."""

    name: str
    data_address: str
    curve_public_key: bytes = b""


CURVE_KEY_BYTES = 40
"""Of a CURVE key as Z85 text."""
_Z85 = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#")


def is_curve_key(key: bytes) -> bool:
    """Whether `key` is a CURVE key as Z85 text, or empty: none."""
    return not key or (len(key) == CURVE_KEY_BYTES and _Z85.issuperset(key))


def device_to_message(device: Device, *, kind: str, model: str) -> pb.DeviceInfo:
    """`kind` is cpu or cuda, `model` the hardware's name; the rest of the name travels in JoinRequest."""
    return pb.DeviceInfo(
        kind=kind,
        model=model,
        memory_bytes=device.memory_bytes,
        host=device.host,
        host_cores=device.host_cores,
        region=device.region,
    )


def device_from_message(m: pb.DeviceInfo, name: str) -> Device:
    return Device(
        name=name,
        region=m.region,
        host=m.host or name,
        memory_bytes=m.memory_bytes,
        host_cores=m.host_cores,
    )


def spot_check_to_message(check: SpotCheck) -> pb.SpotCheck:
    return pb.SpotCheck(
        stage=check.stage, replica=check.replica, micro_batch=check.micro_batch, checkers=check.checkers
    )


def spot_check_from_message(m: pb.SpotCheck, step: int) -> SpotCheck:
    """`step`: the one behind the commit that it came with."""
    return SpotCheck(step, m.stage, m.replica, m.micro_batch, tuple(m.checkers))


def peer_to_message(peer: PeerInfo) -> pb.Peer:
    return pb.Peer(name=peer.name, data_address=peer.data_address, curve_public_key=peer.curve_public_key)
