"""Every dataclass that travels comes back equal; what cannot be is refused by name."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import convert as cv
from protos import orchestrator_pb2 as pb
from protos.convert import ConvertError, PeerInfo
from protos.convert.checked import MAX_LINKS
from protos.convert.profiles import layer_from_message
from protos.convert.spans import span_from_message
from scheduler.checkpoint_layout import LayerFileInfo
from scheduler.codec_speed import CodecSpeed
from scheduler.layer_cost import Keys
from scheduler.link_use import LinkUse
from scheduler.plan import Plan
from scheduler.plan_codecs import PlanCodecs, Rows
from scheduler.profile import DeviceProfile, LayerProfile
from scheduler.sequence import Split
from scheduler.timeline import Span, Timeline
from scheduler.topology import Device

names = st.text("abcdefgh-0123", min_size=1, max_size=8)
amounts = st.integers(0, 2**50)
seconds = st.floats(0, 1e6)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    n_stages, n_replicas = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    widths = draw(st.lists(st.integers(1, 7), min_size=n_stages, max_size=n_stages))
    stops = [sum(widths[: i + 1]) for i in range(n_stages)]

    def rows(*names: str) -> Rows:
        """The replicas' codecs, over all boundaries, in turn."""
        return tuple((names[r % len(names)],) * (n_stages - 1) for r in range(n_replicas))

    splits: tuple[Split, ...] = get_args(Split)
    split = draw(st.sampled_from(splits))
    shares = [draw(st.integers(1, 99)) for _ in range(1 if split == "sequence" else n_replicas)]
    sizes = (
        tuple(draw(st.integers(1, 2**20)) for _ in range(n_replicas))
        if split == "sequence" and draw(st.booleans())
        else ()
    )
    return Plan(
        version=draw(st.integers(0, 2**40)),
        placement=tuple(tuple(f"w{r}-{s}" for s in range(n_stages)) for r in range(n_replicas)),
        partition=tuple(zip([0, *stops[:-1]], stops, strict=True)),
        micro_batches=tuple(shares * (n_replicas // len(shares))),
        split=split,
        shard_sizes=sizes,
        schedule=draw(st.sampled_from(["gpipe", "1f1b"])),
        warmup_extra=draw(st.integers(0, 9)),
        micro_batch=draw(st.integers(1, 99)),
        recompute=draw(st.booleans()),
        streams=draw(st.integers(0, 64)),
        predicted_step_s=draw(seconds),
        reasons=tuple(draw(st.lists(names, max_size=3))),
        codecs=PlanCodecs(
            draw(st.sampled_from([(), rows("kbit:bits=4")])) if n_stages > 1 else (),
            draw(st.sampled_from([(), rows("fp16", "tile")])) if n_stages > 1 else (),
            draw(st.sampled_from([(), ("kbit",) * n_stages])),
        ),
    )


layers = st.builds(
    LayerProfile,
    *(names, st.floats(0, 1e15), st.floats(0, 1e15)),
    *(amounts, amounts, amounts, amounts, names, amounts),
    st.floats(0, 1e15),
    st.lists(st.builds(Keys, amounts, st.integers(0, 2**20)), max_size=2).map(tuple),
)
spans = st.builds(
    lambda kind, start, length, mb, peer, n: Span(0, kind, start, start + length, mb, peer, n),
    st.sampled_from(["forward", "backward", "wait", "send", "reduce", "optimizer", "encode", "decode"]),
    seconds,
    seconds,
    st.integers(-1, 99),
    st.integers(-1, 99),
    amounts,
)


@given(plans())
def test_a_plan_comes_back_equal(plan: Plan) -> None:
    wire = pb.PlanMsg.FromString(cv.plan_to_message(plan).SerializeToString())
    assert cv.plan_from_message(wire) == plan


@given(st.lists(layers, min_size=1, max_size=5), st.data())
def test_profiles_come_back_equal(found: list[LayerProfile], data: st.DataObject) -> None:
    times = [tuple(data.draw(st.lists(seconds, min_size=len(found), max_size=len(found)))) for _ in range(3)]
    fixed = times[:2] if data.draw(st.booleans()) else [(), ()]
    speeds = data.draw(st.lists(st.builds(CodecSpeed, st.sampled_from(["kbit", "tile"]), seconds, seconds)))
    profile = DeviceProfile("w0", *times, *fixed, codecs=tuple(speeds))
    message = cv.profiled_to_message(found, profile, "digest", 10, 2)
    wire = pb.Profiled.FromString(message.SerializeToString())
    assert cv.profile_from_message(wire, "w0") == (tuple(found), profile)
    assert (wire.data_digest, wire.n_samples, wire.n_eval_samples) == ("digest", 10, 2)


@given(st.lists(spans, max_size=20))
def test_spans_come_back_equal_and_take_the_senders_rank(found: list[Span]) -> None:
    messages = cv.spans_to_messages(Timeline(1, tuple(found)), 0)
    assert cv.spans_from_messages(messages, 0) == tuple(found)
    assert all(s.rank == 3 for s in cv.spans_from_messages(messages, 3))


def test_devices_and_peers_and_files_come_back_equal() -> None:
    device = Device("w0", "tokyo", "host-a", 16 << 30, host_cores=2)
    assert cv.device_from_message(cv.device_to_message(device, kind="cpu", model="x"), "w0") == device
    peer = PeerInfo("w0", "127.0.0.1:5", b"\x01\x02")
    message = cv.peer_to_message(peer)
    assert PeerInfo(message.name, message.data_address, message.curve_public_key) == peer
    file = LayerFileInfo("layer-0003.optimizer.safetensors", "ab" * 32, 77)
    assert cv.file_from_message(cv.file_to_message(file)) == file


def test_a_device_that_names_no_host_is_its_own() -> None:
    assert cv.device_from_message(pb.DeviceInfo(kind="cpu"), "w7").host == "w7"


PLAN = Plan(1, (("a", "b"),), ((0, 2), (2, 4)), (4,), "1f1b", micro_batch=2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.partition[1].__setattr__("start", 3), r"plan.partition\[1\].*range from 2"),
        (lambda m: m.partition[1].__setattr__("stop", 2), r"plan.partition\[1\]"),
        (lambda m: m.placement[0].device.append("c"), r"placement\[0\]: found 3 devices, required 2"),
        (lambda m: m.micro_batches.append(4), "micro_batches: found 2, required 1"),
        (lambda m: m.ClearField("partition"), "no stage"),
        (lambda m: m.ClearField("micro_batch"), "micro_batch: found 0 samples"),
        (lambda m: m.__setattr__("predicted_step_s", float("nan")), "predicted_step_s: found nan"),
    ],
)
def test_a_plan_that_does_not_fit_together_is_refused(change: object, said: str) -> None:
    message = cv.plan_to_message(PLAN)
    assert callable(change)
    change(message)
    with pytest.raises(ConvertError, match=said):
        cv.plan_from_message(message)


def test_replicas_that_share_every_sequence_take_all_micro_batches() -> None:
    plan = Plan(1, (("a",), ("b",)), ((0, 1),), (3, 3), "1f1b", micro_batch=2, split="sequence")
    message = cv.plan_to_message(plan)
    message.micro_batches[1] = 2
    with pytest.raises(ConvertError, match="found 2, 3 of replicas that share every sequence"):
        cv.plan_from_message(message)


def test_broken_spans_profiles_and_names_are_refused() -> None:
    with pytest.raises(ConvertError, match=r"span.kind: found 'nap'"):
        span_from_message(pb.SpanMsg(kind="nap"), 0)
    with pytest.raises(ConvertError, match="start no later than its end"):
        span_from_message(pb.SpanMsg(kind="wait", start_s=2, end_s=1), 0)
    with pytest.raises(ConvertError, match="forward_s: found 0"):
        cv.profile_from_message(pb.Profiled(layers=[pb.Layer(name="x")]), "w0")
    with pytest.raises(ConvertError, match=r"forward_flops: found -1"):
        layer_from_message(pb.Layer(name="x", forward_flops=-1))
    with pytest.raises(ConvertError, match="file name"):
        cv.file_from_message(pb.LayerFile(name="../../etc/passwd"))


uses = st.builds(
    LinkUse,
    st.just(3),
    st.integers(-1, 99),
    names,
    names,
    amounts,
    amounts,
    seconds,
    seconds,
    seconds,
    amounts,
)


@given(st.lists(uses, max_size=4))
def test_the_use_of_links_comes_back_equal(links: list[LinkUse]) -> None:
    wire = [pb.LinkUse.FromString(cv.link_use_to_message(use).SerializeToString()) for use in links]
    assert cv.links_from_messages(wire, 3) == tuple(links)


def test_the_use_of_a_link_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConvertError, match=r"link\.encode_s: found nan"):
        cv.links_from_messages([pb.LinkUse(encode_s=float("nan"))], 0)
    with pytest.raises(ConvertError, match="links: found 20001 entries, required at most 20000"):
        cv.links_from_messages([pb.LinkUse()] * (MAX_LINKS + 1), 0)


def test_speeds_of_codecs_that_cannot_be_are_refused() -> None:
    layer = pb.Layer(name="x")
    for speed, said in (
        (pb.CodecSpeed(name="zip"), "found the codec 'zip'"),
        (pb.CodecSpeed(name="kbit", decode_s=-1.0), "codec kbit: decode_s: found -1"),
    ):
        message = pb.Profiled(
            layers=[layer], forward_s=[0.1], backward_s=[0.1], optimizer_s=[0.1], codecs=[speed]
        )
        with pytest.raises(ConvertError, match=said):
            cv.profile_from_message(message, "w0")


def test_codecs_of_a_plan_that_cannot_be_are_refused() -> None:
    message = cv.plan_to_message(Plan(1, (("a", "b"),), ((0, 1), (1, 2)), (1,), "1f1b", micro_batch=2))
    message.activation_codecs.append("zip")
    with pytest.raises(ConvertError, match=r"plan\.activation_codecs: found the codec 'zip'"):
        cv.plan_from_message(message)
    message.activation_codecs[0] = "kbit"
    message.reduce_codecs.append("kbit")
    with pytest.raises(ConvertError, match=r"plan\.reduce_codecs: found 1; required 2, one a stage, or none"):
        cv.plan_from_message(message)
