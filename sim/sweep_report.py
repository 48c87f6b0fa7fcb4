"""A sweep's results as a report: its settings side by side, the fastest first. Reads no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scheduler.units import count, duration
from sim.pictures import Bar
from sim.report import Contents, Table

MOST_BARS = 24


def contents(title: str, lines: Sequence[Mapping[str, Any]]) -> Contents:
    """`lines` as the results file has them: settings with a result, or with the error that was in its way."""
    done = sorted((x for x in lines if "result" in x), key=_rank)
    varied = _varied(lines)
    rows = tuple(_row(x, varied) for x in done)
    failed = tuple(f"{_name(x, varied)}: {x['error']}" for x in lines if "error" in x)
    bars = tuple(
        Bar(_name(x, varied), (("median step", x["result"]["median_step_s"]),))
        for x in done
        if x["result"]["median_step_s"] is not None
    )
    return Contents(
        title=title,
        subtitle=f"{count(len(lines), 'simulation')}, {len(done)} with a result.",
        figures=tuple((f"{word}, {b.label}", duration(b.total)) for word, b in _ends(bars)),
        compared=bars[:MOST_BARS],
        compared_title="Median step, the fastest runs" if len(bars) > MOST_BARS else "Median step",
        tables=(Table("Side by side", (*varied, *_HEAD), rows),),
        reasons=failed,
        reasons_heading="Without a result",
    )


_HEAD = ("median step", "whole run", "tokens/s", "between regions, GB", "cost")


def _rank(line: Mapping[str, Any]) -> float:
    """Runs that did not come to a step stand last."""
    step_s = line["result"]["median_step_s"]
    return float("inf") if step_s is None else float(step_s)


def _ends(bars: Sequence[Bar]) -> list[tuple[str, Bar]]:
    return [("fastest", bars[0]), ("slowest", bars[-1])] if len(bars) > 1 else [("run", b) for b in bars]


def _varied(lines: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The settings that are not the same in all lines, in the order in which they are first named."""
    names = dict.fromkeys(name for x in lines for name in x["settings"])
    return tuple(n for n in names if len({_shown(x["settings"].get(n)) for x in lines}) > 1)


def _shown(value: object) -> str:
    return "-" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _name(line: Mapping[str, Any], varied: Sequence[str]) -> str:
    return ", ".join(_shown(line["settings"].get(n)) for n in varied) or "all settings"


def _row(line: Mapping[str, Any], varied: Sequence[str]) -> tuple[str, ...]:
    r = line["result"]
    step_s, money = r["median_step_s"], r["money"]
    return (
        *(_shown(line["settings"].get(n)) for n in varied),
        "-" if step_s is None else duration(step_s),
        duration(r["total_s"]),
        f"{r['tokens_per_s']:,.0f}",
        f"{sum(r['egress_bytes'].values()) / 1e9:.1f}",
        "-" if money is None else f"{money:,.2f} {r['currency']}",
    )
