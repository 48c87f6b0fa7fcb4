"""What each token may do at the coordinator's door, and whose keys the workers hear of."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc

from coordinator.data_keys import MAX_VISITORS, VISIT_S, DataKeys
from coordinator.records import Member
from coordinator.tokens import UNKNOWN, Tokens
from protos import orchestrator_pb2 as pb
from protos.convert import PeerInfo, is_curve_key
from protos.version import PROTOCOL_VERSION
from scheduler.topology import Device

from .test_service import coordinator, lives, refused


def test_a_join_token_may_look_but_not_end_the_run(tmp_path: Path) -> None:
    async def body() -> None:
        async with coordinator(tmp_path) as this:
            tokens = Tokens(tmp_path)
            token = tokens.create(0.0, valid_s=3e9)
            tokens.close()
            assert (await this.call("Status", pb.StatusRequest(token=token))).phase == "gathering"
            for wrong in (token, "guess"):
                with refused(grpc.StatusCode.UNAUTHENTICATED, UNKNOWN):
                    await this.call("Drain", pb.DrainRequest(token=wrong))
            with refused(grpc.StatusCode.UNAUTHENTICATED, UNKNOWN):
                await this.call("Status", pb.StatusRequest(token=token[:-1] + "!"))
            await this.call("Drain", pb.DrainRequest(token=this.secret, now=True))

    lives(body)


def test_a_join_token_is_spent_by_joining_and_a_key_must_be_one(tmp_path: Path) -> None:
    async def body() -> None:
        async with coordinator(tmp_path) as this:
            tokens = Tokens(tmp_path)
            token = tokens.create(0.0, valid_s=3e9)

            def request(name: str, proof: bytes, key: bytes = b"") -> pb.JoinRequest:
                return pb.JoinRequest(
                    protocol_version=PROTOCOL_VERSION, token=token, name=name, incarnation="1",
                    data_address="h:1", identity_proof=proof, curve_public_key=key,
                )  # fmt: skip

            with refused(grpc.StatusCode.INVALID_ARGUMENT, "required 40 of Z85"):
                await this.call("Join", request("a", b"a" * 32, b"x" * 39))
            large = request("a", b"a" * 32)
            large.device.region = "x" * 257
            with refused(grpc.StatusCode.INVALID_ARGUMENT, "found a region of 257 characters"):
                await this.call("Join", large)
            assert tokens.list()[0].used == 0
            assert (await this.call("Join", request("a", b"a" * 32))).session
            assert tokens.list()[0].names == ("a",)
            with refused(grpc.StatusCode.UNAUTHENTICATED, "used up"):
                await this.call("Join", request("b", b"b" * 32))
            tokens.close()
            await this.call("Drain", pb.DrainRequest(token=this.secret, now=True))

    lives(body)


def member(key: bytes) -> Member:
    device = Device(name="w", region="", host="h", memory_bytes=1, host_cores=1)
    return Member(device, "1", "s", PeerInfo("w", "h:1", key), seen_s=0.0)


def test_workers_hear_of_members_and_for_a_minute_of_visitors() -> None:
    keys, one = DataKeys(), {"a": member(b"A" * 40), "clear": member(b"")}
    assert keys.news(one, 0.0)
    assert list(keys.told) == [b"A" * 40]
    assert not keys.news(one, 1.0)
    keys.visit(b"V" * 40, 2.0)
    assert keys.news(one, 2.0)
    assert list(keys.told) == [b"A" * 40, b"V" * 40]
    assert not keys.news(one, 2.0 + VISIT_S - 0.1)
    assert keys.news({}, 2.0 + VISIT_S)
    assert not keys.told


def test_visitors_are_few() -> None:
    keys = DataKeys()
    for i in range(2 * MAX_VISITORS):
        keys.visit(b"%040d" % i, 0.0)
    keys.news({}, 1.0)
    assert len(keys.told) == MAX_VISITORS
    assert keys.told[-1] == b"%040d" % (2 * MAX_VISITORS - 1)


def test_what_is_a_key() -> None:
    assert is_curve_key(b"")
    assert is_curve_key(b"." * 40)
    assert not any(map(is_curve_key, (b"x" * 39, b"x" * 41, b"\0" * 40, b"~" * 40, b"," * 40)))


def test_a_visitor_is_told_to_the_workers(tmp_path: Path) -> None:
    async def body() -> None:
        async with coordinator(tmp_path, min_workers=2) as this:
            worker = this.worker("a")
            running = asyncio.create_task(worker.run(await this.address()))
            await this.heard("joined")
            await this.call("Status", pb.StatusRequest(token=this.secret, curve_public_key=b"v" * 40))
            while not any(c.WhichOneof("body") == "admit" for c in worker.told):
                await asyncio.sleep(0.001)
            await this.call("Drain", pb.DrainRequest(token=this.secret, now=True))
            await running
        assert list(worker.told[0].admit.curve_public_keys) == [b"v" * 40]

    lives(body)
