"""A weight that the first and the last stage both hold: its gradient is the sum of both ends' parts.

Knows nothing of replicas: it runs within one pipeline, after the replicas' gradients are summed.
"""

from __future__ import annotations

from torch import nn

from worker.peers import Peers
from worker.recorder import Recorder
from worker.step_context import StepContext


def exchange_tied(context: StepContext, peers: Peers, recorder: Recorder, weight: nn.Parameter) -> None:
    """Make `weight.grad` the first stage's gradient plus the last's, in this order on both.

    The copies begin equal and step alike, so they stay equal, bit by bit, without ever being sent. With a
    codec both ends add what was read from the wire, their own part included.
    """
    first = context.plan.rank(context.replica, 0)
    last = context.plan.rank(context.replica, context.plan.n_stages - 1)
    other = last if context.rank == first else first
    own = weight.grad
    assert own is not None, "every micro-batch reaches embedding and head"
    own = peers.broadcast("tied", [other], own)()
    received = peers.receive("tied", other, tuple(own.shape), own.dtype)
    n_bytes = own.numel() * own.element_size()
    with recorder.span("reduce", peer=other, n_bytes=n_bytes):
        weight.grad = own + received if context.rank == first else received + own
