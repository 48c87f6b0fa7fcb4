"""What error feedback has not sent yet, as files of a checkpoint: one a layer and replica.

A residual says what a rank still owes to the others of its stage, so it fits a plan with as many replicas;
under another number the run goes on without it, as after a reset. Each belongs to one end alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from compression.codec import FeedbackCodec
from scheduler.checkpoint_layout import residual_file
from scheduler.plan import Plan
from worker.checkpoint import to_bytes
from worker.link_codecs import EVERYBODY, LinkCodecs


def residual_files(codecs: LinkCodecs, plan: Plan, rank: int) -> dict[str, bytes]:
    """File name -> bytes, of the layers of this rank's stage; none if no codec keeps residuals."""
    by_layer: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for (kind, peer), codec in codecs.feedback_senders().items():
        for key, residual in codec.residuals.items():
            layer = _layer(kind, key[0], plan, rank)
            by_layer[layer][_name(kind, peer, key[0], plan)] = residual
    replica = plan.replica_of(rank)
    return {residual_file(layer, replica): to_bytes(tensors) for layer, tensors in by_layer.items()}


def load_residuals(
    codecs: LinkCodecs, plan: Plan, rank: int, fetch: Callable[[str], Mapping[str, Tensor] | None]
) -> int:
    """Give codecs the residuals of a checkpoint, where they fit; how many did. `fetch`: a file's tensors."""
    start, stop = plan.partition[plan.stage_of(rank)]
    owed = (("shard", plan.group(plan.stage_of(rank))), ("reduced", (EVERYBODY,)), ("tied", (EVERYBODY,)))
    loaded = 0
    for layer in range(start, stop):
        tensors = fetch(residual_file(layer, plan.replica_of(rank))) or {}
        for kind, peers in owed:
            tags = (0,) if kind == "tied" else tuple(_tags(layer, plan))
            for peer in peers:
                for tag in tags:
                    tensor = tensors.get(_name(kind, peer, tag, plan))
                    codec = codecs.sender(kind, peer) if tensor is not None else None
                    if tensor is not None and isinstance(codec, FeedbackCodec):
                        codec.restore((tag,), tensor)
                        loaded += 1
    return loaded


def _tags(layer: int, plan: Plan) -> Iterator[int]:
    """What frames of the layer's sums are told apart by: with local steps its pieces, and a tied weight's."""
    if not plan.local_steps:
        yield layer
        return
    n_layers = plan.partition[-1][1]
    ends = (layer, n_layers) if layer in (0, n_layers - 1) else (layer,)
    for of in ends:
        yield from range(of * plan.local_steps, (of + 1) * plan.local_steps)


def _layer(kind: str, tag: int, plan: Plan, rank: int) -> int:
    layer = tag // plan.local_steps if plan.local_steps else tag
    if kind != "tied" and layer < plan.partition[-1][1]:
        return layer
    start, stop = plan.partition[plan.stage_of(rank)]
    return start if plan.stage_of(rank) == 0 else stop - 1


def _name(kind: str, peer: int, tag: int, plan: Plan) -> str:
    """`shard-1-of-3`: what is owed to replica 1 of 3; with local steps, of the piece with this tag."""
    to = "all" if peer == EVERYBODY else str(plan.replica_of(peer))
    piece = f"-piece-{tag}" if plan.local_steps and kind != "tied" else ""
    return f"{kind}-{to}-of-{plan.n_replicas}{piece}"
