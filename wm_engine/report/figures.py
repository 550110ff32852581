"""The report's plots: numbers in, a matplotlib figure out, in a light and in a dark theme.

Figures are made as objects and drawn by Agg: no display, and nothing of pyplot's global state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from wm_engine.fidelity import AROUND_BEST, EARLIER, RANDOM
from wm_engine.runs import atomic_write

_DPI = 144


@dataclass(frozen=True)
class Theme:
    """Colours of one theme; ``accents`` tell series apart and stay apart for colour-blind eyes."""

    surface: str
    ink: str
    muted: str
    grid: str
    accents: tuple[str, ...]


LIGHT = Theme("#ffffff", "#1f2430", "#6b7280", "#e5e7eb", ("#2563eb", "#d97706", "#0d9488", "#9333ea"))
DARK = Theme("#171b22", "#e6e8ec", "#9aa3b2", "#2b313c", ("#6ea8fe", "#f5b04c", "#4fd1c0", "#c297f7"))

Draw = Callable[[Theme], Figure]


def _floats(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Numbers as an array, NaN where there is none: JSON has null for what is not finite, and lines have gaps."""
    return np.array(values, dtype=np.float64)


def save(draw: Draw, folder: Path, name: str) -> str:
    """Write ``NAME.png`` and ``NAME-dark.png`` into ``folder``; returns ``name``."""
    for theme, suffix in ((LIGHT, ""), (DARK, "-dark")):
        figure = draw(theme)
        with atomic_write(folder / f"{name}{suffix}.png") as file:
            figure.savefig(file, format="png", dpi=_DPI, facecolor=theme.surface)
    return name


def new_axes(
    theme: Theme, count: int = 1, width: float = 7.2, height: float = 2.9, stacked: bool = False
) -> tuple[Figure, Any]:
    """A figure of ``count`` panels side by side, or one under the other, inches each way, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(*((count, 1) if stacked else (1, count)), squeeze=False).ravel()
    for panel in panels:
        panel.set_facecolor(theme.surface)
        panel.grid(True, color=theme.grid, linewidth=0.8)
        panel.set_axisbelow(True)
        panel.tick_params(colors=theme.muted, labelsize=8, length=0)
        for side, spine in panel.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(theme.grid)
    return figure, panels


def label(axes: Axes, theme: Theme, *, x: str = "", y: str = "", title: str = "") -> None:
    """Name an axes' x and y, and give it a title."""
    axes.set_xlabel(x, color=theme.muted, fontsize=8)
    axes.set_ylabel(y, color=theme.muted, fontsize=8)
    axes.set_title(title, color=theme.ink, fontsize=9, loc="left")


def legend(axes: Axes, theme: Theme, **options: Any) -> None:
    """A legend where anything has a name."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, labelcolor=theme.ink, **options)


def curves(panels: Sequence[tuple[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]], x: str) -> Draw:
    """Panels side by side, each a title and its lines by name: (steps, values)."""

    def draw(theme: Theme) -> Figure:
        figure, axes = new_axes(theme, len(panels))
        for panel, (title, lines) in zip(axes, panels, strict=True):
            for accent, (name, (steps, values)) in zip(theme.accents, lines.items(), strict=False):
                few = {"marker": "o", "markersize": 3} if len(steps) < 12 else {}
                panel.plot(steps, values, color=accent, linewidth=1.6, label=name, **few)
            panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            label(panel, theme, x=x, title=title)
            legend(panel, theme)
        return figure

    return draw


def evolution(phases: Mapping[str, Sequence[Mapping[str, float | None]]]) -> Draw:
    """A panel for each phase: mean return of the candidates, their spread, and the best, generation by generation."""

    def draw(theme: Theme) -> Figure:
        figure, axes = new_axes(theme, len(phases))
        for panel, (name, rows) in zip(axes, phases.items(), strict=True):
            columns = ("step", "mean", "std", "best")
            steps, mean, std, best = (_floats([row[key] for row in rows]) for key in columns)
            panel.fill_between(steps, mean - std, mean + std, color=theme.accents[0], alpha=0.2, linewidth=0)
            panel.plot(steps, mean, color=theme.accents[0], linewidth=1.8, label="mean ± spread")
            panel.plot(steps, best, color=theme.accents[1], linewidth=1.0, label="best candidate")
            panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            label(panel, theme, x="generation", y="return", title=name)
            legend(panel, theme, loc="lower right")
        return figure

    return draw


def returns(scores: Mapping[str, Sequence[float]]) -> Draw:
    """Every episode's return as a dot, a row for each policy, the mean as a bar with one standard deviation."""

    def draw(theme: Theme) -> Figure:
        figure, (panel,) = new_axes(theme, width=5.2, height=0.9 + 0.65 * len(scores))
        generator = np.random.default_rng(0)
        rows = list(scores.items())
        for row, (accent, (_, values)) in enumerate(zip(theme.accents, rows, strict=False)):
            height = len(rows) - 1 - row
            jitter = generator.uniform(-0.22, 0.22, len(values))
            panel.scatter(values, height + jitter, s=14, color=accent, alpha=0.55, linewidths=0)
            mean, std = float(np.mean(values)), float(np.std(values))
            panel.errorbar(mean, height, xerr=std, color=theme.ink, linewidth=1.4, capsize=3, marker="D", markersize=5)
        panel.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)], color=theme.ink)
        panel.set_ylim(-0.5, len(rows) - 0.5)
        label(panel, theme, x="return of an episode (diamond: mean; bar: standard deviation)")
        return figure

    return draw


def bars(values: Mapping[str, float | None], x: str, best_is_low: bool = True) -> Draw:
    """Horizontal bars, the first one in the accent colour, the others, its baselines, muted."""

    def draw(theme: Theme) -> Figure:
        figure, (panel,) = new_axes(theme, width=5.2, height=0.7 + 0.45 * len(values))
        names = list(values)[::-1]
        colours = [theme.accents[0] if name == next(iter(values)) else theme.muted for name in names]
        drawn = panel.barh(names, _floats([values[name] for name in names]), color=colours, height=0.6)
        panel.bar_label(drawn, fmt="%.3f", color=theme.ink, fontsize=8, padding=3)
        panel.margins(x=0.18)
        panel.tick_params(axis="y", labelcolor=theme.ink)
        panel.axvline(0.0, color=theme.muted, linewidth=0.8)
        label(panel, theme, x=f"{x} ({'less' if best_is_low else 'more'} is better)")
        return figure

    return draw


def calibration(predicted: Sequence[float], realised: Sequence[float], title: str) -> Draw:
    """Mean realised against mean predicted value of equally many steps each, beside the diagonal."""

    def draw(theme: Theme) -> Figure:
        figure, (panel,) = new_axes(theme, width=4.0, height=3.2)
        ends = [min(*predicted, *realised), max(*predicted, *realised)]
        panel.plot(ends, ends, color=theme.muted, linewidth=1.0, linestyle="--", label="perfect")
        panel.plot(predicted, realised, color=theme.accents[0], marker="o", markersize=4, linewidth=1.2, label="M")
        label(panel, theme, x="predicted reward", y="realised reward", title=title)
        legend(panel, theme, loc="upper left")
        return figure

    return draw


def horizon(horizons: Sequence[int], errors: Mapping[str, Sequence[float | None]]) -> Draw:
    """Error of a dream with the recorded actions against how far ahead it is; baselines dashed."""

    def draw(theme: Theme) -> Figure:
        figure, (panel,) = new_axes(theme, width=4.6, height=3.2)
        colours = iter((*theme.accents, theme.muted))
        for index, (name, values) in enumerate(errors.items()):
            baseline = index >= 2
            colour = theme.muted if baseline else next(colours)
            style = ("--", ":")[index % 2] if baseline else "-"
            panel.plot(horizons, _floats(values), color=colour, linestyle=style, linewidth=1.4, label=name)
        panel.set_ylim(bottom=0.0)
        label(panel, theme, x="steps ahead", y="RMSE of a latent dimension")
        legend(panel, theme)
        return figure

    return draw


def dream_against_real(
    dream: Sequence[float | None], real: Sequence[float | None], labels: Sequence[str], rho: float | None
) -> Draw:
    """One dot a controller: its return in the dream across, in the real environment up; groups by colour."""

    def draw(theme: Theme) -> Figure:
        figure, (panel,) = new_axes(theme, width=5.2, height=3.6)
        markers = {RANDOM: "o", AROUND_BEST: "^", EARLIER: "s"}
        for accent, (group, marker) in zip(theme.accents, markers.items(), strict=False):
            dots = [
                (x, y) for x, y, label in zip(dream, real, labels, strict=True) if label == group and None not in (x, y)
            ]
            if dots:
                panel.scatter(
                    *zip(*dots, strict=True), s=26, marker=marker, color=accent, alpha=0.8, linewidths=0, label=group
                )
        label(
            panel,
            theme,
            x="mean return in the dream",
            y="mean return in the real environment",
            title="ρ undefined: one of the two orders is all ties"
            if rho is None or math.isnan(rho)
            else f"ρ = {rho:.2f}",
        )
        legend(panel, theme)
        return figure

    return draw


def rounds(indices: Iterable[int], means: Sequence[float], errors: Sequence[float], random_mean: float | None) -> Draw:
    """The real score after each round, with its standard error, beside the random policy's."""

    def draw(theme: Theme) -> Figure:
        figure, (panel,) = new_axes(theme, width=5.2, height=2.8)
        positions = list(indices)
        panel.errorbar(
            positions,
            means,
            yerr=errors,
            color=theme.accents[0],
            marker="o",
            markersize=5,
            capsize=3,
            label="controller",
        )
        if random_mean is not None:
            panel.axhline(random_mean, color=theme.muted, linestyle="--", linewidth=1.0, label="random policy")
        panel.set_xticks(positions)
        label(panel, theme, x="round", y="mean real return")
        legend(panel, theme)
        return figure

    return draw
