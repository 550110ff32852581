"""PNGs of measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from wm_engine.files import atomic_write
from wm_engine.report.figures import LIGHT, label, legend, new_axes

from .dreams import Entry
from .history import Line
from .roofs import Roofs

_MOST_TICKS = 12
_LINES = ("-", "--", "-.", ":")
_AROUND = ((7, 7), (-14, 7), (7, -13), (-14, -13))


def population_plot(entries: Sequence[Entry]) -> Figure:
    """Dream steps a second against the number of rollouts dreamt at once: the ceiling dotted."""
    figure, (panel,) = new_axes(LIGHT, width=7.2, height=4.2)
    best = {e.name: max(o.steps_per_second or 0.0 for o in entries if o.name == e.name) for e in entries}
    names = sorted(best, key=lambda name: -best[name])
    for index, name in enumerate(names):
        mine = sorted((e for e in entries if e.name == name and e.steps_per_second), key=lambda e: e.workload.rollouts)
        if not mine:
            continue
        rollouts = [entry.workload.rollouts for entry in mine]
        rates = [entry.steps_per_second or 0.0 for entry in mine]
        below = [rate - (entry.p20 or rate) for rate, entry in zip(rates, mine, strict=True)]
        above = [(entry.p80 or rate) - rate for rate, entry in zip(rates, mine, strict=True)]
        style = ":" if mine[0].kind == "ceiling" else _LINES[index // len(LIGHT.accents) % 3]
        colour = LIGHT.muted if mine[0].kind == "ceiling" else LIGHT.accents[index % len(LIGHT.accents)]
        panel.errorbar(
            rollouts, rates, yerr=[below, above], marker="o", markersize=4, linestyle=style, color=colour, label=name
        )
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    sizes = sorted({entry.workload.rollouts for entry in entries})
    panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
    label(panel, LIGHT, x="rollouts dreamt at once, P·E", y="dream steps/s (bars: p20 to p80)")
    legend(panel, LIGHT, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def history_plot(found: Mapping[str, Mapping[str, Line]]) -> Figure:
    """A panel a workload and machine, one under the other; in each a line a rival, the fastest first in the legend."""
    figure, panels = new_axes(LIGHT, rows=len(found), width=9.6, height=3.9 * len(found))
    for panel, (work, lines) in zip(panels, found.items(), strict=True):
        ticks = sorted({when for line in lines.values() for when in line.rates})
        for index, (name, line) in enumerate(lines.items()):
            ceiling = line.kind == "ceiling"
            panel.plot(
                [ticks.index(when) for when in line.rates],
                list(line.rates.values()),
                marker="o",
                markersize=4,
                linestyle=":" if ceiling else _LINES[index // len(LIGHT.accents) % 3],
                color=LIGHT.muted if ceiling else LIGHT.accents[index % len(LIGHT.accents)],
                label=name,
            )
        named = range(0, len(ticks), math.ceil(len(ticks) / _MOST_TICKS))
        panel.set_xticks(named, [ticks[place] for place in named], rotation=20, ha="right")
        panel.set_xlim(-0.5, len(ticks) - 0.5)
        panel.set_yscale("log")
        label(panel, LIGHT, y="dream steps/s", title=work)
        legend(panel, LIGHT, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def roofline_plot(
    points: Mapping[str, tuple[float, float, float]], roofs: Roofs, title: str, numbered: bool = False
) -> Figure:
    """Phases as dots, (flops a byte, GFLOP/s, share of the time) each, sized by share, under the measured roofs.

    numbered : names begin with a number; it alone stands at the dot, and the names beside the plot
    """
    figure, (panel,) = new_axes(LIGHT, width=9.6 if numbered else 7.2, height=4.6)
    intensities = [point[0] for point in points.values()] or [1.0]
    low, high = min(intensities) / 4, max(intensities) * 8
    edges = np.geomspace(low, high, 200)
    peak = roofs.flops or float("inf")
    bandwidths = {"memory": roofs.memory} | ({"a core's cache": roofs.cache} if roofs.cache else {})
    for style, (name, bandwidth) in zip(_LINES, bandwidths.items(), strict=False):
        heights = np.minimum(edges * bandwidth, peak) / 1e9
        panel.plot(edges, heights, color=LIGHT.muted, linestyle=style, label=f"{name}: {bandwidth / 1e9:,.0f} GB/s")
    if roofs.flops:
        panel.axhline(peak / 1e9, color=LIGHT.ink, linewidth=1.0, label=f"peak: {peak / 1e9:,.0f} GFLOP/s")
    for index, (name, (intensity, gflops, share)) in enumerate(points.items()):
        colour = LIGHT.accents[index % len(LIGHT.accents)]
        panel.scatter([intensity], [gflops], s=30 + 400 * share, color=colour, alpha=0.85, zorder=3)
        text, offset, ink = f"{name}, {100 * share:.0f} %", (7, 7), LIGHT.ink
        if numbered:
            panel.scatter([], [], s=30, color=colour, label=text)
            # Around the dot, since dots may be one upon another.
            text, offset, ink = name.split()[0], _AROUND[index % len(_AROUND)], colour
        panel.annotate(text, (intensity, gflops), offset, textcoords="offset points", fontsize=8, color=ink)
    panel.set_xscale("log")
    panel.set_yscale("log")
    label(panel, LIGHT, x="flops a byte", y="GFLOP/s (dots: share of the time)", title=title)
    where = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if numbered else {"loc": "lower right"}
    legend(panel, LIGHT, **where)
    return figure


def write(figure: Any, path: Path) -> None:
    """Write a PNG atomically."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=144)
