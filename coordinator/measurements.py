"""What a plan was made from, kept in STATE/measured.json: layers, devices, links, as workers measured them.

For whoever wants to price other plans for the same machines, or the same plan on other links.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scheduler.codec_speed import CodecSpeed
from scheduler.layer_cost import Keys
from scheduler.profile import DeviceProfile, LayerProfile, ModelProfile
from scheduler.topology import Device, Topology
from scheduler.visits import Visits

from .commands import MakePlan
from .events import LinkSample
from .planning import Planning, topology_of

MEASURED_FILE = "measured.json"


@dataclass(frozen=True, slots=True)
class Measurements:
    """`topology`: the measured links between the devices."""

    model: ModelProfile
    profiles: tuple[DeviceProfile, ...]
    topology: Topology

    @property
    def devices(self) -> tuple[Device, ...]:
        return self.topology.devices


def keep_measurements(state_dir: Path, planning: Planning) -> None:
    """Write the file, replacing an earlier plan's."""
    path = state_dir / MEASURED_FILE
    part = path.with_suffix(".json.part")
    request = planning.request
    body = asdict(replace(request, standing=None, chosen=None, links=()))
    # Of 500 workers there are 250,000 links; `asdict` of them alone would take seconds.
    body["links"] = [
        (src, {f: getattr(link, f) for f in LinkSample.__slots__}) for src, link in request.links
    ]
    part.write_text(json.dumps(body))
    os.replace(part, path)


def read_measurements(state_dir: Path) -> Measurements:
    """What the run's last plan was made from. Raises FileNotFoundError before there was a plan."""
    raw: dict[str, Any] = json.loads((state_dir / MEASURED_FILE).read_text())
    model = raw["model"]
    request = MakePlan(
        raw["version"],
        ModelProfile(
            **model
            | {
                "layers": tuple(_layer(x) for x in model["layers"]),
                "visits": Visits(**model["visits"]),
                "bounds": tuple((start, stop) for start, stop in model["bounds"]),
            }
        ),
        tuple(Device(**d) for d in raw["devices"]),
        tuple(_profile(p) for p in raw["profiles"]),
        tuple((src, LinkSample(**sample)) for src, sample in raw["links"]),
    )
    return Measurements(request.model, request.profiles, topology_of(request))


def _layer(raw: dict[str, Any]) -> LayerProfile:
    return LayerProfile(**raw | {"keys": tuple(Keys(*k) for k in raw["keys"])})


def _profile(raw: dict[str, Any]) -> DeviceProfile:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    return DeviceProfile(**fields | {"codecs": tuple(CodecSpeed(**s) for s in raw["codecs"])})
