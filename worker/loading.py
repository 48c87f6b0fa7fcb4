"""A rank's stage for one plan: built, and its layers kept, fetched from peers or from a checkpoint, or fresh.

Serves other ranks meanwhile. Knows where layers come from because it is told; decides nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from protos import orchestrator_pb2 as pb
from scheduler.checkpoint_layout import LayerFileInfo, optimizer_file, weights_file
from scheduler.job import JobSpec, ModelSpec
from scheduler.moving import transfer_deadline_s
from scheduler.plan import Plan
from worker.checkpoint import LayerFileError, check, from_bytes, load_state, load_weights
from worker.held_layers import HeldLayer, HeldLayers
from worker.layer_exchange import packed, receive_layer, send_part
from worker.model_of_job import fresh_layers
from worker.optimizer import StageOptimizer
from worker.stage import Stage
from worker.step import boundary_dtype
from worker.transport import Transport, TransportAborted

MAX_LAYER_BYTES = 64 << 30

GetFile = Callable[[int, LayerFileInfo], bytes]
"""(step, file) -> its content, from the coordinator's store."""


def build_stage(
    job: JobSpec, model: ModelSpec, plan: Plan, rank: int, device: torch.device, data_dir: Path
) -> tuple[Stage, StageOptimizer]:
    """The rank's stage with fresh weights, and its optimizer before the first step."""
    start, stop = plan.partition[plan.stage_of(rank)]
    layers = fresh_layers(job, model, start, stop, data_dir)
    for layer in layers:
        layer.to(device)
    autocast = torch.bfloat16 if boundary_dtype(job.precision) is torch.bfloat16 else None
    last = plan.stage_of(rank) == plan.n_stages - 1
    stage = Stage(layers, start == 0, last, autocast, plan.recompute)
    return stage, StageOptimizer(layers, job.optimizer)


def fetched(get: GetFile, step: int, file: LayerFileInfo) -> dict[str, torch.Tensor]:
    """One file of a checkpoint, checked. Raises LayerFileError."""
    data = get(step, file)
    check(data, file)
    return from_bytes(data, file.name)


def load_checkpoint(
    stage: Stage,
    optimizer: StageOptimizer,
    first_layer: int,
    step: int,
    files: Mapping[str, LayerFileInfo],
    get: GetFile,
) -> None:
    """Every layer of the stage from the checkpoint of `step`. Raises LayerFileError."""
    for i, layer in enumerate(stage.layers):
        name = weights_file(first_layer + i)
        if name not in files:
            raise LayerFileError(
                f"found no {name} in the checkpoint of step {step}, required for {layer.name}"
            )
        load_weights(layer, fetched(get, step, files[name]), name)
        state_name = optimizer_file(first_layer + i)
        if state_name in files:
            load_state(optimizer, i, fetched(get, step, files[state_name]), state_name)


@dataclass(slots=True)
class Came:
    """What came from peers: layers, their bytes, and the seconds from the first wait to the last layer."""

    layers: int = 0
    n_bytes: int = 0
    seconds: float = 0.0


def load_from_peers(
    stage: Stage,
    optimizer: StageOptimizer,
    first_layer: int,
    take: pb.TakePlan,
    held: HeldLayers,
    transport: Transport,
    me: int,
    ranks: Mapping[str, int],
) -> Came:
    """Every layer from where `take.sources` say; what came from others.

    What arrives joins `held` layer by layer, so that a plan that is aborted has not fetched in vain. All may
    take as long as `transfer_deadline_s` makes of what the coordinator expects. Raises NotHeld,
    LayerFileError, and what the transport raises.
    """
    came, began_s = Came(), time.monotonic()
    limit_s = transfer_deadline_s(take.loading_s)
    for source in take.sources:
        i, donors = source.layer - first_layer, [ranks[name] for name in source.donors]
        if donors == [me]:
            found = held.of(source.layer, take.step)
        else:
            left_s = max(0.0, began_s + limit_s - time.monotonic())
            found = receive_layer(transport, donors, take.step, source.layer, MAX_LAYER_BYTES, left_s)
            came.layers += 1
            came.n_bytes += sum(t.nbytes for t in (*found.weights.values(), *found.state.values()))
            came.seconds = time.monotonic() - began_s
        _load(stage, optimizer, i, found, f"layer {source.layer}")
        held.keep_layer(stage, optimizer, i, source.layer)
    return came


def _load(stage: Stage, optimizer: StageOptimizer, i: int, found: HeldLayer, name: str) -> None:
    load_weights(stage.layers[i], dict(found.weights), name)
    load_state(optimizer, i, found.state, name)


class Serving:
    """Sends layers to other ranks beside whatever else goes on; `join` waits for the end."""

    def __init__(
        self,
        take: pb.TakePlan,
        held: HeldLayers | None,
        transport: Transport,
        me: int,
        ranks: Mapping[str, int],
        failed: Callable[[Exception], None],
    ) -> None:
        parts: Sequence[pb.LayerPart] = list(take.serves)
        # Looked up now: what is held may be replaced while it is being sent.
        held = held or HeldLayers(-1)
        layers = {p.layer: held.of(p.layer, take.step) for p in parts}
        self._failed = failed

        def serve() -> None:
            at, blob = -1, memoryview(b"")
            for p in sorted(parts, key=lambda p: p.layer):
                if p.layer != at:
                    at, blob = p.layer, packed(layers[p.layer])
                key, part = (take.step, p.layer), (p.part, p.parts)
                send_part(transport, take.plan.version, me, ranks[p.to], key, blob, part)

        self._thread = threading.Thread(target=self._run, args=(serve,), name="serving", daemon=True)
        self._thread.start()

    def _run(self, serve: Callable[[], None]) -> None:
        try:
            serve()
        except TransportAborted:
            pass  # whoever aborted knows why
        except Exception as e:  # nobody waits here: the coordinator must hear of it
            self._failed(e)

    def join(self) -> None:
        self._thread.join()
