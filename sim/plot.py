"""Draws a placement: on a map where positions are known, and as a grid of replicas and stages.

Colours are from Paul Tol's "muted" and "light" sets, told apart by colour-blind readers; every
region is also named where it stands. matplotlib is imported only here. Knows no objective: it is told
which links and which device the step waits for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from scheduler.explain_placement import Hop
from scheduler.topology import Topology
from sim.topology_file import Positions

PALETTE = (
    "#88CCEE",
    "#DDCC77",
    "#CC6677",
    "#44AA99",
    "#AA4499",
    "#999933",
    "#6699CC",
    "#EE8866",
    "#BBCC33",
    "#DDDDDD",
)
INK, FAINT, ALARM = "#222222", "#c9ced6", "#b2182b"
MAX_LABELLED = 24
"""Columns or rows up to which cells carry their device's name."""


def draw_placement(
    path: Path,
    topology: Topology,
    stages: Sequence[Sequence[int]],
    hops: Sequence[Hop],
    slowest: int | None,
    positions: Positions,
    title: str,
) -> None:
    """Write the picture to `path` (its suffix is the format). ValueError for an unknown format."""
    regions = list(dict.fromkeys(_region(topology, d) for d in range(len(topology))))
    colour = {r: PALETTE[k % len(PALETTE)] for k, r in enumerate(regions)}
    on_map = len(positions) > 1 and all(r in positions for r in regions)
    n_stages, n_replicas = len(stages), len(stages[0])
    width = min(16.0, max(9.0, 1.1 * n_stages + 1.5))
    grid_height = min(12.0, max(2.6, 0.46 * n_replicas + 1.3))
    figure = Figure(figsize=(width, grid_height + (4.6 if on_map else 0.0)), dpi=140, facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.02, ha="left", fontsize=13, color=INK, fontweight="bold")
    if on_map:
        upper, lower = figure.subplots(2, 1, height_ratios=[4.3, grid_height])
        _map(upper, topology, stages, hops, positions, colour)
    else:
        lower = figure.subplots()
    _grid(lower, topology, stages, hops, slowest, colour)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.savefig(path)


def _region(topology: Topology, device: int) -> str:
    d = topology.devices[device]
    return d.region or d.name


def _map(
    axes: Any,
    topology: Topology,
    stages: Sequence[Sequence[int]],
    hops: Sequence[Hop],
    positions: Positions,
    colour: dict[str, str],
) -> None:
    """Regions where they are; lines as thick as pipelines cross; the slowest link of a hop in red."""
    shown = {r: positions[r] for r in colour}
    lat, lon = np.array(list(shown.values())).T
    # The widest empty arc of longitude becomes the map's edge, so that no link runs round the world in vain.
    around = np.sort(lon)
    gap = np.diff(np.append(around, around[0] + 360))
    west = around[(int(gap.argmax()) + 1) % len(around)] - 12
    place = {r: ((b - west) % 360 + west, a) for r, (a, b) in shown.items()}
    x = np.array([p[0] for p in place.values()])
    axes.set_xlim(x.min() - 14, x.max() + 14)
    axes.set_ylim(max(-75, lat.min() - 14), min(80, lat.max() + 14))
    for meridian in np.arange(-180, 721, 15):
        axes.axvline(meridian, color=FAINT, lw=0.5, zorder=0)
    for parallel in np.arange(-75, 90, 15):
        axes.axhline(parallel, color=FAINT, lw=0.5, zorder=0)
    crossings: Counter[tuple[str, str]] = Counter()
    for a, b in pairwise(stages):
        for d, e in zip(a, b, strict=True):
            i, j = sorted((_region(topology, d), _region(topology, e)))
            crossings[i, j] += 1
    worst = max((h.seconds for h in hops), default=0.0)
    slow: dict[tuple[str, str], float] = {}
    for h in hops:
        i, j = sorted((_region(topology, h.src), _region(topology, h.dst)))
        if h.seconds >= 0.999 * worst:
            slow[i, j] = h.seconds
    for (here, there), count in crossings.items():
        if here != there:
            axes.add_patch(_arc(place[here], place[there], INK, 0.7 + 0.35 * count**0.7, 0.45))
    for here, there in slow:
        if here != there:
            axes.add_patch(_arc(place[here], place[there], ALARM, 2.6, 0.95))
    held = Counter(_region(topology, d) for stage in stages for d in stage)
    label_at = _label_places(place)
    for region, (px, py) in place.items():
        inside = crossings[region, region]
        edge = ALARM if (region, region) in slow else INK
        axes.scatter([px], [py], s=230, color=colour[region], edgecolor=edge, lw=1.6, zorder=3)
        note = f"{region}  ·  {held[region]}" + (f"\n{inside} hops inside" if inside else "")
        dx, dy, align = label_at[region]
        axes.annotate(
            note,
            (px, py),
            (dx, dy),
            textcoords="offset points",
            ha=align,
            va="center",
            fontsize=8.5,
            color=INK,
            zorder=2.5,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.55},
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(
        "Where the pipelines run: devices by region, lines where pipelines cross, the slowest in red",
        loc="left",
        fontsize=9.5,
        color=INK,
    )
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _arc(
    a: tuple[float, float], b: tuple[float, float], ink: str, width: float, alpha: float
) -> FancyArrowPatch:
    (ax, ay), (bx, by) = sorted((a, b))
    return FancyArrowPatch(
        (ax, ay),
        (bx, by),
        connectionstyle="arc3,rad=-0.18",
        arrowstyle="-",
        color=ink,
        lw=width,
        alpha=alpha,
        zorder=2,
    )


def _label_places(place: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float, str]]:
    """Each label where it covers least of the dots and labels before it: (dx, dy, alignment), in points.

    A degree is taken as 3.6 points, a label as 72 x 24.
    """
    sides = [(dx, dy, "left" if dx > 0 else "right") for dy in (0, 13, -13, 24, -24) for dx in (13, -13)]
    dots = {r: (x * 3.6, y * 5.0) for r, (x, y) in place.items()}
    boxes: list[tuple[float, float]] = []
    out: dict[str, tuple[float, float, str]] = {}
    for region in sorted(dots, key=lambda r: -dots[r][0]):
        x, y = dots[region]

        def covered(side: tuple[int, int, str], x: float = x, y: float = y, region: str = region) -> float:
            cx, cy = x + side[0] + (36 if side[0] > 0 else -36), y + side[1]
            hits = [(px, py, 36 + 10, 12 + 9) for r, (px, py) in dots.items() if r != region]
            hits += [(px, py, 74, 25) for px, py in boxes]
            return sum(max(0, w - abs(cx - px)) * max(0, h - abs(cy - py)) for px, py, w, h in hits)

        best = min(sides, key=covered)
        boxes.append((x + best[0] + (36 if best[0] > 0 else -36), y + best[1]))
        out[region] = (float(best[0]), float(best[1]), best[2])
    return out


def _grid(
    axes: Any,
    topology: Topology,
    stages: Sequence[Sequence[int]],
    hops: Sequence[Hop],
    slowest: int | None,
    colour: dict[str, str],
) -> None:
    """A column a stage, a row a replica; red: the link each stage waits for, with its seconds."""
    n_stages, n_replicas = len(stages), len(stages[0])
    labelled = max(n_stages, n_replicas) <= MAX_LABELLED
    size = 7.5 if n_stages <= 10 else 5.5
    for s, stage in enumerate(stages):
        for r, device in enumerate(stage):
            waits = device == slowest
            axes.add_patch(
                FancyBboxPatch(
                    (s - 0.36, r - 0.36),
                    0.72,
                    0.72,
                    boxstyle="round,pad=0.02,rounding_size=0.08",
                    fc=colour[_region(topology, device)],
                    ec=INK if waits else "white",
                    lw=2.2 if waits else 0.8,
                )
            )
            if labelled:
                axes.text(
                    s, r, topology.devices[device].name, ha="center", va="center", fontsize=size, color=INK
                )
    worst = max((h.seconds for h in hops), default=0.0)
    for h in hops:
        rows = stages[h.stage].index(h.src), stages[h.stage + 1].index(h.dst)
        hot = h.seconds >= 0.999 * worst
        axes.plot(
            [h.stage + 0.38, h.stage + 0.62],
            rows,
            color=ALARM,
            lw=2.6 if hot else 1.2,
            alpha=1 if hot else 0.6,
            solid_capstyle="round",
            zorder=3,
        )
        axes.text(
            h.stage + 0.5,
            -0.72,
            f"{h.seconds:.2f} s",
            ha="center",
            fontsize=7.5,
            color=ALARM,
            fontweight="bold" if hot else "normal",
        )
    if slowest is not None:
        axes.text(
            -0.45,
            n_replicas - 0.12,
            f"outlined: {topology.devices[slowest].name}, whose gradient exchange the step waits for",
            fontsize=8,
            color=INK,
            va="top",
        )
    axes.set_xlim(-0.5, n_stages - 0.5)
    axes.set_ylim(n_replicas + 0.25, -1.0)
    axes.set_xticks(range(n_stages), [f"stage {s}" for s in range(n_stages)], fontsize=8)
    axes.set_yticks(range(n_replicas), [f"replica {r}" for r in range(n_replicas)], fontsize=8)
    axes.tick_params(length=0, labelcolor=INK, top=True, labeltop=True, bottom=False, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
