"""A placement on a map: regions where they are, pipelines as arcs in their replica's colour, wide as bytes.

Knows no objective: it is told what a step waits for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import pairwise
from math import hypot

import numpy as np

from scheduler.units import count, duration, size
from sim.canvas import HUES, Clipped, Dot, Line, Picture, Rect, Shape, Text, text_px
from sim.pictures import WIDE, heading, legend
from sim.placed import Placed
from sim.topology_file import Positions

Point = tuple[float, float]


def located(placed: Placed) -> bool:
    """Whether there is a map to draw: two places or more, all of them known."""
    regions = set(placed.tints())
    return len(regions) > 1 and regions <= placed.positions.keys()


@cache
def _land() -> tuple[tuple[Point, ...], ...]:
    """Coastlines as rings of (longitude, latitude)."""
    text = files("sim").joinpath("land.txt").read_text(encoding="utf-8")
    rings = []
    for line in text.splitlines():
        if not line.startswith("#"):
            points = [p.partition(",") for p in line.split()]
            rings.append(tuple((float(lon), float(lat)) for lon, _, lat in points))
    return tuple(rings)


class Globe:
    """Longitude and latitude to pixels: equidistant, cut where nobody is, wide enough for all places."""

    def __init__(self, positions: Positions, width: float, top: float) -> None:
        lon = np.sort(np.array([b for _, b in positions.values()]))
        lat = np.array([a for a, _ in positions.values()])
        # The widest empty arc of longitude becomes the edge, so that no link runs round the world in vain.
        gap = np.diff(np.append(lon, lon[0] + 360))
        self._west = lon[(int(gap.argmax()) + 1) % len(lon)]
        span = 360 - gap.max()
        margin = max(14.0, 0.1 * span)
        self._west -= margin
        degrees = span + 2 * margin
        low, high = max(-60.0, lat.min() - margin), min(80.0, lat.max() + margin)
        self._scale = width / degrees
        self._tall = 1.25  # a degree of latitude beside one of longitude, about right at 40 degrees
        height = (high - low) * self._scale * self._tall
        if (least := 0.42 * width) > height:  # a band is no map: show more of north and south
            more = (least - height) / self._scale / self._tall / 2
            low, high, height = low - more, high + more, least
        if (most := 0.62 * width) < height:
            self._tall *= most / height
            height = most
        self._north = high
        self.frame = (0.0, top, width, height)

    def at(self, lat: float, lon: float) -> Point:
        return self._to((lon - self._west) % 360, lat)

    def _to(self, east: float, lat: float) -> Point:
        return east * self._scale, self.frame[1] + (self._north - lat) * self._scale * self._tall

    def land(self) -> list[Shape]:
        """What is seen of the coastlines, each also a turn of the earth to the east and west."""
        out: list[Shape] = []
        _, top, width, height = self.frame
        for ring in _land():
            for turn in (-360, 0, 360):
                points = [self._to(lon - self._west + turn, lat) for lon, lat in ring]
                xs, ys = [p[0] for p in points], [p[1] for p in points]
                if max(xs) > 0 and min(xs) < width and max(ys) > top and min(ys) < top + height:
                    out.append(Line(tuple(points), stroke="", fill="land"))
        return out


def placement_map(placed: Placed, title: str, width: float = WIDE) -> Picture | None:
    """Regions where they are, pipelines as arcs between them; None without positions."""
    if not located(placed):
        return None
    tints = placed.tints()
    shown = {r: placed.positions[r] for r in tints}
    what = "as wide as the bytes a step sends" if placed.hop_bytes else "as wide as their crossings"
    flows = _flows(placed)
    apart = any(a != b for a, b, _ in flows)
    note = f"Arcs are pipelines between regions, coloured by replica, {what}."
    out, top = heading(title, note if apart else "Every pipeline stays inside its region.", width)
    n_replicas = len(placed.stages[0])
    if apart and n_replicas <= len(HUES):
        keys, top = legend([(f"replica {r}", HUES[r]) for r in range(n_replicas)], top - 6, width)
        out += keys
    globe = Globe(shown, width, top)
    places = {r: globe.at(*p) for r, p in shown.items()}
    inside: list[Shape] = [Rect(*globe.frame, "paper"), *globe.land()]
    heaviest = max((v for (a, b, _), v in flows.items() if a != b), default=1.0) or 1.0
    lanes: Counter[tuple[str, str]] = Counter()
    along: list[Point] = []
    step, broad = 0.13 / max(n_replicas - 1, 3), 4.3 if n_replicas <= 4 else 2.4
    for (a, b, replica), weight in sorted(flows.items(), key=lambda f: -f[1]):
        if a != b:
            lanes[a, b] += 1
            said = size(weight) if placed.hop_bytes else count(int(weight), "crossing")
            tip = f"replica {replica}: {a} to {b}, {said}"
            arc = _arc(places[a], places[b], 0.09 + step * (lanes[a, b] - 1))
            thick = 1.2 + broad * weight / heaviest
            along += arc
            inside.append(Line(arc, HUES[replica % len(HUES)], round(thick, 2), 0.8, tip=tip))
    inside += _slow(placed, places)
    held = Counter(placed.regions[d] for stage in placed.stages for d in stage)
    within = Counter(a for a, b, _ in flows if a == b)
    labels = {r: f"{r} · {held[r]}" for r in places}
    px = 11.5 if width > 600 else 9.5
    sides = _label_places(places, labels, along, globe.frame, px)
    for region, (x, y) in places.items():
        tip = f"{region}: {count(held[region], 'device')}, {count(within[region], 'hop')} inside"
        inside.append(Dot(x, y, 5 + 1.1 * min(held[region], 16) ** 0.5, tints[region], "ink", tip))
        if region in sides:  # where there is no room for a name, the grid's legend has it
            dx, dy, anchor = sides[region]
            inside.append(Text(x + dx, y + dy + 4, labels[region], anchor, size=px, bold=True, halo=True))
    out.append(Clipped(globe.frame, tuple(inside)))
    bottom = top + globe.frame[3]
    out.append(
        Text(
            width, bottom + 15, "Coastlines: Natural Earth. Beside a region: its devices.", "end", "soft", 10
        )
    )
    crossed = sum(v for (a, b, _), v in flows.items() if a != b)
    carried = size(crossed) if placed.hop_bytes else count(int(crossed), "crossing")
    where = ", ".join(f"{r} {n}" for r, n in held.items())
    return Picture(
        width, bottom + 22, title, f"Devices: {where}. Between regions: {carried} a step.", tuple(out)
    )


def _flows(placed: Placed) -> dict[tuple[str, str, int], float]:
    """(region, region, replica) -> what its pipeline carries between them; regions in one order."""
    flows: dict[tuple[str, str, int], float] = defaultdict(float)
    for here, there in pairwise(placed.stages):
        for replica, (d, e) in enumerate(zip(here, there, strict=True)):
            a, b = sorted((placed.regions[d], placed.regions[e]))
            both = placed.hop_bytes.get((d, e), 0.0) + placed.hop_bytes.get((e, d), 0.0)
            flows[a, b, replica] += both if placed.hop_bytes else 1.0
    return flows


def _arc(a: Point, b: Point, bow: float) -> tuple[Point, ...]:
    """A curve from a to b that leaves the straight line upwards by `bow` of its length."""
    (ax, ay), (bx, by) = sorted((a, b))
    length = hypot(bx - ax, by - ay) or 1.0
    mx, my = (ax + bx) / 2 + (by - ay) / length * bow * length * 2, (ay + by) / 2 - (bx - ax) * bow * 2
    steps = [k / 32 for k in range(33)]
    return tuple(
        (
            (1 - t) ** 2 * ax + 2 * t * (1 - t) * mx + t * t * bx,
            (1 - t) ** 2 * ay + 2 * t * (1 - t) * my + t * t * by,
        )
        for t in steps
    )


def _slow(placed: Placed, places: Mapping[str, Point]) -> list[Shape]:
    """The link that a step waits for longest, dashed over its arc, with its seconds."""
    worst = max(placed.waits.values(), default=0.0)
    out: list[Shape] = []
    for (d, e), seconds in placed.waits.items():
        a, b = placed.regions[d], placed.regions[e]
        if a != b and seconds >= 0.999 * worst:
            arc = _arc(places[a], places[b], 0.09)
            out.append(Line(arc, "alarm", 2.6, dashed=True, tip=f"{d} to {e}: {duration(seconds)}"))
            x, y = arc[16]
            out.append(Text(x, y - 6, f"slowest: {duration(seconds)}", "middle", "alarm", 11, True, True))
    return out


def _label_places(
    places: Mapping[str, Point],
    labels: Mapping[str, str],
    along: Sequence[Point],
    frame: tuple[float, float, float, float],
    px: float,
) -> dict[str, tuple[float, float, str]]:
    """Each label where it covers least of dots, arcs (`along`) and labels before it: (dx, dy, anchor).

    One that would cover another label to a good part is left out.
    """
    sides = [(dx, dy) for dy in (0, 14, -14, 26, -26) for dx in (13, -13)]
    boxes: list[tuple[float, float, float]] = []
    out: dict[str, tuple[float, float, str]] = {}
    for region in sorted(places, key=lambda r: -places[r][0]):
        x, y = places[region]
        half = text_px(labels[region], px) / 2 + 2

        def cost(
            side: tuple[int, int], x: float = x, y: float = y, half: float = half, own: str = region
        ) -> float:
            cx, cy = x + side[0] + (half if side[0] > 0 else -half), y + side[1]
            hits = [(px, py, half + 10, 17.0) for r, (px, py) in places.items() if r != own]
            hits += [(px, py, half + other, 14.0) for px, py, other in boxes]
            out_of_frame = max(0, half - cx) + max(0, cx + half - frame[2])
            covered = sum(max(0, w - abs(cx - px)) * max(0, h - abs(cy - py)) for px, py, w, h in hits)
            crossed = sum(abs(cx - px) < half and abs(cy - py) < 9 for px, py in along)
            return covered + 50 * out_of_frame + 20 * crossed + abs(side[1])

        dx, dy = min(sides, key=cost)
        at = (x + dx + (half if dx > 0 else -half), y + dy, half)
        if any(
            abs(at[0] - bx) < 0.8 * (half + other) and abs(at[1] - by) < 0.7 * px for bx, by, other in boxes
        ):
            continue
        boxes.append(at)
        out[region] = (float(dx), float(dy), "start" if dx > 0 else "end")
    return out
