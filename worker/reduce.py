"""The sum of a stage's gradients over its replicas, layer by layer (`sharded.py`).

An exchange starts when the layer's last backward is done, while earlier layers are still being
computed. Adding needs no thread: whenever a layer is handed over, shards of earlier ones that are
complete are added and sent on; what is left is added in `finish`. Compute never waits for a peer.

Knows nothing of tied weights, norms and optimizers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worker.peers import Peers
from worker.recorder import Recorder
from worker.sharded import ShardedSum, Unit


class GradientReduction:
    """One step's exchange between the ranks of `group` (the replicas of a stage, in replica order).

    `owned[i]` are the parameters of the stage's i-th layer, whose index in the model is
    `first_layer + i`. After `finish` their gradients are the sums, views of one tensor a layer.
    """

    def __init__(
        self,
        peers: Peers,
        recorder: Recorder,
        rank: int,
        group: Sequence[int],
        owned: Sequence[Sequence[nn.Parameter]],
        first_layer: int,
    ) -> None:
        self._owned, self._first_layer = owned, first_layer
        units = {
            first_layer + i: Unit(sum(p.numel() for p in parameters), parameters[0].dtype)
            for i, parameters in reversed(list(enumerate(owned)))  # the last layer has its gradient first
            if parameters
        }
        self._sum = ShardedSum(peers, recorder, rank, group, units)
        self._own_squares: list[Tensor] = []

    def expect(self) -> None:
        """Announce what the others will send."""
        self._sum.expect()

    def start(self, layer: int) -> None:
        """The layer's gradients are final on this rank: send the shards that others own. Never waits."""
        flat = torch.cat([_gradient(p).flatten() for p in self._owned[layer]])
        self._own_squares.append(torch.linalg.vector_norm(flat).double().square())
        for p in self._owned[layer]:
            p.grad = None  # its values are in `flat`, its memory is free for the layers to come
        self._sum.start(self._first_layer + layer, flat)

    @property
    def own_square(self) -> float:
        """Squares of what this rank put in, summed: whose numbers are bad cannot be told from the sums."""
        return float(torch.stack(self._own_squares).sum()) if self._own_squares else 0.0

    def finish(self) -> None:
        """Wait for all sums and make them the gradients. Raises what `Peers.receive` raises."""
        for tag, flat in self._sum.finish().items():
            parameters = self._owned[tag - self._first_layer]
            for p, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
                p.grad = part.view_as(p)


def _gradient(p: nn.Parameter) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad
