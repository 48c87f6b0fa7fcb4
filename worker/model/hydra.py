"""Hydra (Hwang, Lahoti, Dao and Gu 2024): SSD in both directions, a quasiseparable matrix.

y = shift(ssd(x)) + flip(shift(ssd(flip(x)))) + skip x: what is below the diagonal comes from the one, what is
above from the other, and the diagonal is free (section 3). Parameters: `into.weight` (gate, x, then for each
direction B and C, then steps of each), `conv.weight` over x and all B and C, whose taps are centred,
`log_decay` and `step_bias` of both directions, `skip` a head, `norm.weight`, `out.weight`.

Shapes: as in `ssd.py`.
"""

from __future__ import annotations

from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from scheduler.job import ModelSpec
from scheduler.mixers import HydraSpec
from worker.model.cores import recomputed
from worker.model.layer import ModelError, State, blank
from worker.model.mixer import SequenceMixer
from worker.model.parts import Linear, RMSNorm
from worker.model.short_conv import ShortConv
from worker.model.ssd import initial_decays, ssd, ssd_matrix


class Hydra(SequenceMixer):
    def __init__(self, model: ModelSpec, options: HydraSpec) -> None:
        super().__init__()
        self.heads, self.state, self.chunk = options.heads_in(model), options.state, options.chunk
        self.inner = options.inner_in(model)
        self.conv = ShortConv(options.taps, self.inner + 4 * self.state)
        self.into = Linear(model.hidden, self.inner + self.conv.width + 2 * self.heads, bias=False)
        self.log_decay, self.step_bias = blank(2 * self.heads), blank(2 * self.heads)
        self.skip = blank(self.heads)
        self.norm = RMSNorm(self.inner, model.norm_eps)
        self.out = Linear(self.inner, model.hidden, bias=False)

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        if parameter == "conv.weight":
            return self.conv.initial(rng)
        return initial_decays(parameter, 2 * self.heads, rng)

    def begin(self) -> NoReturn:
        raise ModelError(
            "found hydra, which sees later positions, asked to go on behind earlier ones; required a causal"
            " part, ssd for one, to generate"
        )

    def forward(self, x_BTD: Tensor, state: State = None) -> tuple[Tensor, None]:
        if state is not None:
            self.begin()
        gate, x, directions = self._projected(x_BTD)
        (b, c, step, decay), (late_b, late_c, late_step, late_decay) = directions
        early, _ = recomputed(ssd, x, b, c, step, decay, self.chunk)
        turned = [y.flip(1) for y in (x, late_b, late_c, late_step)]
        late, _ = recomputed(ssd, *turned, late_decay, self.chunk)
        zero = torch.zeros_like(x[:, :1])
        y = torch.cat((zero, early[:, :-1]), 1) + torch.cat((late.flip(1)[:, 1:], zero), 1)
        return self._finished(gate, y + self.skip[:, None] * x), None

    def as_matrix(self, x_BTD: Tensor) -> Tensor:
        _, _, ((b, c, step, decay), (late_b, late_c, late_step, late_decay)) = self._projected(x_BTD)
        early = ssd_matrix(b, c, step, decay)
        late = ssd_matrix(late_b.flip(1), late_c.flip(1), late_step.flip(1), late_decay).flip(2, 3)
        below, above = F.pad(early, (0, 0, 1, 0))[:, :, :-1], F.pad(late, (0, 0, 0, 1))[:, :, 1:]
        return below + above + self.skip[:, None, None] * torch.eye(x_BTD.shape[1], dtype=x_BTD.dtype)

    def values(self, x_BTD: Tensor) -> Tensor:
        return self._projected(x_BTD)[1].transpose(1, 2)

    def finish(self, x_BTD: Tensor, mixed_BGTE: Tensor) -> Tensor:
        return self._finished(self._projected(x_BTD)[0], mixed_BGTE.transpose(1, 2))

    def _projected(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, tuple[tuple[Tensor, ...], ...]]:
        """gate (B,T,HP), x (B,T,H,P), and B, C, steps and decays of the two directions."""
        widths = [self.inner, self.conv.width, 2 * self.heads]
        gate, mixed, step = torch.split(self.into(x_BTD), widths, dim=-1)
        ahead = self.conv.taps // 2
        mixed = self.conv(F.pad(mixed, (0, 0, 0, ahead)))[0][:, ahead:]
        x, *both = torch.split(F.silu(mixed), [self.inner, *[self.state] * 4], dim=-1)
        steps = F.softplus(step + self.step_bias).chunk(2, dim=-1)
        decays = (-self.log_decay.exp()).chunk(2)
        directions = tuple((both[2 * i], both[2 * i + 1], steps[i], decays[i]) for i in range(2))
        return gate, x.reshape(*x.shape[:2], self.heads, -1), directions

    def _finished(self, gate_BTD: Tensor, y_BTHP: Tensor) -> Tensor:
        gated = y_BTHP.flatten(2) * F.silu(gate_BTD)
        y: Tensor = self.out(self.norm(gated.to(self.norm.weight.dtype)))
        return y
