"""Draws the documentation's pictures: `python docs/pictures/draw.py`, after which the files are committed.

Light and dark by the reader's setting, like all of our pictures (`sim.canvas`, `sim.svg`). The timeline is
the engine's own; the others are drawn by hand.
"""

from __future__ import annotations

from math import hypot
from pathlib import Path

from scheduler.job import ParallelismSpec
from sim.api import open_network, plan, preset_job
from sim.canvas import Line, Picture, Rect, Shape, Text
from sim.gantt import gantt
from sim.svg import save

Point = tuple[float, float]
HERE = Path(__file__).parent
WIDTH, PX = 600.0, 14.0
"""Narrow, and with large letters, so that it can be read on a phone."""


def box(
    x: float, y: float, w: float, h: float, *lines: str, fill: str = "land", ink: str = "ink"
) -> list[Shape]:
    """A rounded box with centred lines of text, the first in bold."""
    out: list[Shape] = [Rect(x, y, w, h, fill, "line", 6)]
    top = y + h / 2 + PX * 0.35 - (len(lines) - 1) * (PX + 3) / 2
    for k, text in enumerate(lines):
        size = PX if k == 0 else PX - 2
        out.append(Text(x + w / 2, top + k * (PX + 3), text, "middle", ink, size, bold=k == 0))
    return out


def note(x: float, y: float, text: str) -> Text:
    """A line of explanation, centred."""
    return Text(x, y, text, "middle", "soft", 12.5, halo=True)


def arrow(a: Point, b: Point, ink: str, width: float = 2, dashed: bool = False) -> list[Shape]:
    """A line with a head at `b`."""
    length = hypot(b[0] - a[0], b[1] - a[1])
    ux, uy = (b[0] - a[0]) / length, (b[1] - a[1]) / length
    size = 5 + 1.5 * width
    back = (b[0] - ux * size, b[1] - uy * size)
    aside = (uy * size / 2, -ux * size / 2)
    left, right = (back[0] - aside[0], back[1] - aside[1]), (back[0] + aside[0], back[1] + aside[1])
    return [Line((a, back), ink, width, dashed=dashed), Line((b, left, right), ink, 1, fill=ink)]


def parts() -> Picture:
    """Who talks to whom."""
    cities = (
        ("Oregon", "layers 0–3"),
        ("Virginia", "layers 4–6"),
        ("London", "layers 7–9"),
        ("Tokyo", "layers 10–13"),
    )
    out = box(210, 8, 180, 56, "coordinator", "plan, commits, checkpoints")
    xs = [8 + 152 * k for k in range(4)]
    for k, (x, (city, layers)) in enumerate(zip(xs, cities, strict=True)):
        out += arrow((300 + 30 * (k - 1.5), 66), (x + 64, 166), "soft", 1.2, dashed=True)
        out += box(x, 168, 128, 58, city, f"worker, {layers}", fill="paper")
    for k, width in enumerate((4.0, 2.0, 1.2)):
        out += arrow((xs[k] + 129, 197), (xs[k + 1] - 2, 197), f"hue{k}", width)
    out.append(
        note(300, 250, "thick and thin: tensors from worker to worker, each link at its own bandwidth")
    )
    out.append(note(300, 112, "control: each worker calls the coordinator"))
    said = (
        "A coordinator above four workers in four cities: control with each, tensors from worker to worker."
    )
    return Picture(WIDTH, 260, "The parts of a run", said, tuple(out))


def stages() -> Picture:
    """A model's layers, cut, on two pipelines."""
    names = ["emb", *(str(k) for k in range(1, 11)), "head"]
    cut, hues = ((0, 4), (4, 7), (7, 12)), ("hue0", "hue2", "hue4")
    out: list[Shape] = []
    w = 46.0
    x_of = [14 + k * 48 for k in range(12)]
    out.append(Text(14, 16, "the model's layers", size=PX, bold=True))
    for k, name in enumerate(names):
        hue = next(h for (a, b), h in zip(cut, hues, strict=True) if a <= k < b)
        out.append(Rect(x_of[k], 26, w, 30, hue, radius=4))
        out.append(Text(x_of[k] + w / 2, 46, name, "middle", "on", 13, bold=True))
    devices = (("A100, 40 GB", "T4, 16 GB", "A100, 80 GB"), ("A10, 24 GB", "T4, 16 GB", "A100, 40 GB"))
    for r in range(2):
        y = 92 + r * 100
        out.append(Text(14, y + 2, f"replica {r}", size=PX, bold=True))
        for s, (a, b) in enumerate(cut):
            left, right = x_of[a], x_of[b - 1] + w
            out += box(left, y + 12, right - left, 50, f"stage {s}", devices[r][s])
            out.append(Rect(left, y + 58, right - left, 4, hues[s]))
            if s:
                out += arrow((left - 14, y + 30), (left + 1, y + 30), "ink", 1.8)
                out += arrow((left + 1, y + 48), (left - 14, y + 48), "soft", 1.8)
    for (a, b), hue in zip(cut, hues, strict=True):
        x = (x_of[a] + x_of[b - 1] + w) / 2
        out += [Line(((x, 157), (x, 202)), hue, 2.2, dashed=True)]
    out.append(note(300, 278, "along a row: activations forward, their gradients back, for each micro-batch"))
    out.append(note(300, 296, "down a column (dashed): weights' gradients, once a step"))
    said = (
        "Twelve layers cut into stages of four, three and five; each of two replicas holds all three stages."
    )
    return Picture(WIDTH, 306, "Layers, stages, replicas", said, tuple(out))


def transaction() -> Picture:
    """A step from its grant to its commit."""
    x_c, xs, out = 90.0, (270.0, 400.0, 530.0), []
    out += box(20, 6, 140, 32, "coordinator")
    for k, x in enumerate(xs):
        out += box(x - 55, 6, 110, 32, f"rank {k}")
        out.append(Line(((x, 40), (x, 382)), "line", 2))
    out.append(Line(((x_c, 40), (x_c, 382)), "line", 2))
    for x in xs:
        out += arrow((x_c, 56), (x - 4, 76), "soft", 1.4)
    out.append(Text(x_c - 6, 60, "run", "end", size=PX, bold=True))
    for x, (end, hue) in zip(xs, ((150, "hue5"), (162, "hue5"), (170, "hue5")), strict=True):
        out.append(Rect(x - 46, 80, 92, end - 80, hue, radius=4))
        out.append(Text(x, 108, "forwards,", "middle", "on", 12.5))
        out.append(Text(x, 124, "backwards", "middle", "on", 12.5))
    for x in xs:
        out.append(Rect(x - 46, 176, 92, 26, "hue4", radius=4))
        out.append(Text(x, 194, "reduce", "middle", "on", 12.5))
    for k, x in enumerate(xs):
        out += arrow((x, 206), (x_c + 4, 226 + 9 * k), "hue0", 1.8)
    out.append(Text(x_c + 72, 214, "votes: loss, norm", "middle", size=12.5, halo=True))
    out += box(16, 254, 148, 44, "all in, all sound", "the step is written down", fill="paper")
    for x in xs:
        out += arrow((166, 284), (x - 2, 312), "hue2", 1.8)
    out.append(Text(x_c, 320, "commit, with the norm", "middle", size=12.5, halo=True))
    for x in xs:
        out.append(Rect(x - 46, 316, 92, 30, "hue3", radius=4))
        out.append(Text(x, 335, "optimizer", "middle", "on", 12.5))
    out.append(Line(((206, 252), (590, 252)), "alarm", 1.5, dashed=True))
    out.append(Text(590, 246, "before this line a fault forgets the step", "end", "alarm", 12.5, halo=True))
    out.append(Text(590, 268, "after it everybody who lives has done it", "end", "alarm", 12.5, halo=True))
    out.append(Text(x_c, 372, "next step", "middle", "soft", 12.5, halo=True))
    said = "Ranks compute, reduce and vote; with all votes in, the step is written down; then all step."
    return Picture(WIDTH, 388, "The life of a step", said, tuple(out))


def acsgd() -> Picture:
    """The buffers at both ends of a boundary."""
    out: list[Shape] = []
    for x, who in ((8.0, "sender: stage s"), (402.0, "receiver: stage s + 1")):
        out.append(Rect(x, 8, 190, 232, "land", "line", 8))
        out.append(Text(x + 95, 28, who, "middle", size=PX, bold=True))
    out += box(24, 40, 158, 34, "a: the activation", fill="paper")
    for x in (24.0, 418.0):
        out.append(Text(x, 104, "m, a buffer a sample", size=12.5, ink="soft"))
        for k, sample in enumerate(("sample 17", "sample 18", "sample 19")):
            fill, ink = ("hue2", "on") if k == 1 else ("paper", "ink")
            out.append(Rect(x, 112 + 26 * k, 158, 22, fill, "line", 3))
            out.append(Text(x + 79, 127 + 26 * k, sample, "middle", ink, 12.5, bold=k == 1))
        out.append(Text(x + 79, 212, "m ← m + sent", "middle", size=PX, bold=True))
        out.append(Text(x + 79, 230, "version: a hash of all", "middle", "soft", 12))
    out += arrow((200, 58), (400, 58), "hue0", 5)
    out.append(Text(300, 46, "first visit: a, whole", "middle", size=12.5))
    out += arrow((200, 150), (400, 150), "hue1", 1.6)
    out.append(Text(300, 138, "later: Q(a − m), few bits", "middle", size=12.5))
    out.append(Text(300, 170, "and the version it changes", "middle", "soft", 12))
    out += arrow((400, 206), (200, 206), "alarm", 1.4, dashed=True)
    out.append(Text(300, 198, "does not fit: send it whole", "middle", "alarm", 12.5))
    out += box(418, 40, 158, 34, "goes on with m", fill="paper")
    said = "Both ends hold a buffer for every sample: the first visit fills it, later visits send its change."
    return Picture(WIDTH, 248, "AC-SGD's buffers", said, tuple(out))


def timeline() -> Picture:
    """A step as the engine plays it: four stages in four cities, eight micro-batches."""
    job = preset_job("gpt2-xl", sequence_length=1024, global_batch=8)
    model = job.model.model_copy(update={"tied": False})  # a tied head would be one long reduction
    job = job.model_copy(update={"model": model, "parallelism": ParallelismSpec(stages=4)})
    found = plan(job, open_network(trace="four_cities", gpu="t4"), evaluations=4500)
    names = [f"{k}: {name}" for k, name in enumerate(found.plan.devices)]
    title = "A step of GPT-2 XL over four cities, as predicted"
    return gantt(found.timeline, names, title, found.timeline.duration_s, 640.0)


if __name__ == "__main__":
    for draw in (parts, stages, transaction, acsgd, timeline):
        save(HERE / f"{draw.__name__}.svg", draw())
