"""What a layer costs: seconds on a device, bytes, flops. Measured elsewhere; only carried here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """One layer of the model, for one micro-batch of the job's size. Device-independent.

    `boundary_bytes` is what crosses to the next layer (uncompressed, the job's wire dtype);
    `saved_bytes` what forward keeps for backward; `state_bytes` the optimizer's state.
    """

    name: str
    forward_flops: float
    backward_flops: float
    parameter_bytes: int
    boundary_bytes: int
    saved_bytes: int
    state_bytes: int
    tied_to: str = ""
    """Name of the earlier layer whose weight this one shares (a tied head), or ''."""


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """Seconds of each layer on one device, alone on its host: `forward_s[layer]`, `backward_s[layer]`."""

    device: str
    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    optimizer_s: tuple[float, ...]
    """Seconds of the optimizer's step for each layer's parameters."""


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """The layers of a job, in order, for micro-batches of `micro_batch` samples of
    `sequence_length` tokens."""

    layers: tuple[LayerProfile, ...]
    micro_batch: int
    sequence_length: int
