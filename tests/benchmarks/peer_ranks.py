"""One rank of the benchmark beside the peers: the same model and batch, trained by whoever is asked.

    python -m tests.benchmarks.peer_ranks SOCKET RANK       (started by tests.benchmarks.peers)

Obeys over a Unix socket, which namespaces do not cut: ("begin", contender, arguments), ("run", first,
n), ("profile",), ("stop",). Every contender gets the weights of the same seed and the same tokens,
optimizer and loss; it begins anew each round. Clipping is off, since not every peer can clip by the
whole model's norm. Replicas compute their share in one pass, pipelines in micro-batches.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Client, Connection
from typing import Any

import torch
from torch import Tensor, nn

from scheduler.job import DataSpec, JobSpec, ModelSpec, OptimizerSpec
from scheduler.presets import PRESETS
from tests.benchmarks.tokens import tokens_of
from worker.model import Head, build_layers, initialize

N_RANKS = 4
MICRO_BATCH = 4
STAGES = ((0, 2), (2, 3), (3, 4), (4, 6))
"""The demo's embedding, 4 blocks and head, cut by hand for those who cannot: a block each."""
Step = Callable[[int], float]
"""Index of the step -> the summed loss of what this rank saw; 0 where it saw none."""


def make_job() -> JobSpec:
    """The demo's model and batch. Untied, for the peers' pipelines cannot share a weight between stages."""
    model = ModelSpec.model_validate({**PRESETS["demo"], "vocab": 257, "tied": False})
    return JobSpec(
        name="peers",
        model=model,
        data=DataSpec(files=("none",)),
        sequence_length=128,
        global_batch=32,
        micro_batch=MICRO_BATCH,
        steps=1_000_000,
        optimizer=OptimizerSpec(lr=1e-3, clip_norm=0.0, decay="constant", weight_decay=0.0),
    )


JOB = make_job()
SCALE = 1.0 / (JOB.global_batch * JOB.sequence_length)


def layers_of(start: int, stop: int) -> list[nn.Module]:
    """Layers start .. stop with the weights of the seed."""
    layers = build_layers(JOB.shape, start, stop)
    for i, layer in enumerate(layers):
        initialize(layer, 0, start + i)
    return list(layers)


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    o = JOB.optimizer
    return torch.optim.AdamW(
        module.parameters(), lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=0.0, fused=True
    )


class Whole(nn.Module):
    """(B, T + 1) tokens -> the summed loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers_of(0, JOB.n_layers))

    def forward(self, tokens: Tensor) -> Tensor:
        x = tokens[:, :-1]
        for layer in self.layers[:-1]:
            x, _ = layer(x)
        head = self.layers[-1]
        assert isinstance(head, Head)
        return head.loss(x, tokens[:, 1:])


def share_of(step: int, rank: int) -> Tensor:
    """A replica's samples."""
    each = JOB.global_batch // N_RANKS
    return tokens_of(JOB, step)[rank * each : (rank + 1) * each]


# ---- the contenders


class Ranks:
    """What a rank keeps from round to round: its endpoint, its process group, its averagers."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._endpoint: Any = None
        self._grouped = False
        self._dht: Any = None
        self._averagers: dict[bool, Any] = {}

    def isthmus(self, plan: Any, addresses: Sequence[str], streams: int) -> Step:
        """The worker's own step, over its own transport."""
        from tests.benchmarks.step import stage_of
        from worker.zmq_transport import DataEndpoint

        if self._endpoint is None:
            self._endpoint = DataEndpoint(addresses[self.rank], streams=streams)
        rank = plan.rank_of_device(str(self.rank))
        by_rank = [addresses[int(plan.device(r))] for r in range(plan.n_ranks)]
        step = stage_of(JOB, self._endpoint, plan, rank, by_rank)
        return lambda i: step(i).loss_sum

    def ddp(self, store: str, fp16: bool) -> Step:
        """torch's data parallel over gloo, its buckets overlapped with the backward."""
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
        from torch.nn.parallel import DistributedDataParallel

        self._group(store)
        model = DistributedDataParallel(Whole(), gradient_as_bucket_view=True)
        if fp16:
            model.register_comm_hook(None, fp16_compress_hook)
        optimizer = optimizer_of(model)

        def step(i: int) -> float:
            loss = model(share_of(i, self.rank))
            (loss * (SCALE * N_RANKS)).backward()  # DDP takes the mean over ranks
            optimizer.step()
            optimizer.zero_grad()
            return float(loss.item())

        return step

    def pipelining(self, store: str, schedule: str) -> Step:
        """torch.distributed.pipelining over gloo, with the cut STAGES."""
        from torch.distributed import pipelining

        self._group(store)
        start, stop = STAGES[self.rank]
        first, last = self.rank == 0, self.rank == N_RANKS - 1
        head = layers_of(stop - 1, stop)[0] if last else None

        class Part(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.ModuleList(layers_of(start, stop - 1 if last else stop))
                self.head = head

            def forward(self, x: Tensor) -> Tensor:
                for layer in self.layers:
                    x, _ = layer(x)
                return x

        def loss_of(x: Tensor, targets: Tensor) -> Tensor:
            assert isinstance(head, Head)
            return head.loss(x, targets) * SCALE

        part = Part()
        optimizer = optimizer_of(part)
        stage = pipelining.PipelineStage(part, self.rank, N_RANKS, torch.device("cpu"))
        kind = pipelining.Schedule1F1B if schedule == "1f1b" else pipelining.ScheduleGPipe
        n = JOB.global_batch // MICRO_BATCH
        run = kind(stage, n, loss_fn=loss_of, scale_grads=False)

        def step(i: int) -> float:
            tokens = tokens_of(JOB, i)
            losses: list[Tensor] = []
            if first:
                run.step(tokens[:, :-1])
            elif last:
                run.step(target=tokens[:, 1:], losses=losses)
            else:
                run.step()
            optimizer.step()
            optimizer.zero_grad()
            return sum(x.item() for x in losses) / SCALE

        return step

    def hivemind(self, peers: Sequence[str], address: str, fp16: bool) -> Step:
        """hivemind's averager on the gradients of every step, with all four ranks in one group."""
        import hivemind
        from hivemind.compression import Float16Compression, NoCompression

        if self._dht is None:
            self._dht = hivemind.DHT(
                initial_peers=list(peers),
                start=True,
                host_maddrs=[f"/ip4/{address}/tcp/0"],
                announce_maddrs=None,
            )
        model = Whole()
        optimizer = optimizer_of(model)
        parameters = list(model.parameters())
        if fp16 not in self._averagers:
            self._averagers[fp16] = hivemind.DecentralizedAverager(
                [torch.zeros_like(p) for p in parameters],
                self._dht,
                start=True,
                prefix=f"peers-{fp16}",
                target_group_size=N_RANKS,
                min_group_size=N_RANKS,
                min_matchmaking_time=2.0,
                request_timeout=1.5,
                compression=Float16Compression() if fp16 else NoCompression(),
            )
        averager = self._averagers[fp16]

        def step(i: int) -> float:
            loss = model(share_of(i, self.rank))
            (loss * (SCALE * N_RANKS)).backward()  # the averager takes the mean over ranks
            with averager.get_tensors() as tensors:
                for mine, p in zip(tensors, parameters, strict=True):
                    mine.copy_(p.grad)
            if averager.step(timeout=60, allow_retries=True) is None:
                raise RuntimeError("hivemind found no group of four within 60 s")
            with averager.get_tensors() as tensors:
                for mine, p in zip(tensors, parameters, strict=True):
                    p.grad = mine.clone()
            optimizer.step()
            optimizer.zero_grad()
            return float(loss.item())

        return step

    def addresses(self) -> list[str]:
        """Where this rank's hivemind can be found by others."""
        return [str(a) for a in self._dht.get_visible_maddrs()]

    def _group(self, store: str) -> None:
        if not self._grouped:
            torch.distributed.init_process_group("gloo", f"tcp://{store}", rank=self.rank, world_size=N_RANKS)
            self._grouped = True

    def close(self) -> None:
        if self._endpoint is not None:
            self._endpoint.close()
        for averager in self._averagers.values():
            averager.shutdown()
        if self._dht is not None:
            self._dht.shutdown()
        if self._grouped:
            torch.distributed.destroy_process_group()


Ran = tuple[float, float, float]
"""Some steps of one rank: clock at both ends, its summed loss in the last. A plain tuple, for it is sent."""


def serve(pipe: Connection, rank: int) -> None:
    ranks = Ranks(rank)
    step: Step | None = None
    try:
        while (order := pipe.recv())[0] != "stop":
            try:
                if order[0] == "begin":
                    step = getattr(ranks, order[1])(*order[2])
                    pipe.send("ready")
                elif order[0] == "addresses":
                    pipe.send(ranks.addresses())
                elif order[0] == "profile":
                    from worker.profiler import profile_model

                    cpu = torch.device("cpu")
                    pipe.send(profile_model(JOB, JOB.shape, cpu, str(rank), time.perf_counter))
                else:
                    assert step is not None
                    start_s, loss = time.monotonic(), 0.0
                    for i in range(order[1], order[1] + order[2]):
                        loss = step(i)
                    pipe.send((start_s, time.monotonic(), loss))
            except Exception as error:  # said to whoever asked, who decides
                pipe.send(error if isinstance(error, RuntimeError) else RuntimeError(repr(error)))
    finally:
        ranks.close()


def main() -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "isthmus0"
    with Client(sys.argv[1], "AF_UNIX") as pipe:
        pipe.send(int(sys.argv[2]))
        serve(pipe, int(sys.argv[2]))


if __name__ == "__main__":
    main()
