"""The codecs of one rank: one for each (kind of frame, peer, direction) of its plan, kept from step to step.

Knows which codec the plan names for which traffic; refuses to know tensors.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compression.codec import ActivationDeltaCodec, Codec, FeedbackCodec, make_codec
from compression.spec import IDENTITY, MomentumSpec, codec_spec
from scheduler.plan import Plan
from worker.resend import Resends

EVERYBODY = -1
"""The peer of what is encoded once and sent to several."""


@dataclass(slots=True)
class LinkCodecs:
    """For one rank of one plan; a new plan begins with new ones at both ends of every link."""

    plan: Plan
    rank: int
    seed: int = 0
    """The job's: with the link's name it draws the roundings."""
    directory: Path | None = None
    """Where codecs keep on disk what they remember; None: in memory."""
    resends: Resends | None = None
    """Answers peers whose memory does not fit; there is one once a codec remembers samples."""
    _codecs: dict[tuple[str, int, bool, str], Codec] = field(default_factory=dict)

    def sender(self, kind: str, peer: int, step: int | None = None) -> Codec:
        """What compresses frames of `kind` to `peer` in `step`; None: once every warm-up is over."""
        return self._of(kind, peer, True, step)

    def receiver(self, kind: str, peer: int, step: int | None = None) -> Codec:
        """What reads frames of `kind` from `peer`."""
        return self._of(kind, peer, False, step)

    def momentum_from(self) -> int | None:
        """The first step in which this rank's stage exchanges momentum; None: there is none such."""
        spec = codec_spec(self.plan.codecs.of_stage(self.plan.stage_of(self.rank)))
        return spec.warmup_steps if isinstance(spec, MomentumSpec) else None

    def name(self, kind: str, sends: bool) -> str:
        """The plan's codec for frames of `kind`; identity for kinds that it does not speak of."""
        codecs, stage, replica = (
            self.plan.codecs,
            self.plan.stage_of(self.rank),
            self.plan.replica_of(self.rank),
        )
        match kind:
            case "activation":
                return codecs.of_boundary(kind, replica, stage if sends else stage - 1)
            case "gradient":
                return codecs.of_boundary(kind, replica, stage - 1 if sends else stage)
            case "shard" | "reduced":
                return codecs.of_stage(stage)
            case "tied":
                return codecs.of_stage(0)
            case _:
                return "identity"

    def feedback_senders(self) -> dict[tuple[str, int], FeedbackCodec]:
        """(kind, peer) -> the codecs of this end that owe something."""
        return {
            (kind, peer): codec
            for (kind, peer, sends, _), codec in self._codecs.items()
            if sends and isinstance(codec, FeedbackCodec)
        }

    def prefetch(self, samples: Sequence[int]) -> None:
        """These samples come in the next step."""
        for codec in self._codecs.values():
            if isinstance(codec, ActivationDeltaCodec):
                codec.prefetch(samples)

    def _of(self, kind: str, peer: int, sends: bool, step: int | None) -> Codec:
        name = self.name(kind, sends)
        spec = codec_spec(name)
        if step is not None and isinstance(spec, MomentumSpec) and step < spec.warmup_steps:
            name = IDENTITY.name
        key = (kind, peer, sends, name)
        if key not in self._codecs:
            # Every replica swaps the same tied gradient and must read the same from it, so all round alike.
            end = f"stage {self.plan.stage_of(self.rank)}" if kind == "tied" else f"{self.rank} {peer}"
            seed = zlib.crc32(f"{self.seed} {kind} {end}".encode())
            self._codecs[key] = make_codec(name, seed, self.directory)
        return self._codecs[key]
