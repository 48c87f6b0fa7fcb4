"""The dashboard's map and the shipped traces have the same places; neither shell may read the other."""

from __future__ import annotations

import json
from pathlib import Path

from sim.trace import load, shipped

PLACES = Path(__file__).parent.parent / "coordinator" / "dashboard" / "static" / "places.json"


def test_the_map_knows_every_place_of_the_shipped_traces_and_no_other() -> None:
    nodes = [node for name in shipped() for node in load(name).nodes.values()]
    found = {
        node.name.lower(): [round(node.latitude, 2), round(node.longitude, 2)]
        for node in nodes
        if node.latitude is not None and node.longitude is not None
    }
    assert len(found) > 20
    assert json.loads(PLACES.read_text()) == found
