"""What a coordinator knows of its run, as the message that `Status` answers with. Decides nothing."""

from __future__ import annotations

from statistics import median

from protos import orchestrator_pb2 as pb
from protos.convert import plan_to_message

from .driver import Driver


def status_reply(driver: Driver) -> pb.StatusReply:
    """What the coordinator knows, at this moment."""
    s = driver.state
    tokens = s.options.global_batch * s.options.sequence_length
    reply = pb.StatusReply(
        run=driver.run,
        phase=s.phase,
        reason=s.reason,
        step=s.done,
        steps=s.options.steps,
        loss=s.loss,
        eval_loss=s.eval_loss,
        tokens_per_s=driver.tokens_per_s(tokens) if s.steps_s else None,
        predicted_step_s=s.plan.predicted_step_s if s.plan else None,
        measured_step_s=median(s.steps_s) if s.steps_s else None,
        plan=plan_to_message(s.plan) if s.plan else None,
        outlook=f"{s.outlook.reason} Now {s.ahead.words}." if s.ahead is not None else s.outlook.reason,
        checked=s.checked,
    )
    for name, member in s.members.items():
        rank = s.plan.rank_of_device(name) if s.plan else None
        first, last = s.plan.partition[s.plan.stage_of(rank)] if s.plan and rank is not None else (0, 1)
        d = member.device
        reply.workers.append(
            pb.WorkerStatus(
                name=name,
                state="connected" if member.connected else "joining",
                device=pb.DeviceInfo(
                    memory_bytes=d.memory_bytes, host=d.host, host_cores=d.host_cores, region=d.region
                ),
                data_address=member.peer.data_address,
                rank=-1 if rank is None else rank,
                first_layer=first,
                last_layer=last - 1,
                last_seen_s=driver.silence_s(name),
                curve_public_key=member.peer.curve_public_key,
                relayed_to=[b for (a, b), link in s.links.items() if a == name and link.relayed],
            )
        )
    for name, gone in s.departed.items():
        reply.workers.append(
            pb.WorkerStatus(name=name, state="gone", rank=-1, reason=gone.reason, departure=int(gone.code))
        )
    return reply
