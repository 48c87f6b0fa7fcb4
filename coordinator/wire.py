"""Messages of the control stream <-> the state machine's events and commands.

Checks values before they reach the state machine; raises ConvertError for what cannot be.
The shared values inside (plan, layers, spans) are `protos.convert`'s.
"""

from __future__ import annotations

import math
from typing import assert_never

from protos import orchestrator_pb2 as pb
from protos.convert import (
    MAX_LAYERS,
    MAX_RANKS,
    ConvertError,
    file_from_message,
    file_to_message,
    peer_to_message,
    plan_to_message,
    profile_from_message,
    spot_check_to_message,
)
from scheduler.departures import Departure
from scheduler.exit_codes import from_wire

from . import commands as c
from . import events as e

MAX_REASON = 4000
MAX_FILES = 16384
SHA256_BYTES = 32


def event_from_message(worker: str, m: pb.Event) -> e.Event | None:
    """The event that `worker` sent; None for one that decides nothing. Raises ConvertError."""
    match m.WhichOneof("body"):
        case "heartbeat":
            return e.Heartbeat(worker, m.heartbeat.waits_for if m.heartbeat.waits else None)
        case "profiled":
            layers, profile = profile_from_message(m.profiled, worker)
            p = m.profiled
            return e.Profiled(worker, layers, profile, p.data_digest, p.n_samples, p.n_eval_samples)
        case "links_measured":
            if len(m.links_measured.links) > MAX_RANKS:
                raise ConvertError(
                    f"links: found {len(m.links_measured.links)} entries, required at most {MAX_RANKS}"
                )
            return e.LinksMeasured(worker, tuple(_link(x) for x in m.links_measured.links))
        case "ready":
            return e.Ready(worker, m.ready.plan_version)
        case "step_vote":
            return _step_vote(worker, m.step_vote)
        case "holds":
            held = m.holds.layers
            if not 0 <= held.start <= held.stop <= MAX_LAYERS:
                raise ConvertError(f"holds: found layers {held.start}..{held.stop}, required a range")
            return e.Holds(worker, m.holds.step, held.start, held.stop)
        case "copied":
            return e.Copied(worker, m.copied.plan_version, m.copied.step)
        case "followed":
            f = m.followed
            return e.Followed(worker, f.version, f.step, f.error[:MAX_REASON])
        case "met":
            return _met(worker, m.met)
        case "saved":
            if len(m.saved.files) > MAX_FILES:
                raise ConvertError(
                    f"saved.files: found {len(m.saved.files)} entries, required at most {MAX_FILES}"
                )
            return e.Saved(worker, m.saved.step, tuple(file_from_message(f) for f in m.saved.files))
        case "evaluated":
            return e.Evaluated(worker, m.evaluated.step, m.evaluated.loss_sum, m.evaluated.tokens)
        case "failed":
            x = m.failed
            reason, peer = x.reason[:MAX_REASON], x.peer[:MAX_REASON]
            return e.Failed(worker, from_wire(x.code), reason, x.fatal, peer, x.plan_version)
        case "leaving":
            code = Departure.NOTICE if m.leaving.departure == Departure.NOTICE else Departure.LEFT
            return e.Leaving(worker, m.leaving.reason[:MAX_REASON], code)
        case "generated" | "step_done":
            return None
        case other:
            raise ConvertError(f"event: found {other!r}, required one of the protocol's")


def _link(m: pb.LinkSample) -> e.LinkSample:
    bandwidth = m.bandwidth_striped_Bps or m.bandwidth_Bps
    if m.error:
        return e.LinkSample(m.peer, 0.0, 0.0, m.error[:MAX_REASON])
    if not (math.isfinite(m.latency_s) and m.latency_s >= 0 and math.isfinite(bandwidth) and bandwidth > 0):
        raise ConvertError(
            f"link to {m.peer}: found latency {m.latency_s} s and bandwidth {bandwidth} B/s, "
            "required finite numbers, bandwidth more than 0"
        )
    flow = m.bandwidth_Bps if math.isfinite(m.bandwidth_Bps) and m.bandwidth_Bps > 0 else bandwidth
    return e.LinkSample(m.peer, m.latency_s, max(bandwidth, flow), flow_Bps=flow, relayed=m.relayed)


def _met(worker: str, m: pb.Met) -> e.Met:
    if len(m.layers) > MAX_LAYERS:
        raise ConvertError(f"met: found {len(m.layers)} layers, required at most {MAX_LAYERS}")
    digests = {x.layer: x.sha256 for x in m.layers}
    if any(len(d) != SHA256_BYTES for d in digests.values()):
        raise ConvertError(
            f"met: found a hash that is not of {SHA256_BYTES} bytes, required those of SHA-256"
        )
    return e.Met(worker, m.version, m.step, digests)


def _step_vote(worker: str, m: pb.StepVote) -> e.StepVote:
    if not math.isfinite(m.duration_s) or m.duration_s < 0:
        raise ConvertError(f"step {m.step}: found duration {m.duration_s} s, required 0 or more")
    if len(m.squares) > MAX_LAYERS:
        raise ConvertError(f"step {m.step}: found {len(m.squares)} squares, required at most {MAX_LAYERS}")
    return e.StepVote(
        worker,
        m.plan_version,
        m.step,
        m.loss_sum,
        m.tokens,
        tuple(m.squares),
        m.duration_s,
        m.sent_bytes,
        m.raw_bytes,
        m.own_square,
        m.bad_activation,
        m.bad_gradient,
        m.check_error if m.checked else None,
    )


def command_to_message(body: c.WorkerCommand) -> pb.Command:
    """The message that tells a worker `body`."""
    match body:
        case c.Profile():
            return pb.Command(profile=pb.Profile())
        case c.MeasureLinks(peers, probe_bytes, streams):
            measure = pb.MeasureLinks(
                peers=[peer_to_message(p) for p in peers], probe_bytes=probe_bytes, streams=streams
            )
            return pb.Command(measure_links=measure)
        case c.TakePlan():
            return pb.Command(take_plan=_take_plan(body))
        case c.RunSteps(version, start, stop, record, watch, copy, keeps):
            run = pb.RunSteps(plan_version=version, start=start, stop=stop, record=record, watch=watch)
            run.copy_step, run.copy_keeps = copy, keeps
            return pb.Command(run_steps=run)
        case c.Commit(version, step, grad_norm, check):
            commit = pb.Commit(plan_version=version, step=step, grad_norm=grad_norm)
            if check is not None:
                commit.check.CopyFrom(spot_check_to_message(check))
            return pb.Command(commit=commit)
        case c.Save(step):
            return pb.Command(save=pb.Save(step=step))
        case c.Evaluate(step):
            return pb.Command(evaluate=pb.Evaluate(step=step))
        case c.AbortPlan(version, reason):
            return pb.Command(abort_plan=pb.AbortPlan(plan_version=version, reason=reason))
        case c.Stop(code, reason):
            return pb.Command(stop=pb.Stop(code=int(code), reason=reason))
        case c.Follow(version, plan_version, peers, feeds):
            told = [
                pb.Feed(donor=f.donor, follower=f.follower, layers=f.layers, rate_Bps=f.rate_Bps)
                for f in feeds
            ]
            all_peers = [peer_to_message(p) for p in peers]
            follow = pb.Follow(version=version, plan_version=plan_version, peers=all_peers, feeds=told)
            return pb.Command(follow=follow)
        case c.Meet(version, step):
            return pb.Command(meet=pb.Meet(version=version, step=step))
        case c.Unfollow(version):
            return pb.Command(unfollow=pb.Unfollow(version=version))
        case c.Admit(keys):
            return pb.Command(admit=pb.Admit(curve_public_keys=keys))
        case _:
            assert_never(body)


def _take_plan(body: c.TakePlan) -> pb.TakePlan:
    return pb.TakePlan(
        plan=plan_to_message(body.plan),
        peers=[peer_to_message(p) for p in body.peers],
        restore=body.restore_step is not None,
        restore_step=body.restore_step or 0,
        files=[file_to_message(f) for f in body.files],
        step=body.step,
        sources=[pb.LayerSource(layer=s.layer, donors=s.donors) for s in body.sources],
        serves=[pb.LayerPart(layer=p.layer, to=p.to, part=p.part, parts=p.parts) for p in body.serves],
        guests=body.guests,
        keepers=[pb.Keeper(holder=k.holder, keeper=k.keeper) for k in body.keepers],
        loading_s=body.loading_s,
        copying_s=body.copying_s,
    )
