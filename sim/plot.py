"""A placement as a file: the map, where positions are known, above the grid."""

from __future__ import annotations

from pathlib import Path

from sim.canvas import stacked
from sim.placed import Placed
from sim.placement_grid import placement_grid
from sim.svg import save
from sim.world_map import located, placement_map


def draw_placement(path: Path, placed: Placed, title: str) -> None:
    """Write map and grid, one below the other, to `path` (its suffix is the format). ValueError, OSError."""
    pictures = [
        p
        for p in (placement_map(placed, title), placement_grid(placed, "" if located(placed) else title))
        if p
    ]
    save(path, stacked(pictures, title))
