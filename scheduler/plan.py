"""A plan: who holds which layers, in which order everything happens, and why.

A plan is immutable and has a version; frames of another version are dropped. Nothing here
searches: `planner.py` and `search.py` make plans, everybody else reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.plan_codecs import NO_CODECS, PlanCodecs
from scheduler.schedule import Actions
from scheduler.sequence import Split, bounds_of, shard_bounds


class PlanError(ValueError):
    """A plan that cannot be made: says what was found, what is required, what to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`placement[replica][stage]` names a device; rank = replica * n_stages + stage.

    `partition[stage]` = (first layer, one past the last). `micro_batches[replica]` is how many
    micro-batches of the global batch the replica takes each step: all of them, where replicas share
    every sequence.
    """

    version: int
    placement: tuple[tuple[str, ...], ...]
    partition: tuple[tuple[int, int], ...]
    micro_batches: tuple[int, ...]
    schedule: str
    """`gpipe` or `1f1b`."""
    warmup_extra: int = 0
    """Micro-batches in flight beyond what 1f1b needs, for every stage that follows and every shard behind
    (they hide transfers)."""
    micro_batch: int = 0
    """Samples in a micro-batch; 0: as many as were profiled. A plan that is run says how many."""
    recompute: bool = False
    """Whether stages save their inputs only, and do each forward again in front of its backward."""
    streams: int = 0
    """Streams that carry each link's frames; 0: as many as the worker allows, priced as the link's all."""
    local_steps: int = 0
    """Steps between two exchanges of a weight's change, a piece of all weights a step; 0: gradients are
    exchanged in every step."""
    split: Split = "batch"
    """What replicas share. `sequence`: replica r of R has the r-th of R parts of every sequence."""
    shard_sizes: tuple[int, ...] = ()
    """Positions of each replica's part; (): as equal as can be."""
    codecs: PlanCodecs = NO_CODECS
    predicted_step_s: float = 0.0
    reasons: tuple[str, ...] = ()
    """Why the plan is what it is, one sentence a choice."""

    @property
    def n_stages(self) -> int:
        return len(self.partition)

    @property
    def n_replicas(self) -> int:
        return len(self.placement)

    @property
    def n_ranks(self) -> int:
        return self.n_stages * self.n_replicas

    def rank(self, replica: int, stage: int) -> int:
        return replica * self.n_stages + stage

    def replica_of(self, rank: int) -> int:
        return rank // self.n_stages

    def stage_of(self, rank: int) -> int:
        return rank % self.n_stages

    def device(self, rank: int) -> str:
        return self.placement[self.replica_of(rank)][self.stage_of(rank)]

    @property
    def devices(self) -> tuple[str, ...]:
        """[rank]: who holds it."""
        return tuple(name for pipeline in self.placement for name in pipeline)

    def rank_of_device(self, name: str) -> int | None:
        """The rank that `name` holds, or None if the plan leaves it out."""
        for r in range(self.n_ranks):
            if self.device(r) == name:
                return r
        return None

    def group(self, stage: int) -> tuple[int, ...]:
        """The ranks that hold the replicas of `stage`, in replica order."""
        return tuple(self.rank(r, stage) for r in range(self.n_replicas))

    @property
    def batch_shares(self) -> int:
        """Among how many replicas the batch is shared; 1 where each sees all of it."""
        return 1 if self.split == "sequence" else self.n_replicas

    @property
    def sequence_shards(self) -> int:
        """Among how many replicas every sequence is shared."""
        return self.n_replicas if self.split == "sequence" else 1

    def shard_bounds(self, sequence_length: int) -> tuple[tuple[int, int], ...]:
        """[start, stop) of the positions of each sequence shard. PlanError for sizes of another length."""
        if not self.shard_sizes:
            return tuple(shard_bounds(sequence_length, self.sequence_shards))
        if sum(self.shard_sizes) != sequence_length:
            raise PlanError(
                f"found shards of {', '.join(map(str, self.shard_sizes))} positions for sequences of"
                f" {sequence_length}; required shards that add up to them: make the plan again for this job"
            )
        return bounds_of(self.shard_sizes)

    @property
    def n_micro_batches(self) -> int:
        """Micro-batches of one step, over all replicas."""
        return sum(self.micro_batches[: self.batch_shares])

    @property
    def samples(self) -> int:
        """Samples of one step, over all replicas."""
        return self.micro_batch * self.n_micro_batches

    def shares_of(self, n_replicas: int) -> tuple[int, ...]:
        """Micro-batches of each replica, if there were so many."""
        if self.split == "sequence":
            return (self.n_micro_batches,) * n_replicas
        return split_micro_batches(self.n_micro_batches, n_replicas)

    def first_micro_batch(self, replica: int) -> int:
        """Index, within the global batch, of the replica's first micro-batch."""
        return sum(self.micro_batches[:replica]) if self.split == "batch" else 0

    def actions(self, rank: int) -> Actions:
        """What `rank` does in one step; micro-batches are numbered 0.. within its replica."""
        from scheduler.schedule import stage_actions

        replica = self.replica_of(rank)
        return stage_actions(
            self.schedule,
            stage=self.stage_of(rank),
            n_stages=self.n_stages,
            n_micro_batches=self.micro_batches[replica],
            first_rank=replica * self.n_stages,
            warmup_extra=self.warmup_extra,
            local=self.local_steps > 0,
            behind=self.sequence_shards - 1 - replica if self.split == "sequence" else 0,
        )

    def explain(self) -> str:
        """The reasons, a line each."""
        return "\n".join(self.reasons)


def stage_of_layers(plan: Plan) -> tuple[int, ...]:
    """[layer]: the stage that holds it."""
    return tuple(stage for stage, (start, stop) in enumerate(plan.partition) for _ in range(start, stop))


def split_micro_batches(n_micro_batches: int, n_replicas: int) -> tuple[int, ...]:
    """Micro-batches of each replica; where they do not divide, the first replicas take one more."""
    each, more = divmod(n_micro_batches, n_replicas)
    return tuple(each + (r < more) for r in range(n_replicas))
