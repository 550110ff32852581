"""The report's plots: the run's record in, a matplotlib figure out, in a light and in a dark theme.

What is real is drawn in the first accent, what is dreamt in the second. Figures are made as objects and drawn by Agg:
no display, and nothing of pyplot's global state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from wm_engine.files import atomic_write
from wm_engine.judge.dream_real_correlation import AROUND_BEST, EARLIER, RANDOM

_DPI = 144
_A_ROW = 3
_MOST_PANELS = 6
_FEW = 12
_BASELINE_STYLES = (":", "-.", (0, (6, 2, 1, 2)), (0, (1, 4)))

Rows = Sequence[Mapping[str, Any]]
Line = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Theme:
    """Colours of one theme; ``accents`` tell series apart and stay apart for colour-blind eyes."""

    surface: str
    ink: str
    muted: str
    grid: str
    accents: tuple[str, ...]

    @property
    def real(self) -> str:
        """Of what happened in the real environment."""
        return self.accents[0]

    @property
    def dream(self) -> str:
        """Of what was dreamt."""
        return self.accents[1]


LIGHT = Theme("#ffffff", "#1f2430", "#6b7280", "#e5e7eb", ("#2563eb", "#d97706", "#0d9488", "#9333ea", "#be185d"))
DARK = Theme("#171b22", "#e6e8ec", "#9aa3b2", "#2b313c", ("#6ea8fe", "#f5b04c", "#4fd1c0", "#c297f7", "#f472b6"))

Draw = Callable[[Theme], Figure]


@dataclass(frozen=True)
class FinalScore:
    """The published policy's score: after how many real frames, its mean, standard error and number of episodes."""

    frames: float
    mean: float
    standard_error: float
    episodes: int


def save(draw: Draw, folder: Path, name: str) -> str:
    """Write ``NAME.png`` and ``NAME-dark.png`` into ``folder``; returns ``name``."""
    for theme, suffix in ((LIGHT, ""), (DARK, "-dark")):
        figure = draw(theme)
        with atomic_write(folder / f"{name}{suffix}.png") as file:
            figure.savefig(file, format="png", dpi=_DPI, facecolor=theme.surface)
    return name


def new_axes(
    theme: Theme, columns: int = 1, width: float = 7.2, height: float = 2.9, rows: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """Make a figure of ``rows`` x ``columns`` panels, ``width`` x ``height`` inches, and return it with its axes.

    ``options`` are those of matplotlib's ``Figure.subplots``.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, **options).ravel()
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
    """Add a legend where anything has a name."""
    if axes.get_legend_handles_labels()[0]:
        looks = {"facecolor": theme.surface, "edgecolor": "none", "framealpha": 0.85, "labelcolor": theme.ink}
        axes.legend(fontsize=8, **looks, **options)


def column(rows: Rows, key: str) -> NDArray[np.float64]:
    """Take one number of every row, NaN where it is missing or was not finite: lines have gaps there."""
    return np.array([row.get(key) for row in rows], dtype=np.float64)


def of_stage(rows: Rows, stage: str) -> list[Mapping[str, Any]]:
    """Choose the rows of a stage, by round and step."""
    return sorted((row for row in rows if row["stage"] == stage), key=lambda row: (row["round"], row["step"]))


def frames_by_round(rows: Rows) -> dict[int, float]:
    """Return after how many real frames each round learnt, of the rounds that have driven."""
    known = (row for stage in ("round", "judge", "drive") for row in of_stage(rows, stage))
    return {row["round"]: row["learning_frames"] for row in known if row.get("learning_frames") is not None}


def road_and_promise(
    rows: Rows,
    *,
    horizon: int | None = None,
    random: float | None = None,
    baselines: Mapping[str, float] | None = None,
    final: FinalScore | None = None,
) -> Draw:
    """Draw the real score above and the dream's promise below, both over the real frames learnt from.

    Above: the judged score with its standard error, and the mean and best return of the candidates that were driven.
    Below: what the dream promised of ``horizon`` decisions of these candidates, and what the real environment paid over
    the same decisions; left out where no round has been forecast.

    Parameters
    ----------
    rows : of a run's ``metrics.jsonl``
    horizon : decisions, named in the title
    random : the random policy's score; baselines : the task's own, by name
    final : the published policy's score

    Raises ValueError where no round has been driven by a candidate, and none judged.
    """
    frames = frames_by_round(rows)
    judged, driven, forecast = (
        [row for row in of_stage(rows, stage) if row["round"] in frames] for stage in ("judge", "drive", "forecast")
    )
    forecast = [row for row in forecast if row.get("promised") is not None]
    if not judged and not driven:
        raise ValueError("no candidate has been driven yet, and no round judged")
    ahead = f"the next {horizon} decisions" if horizon else "the decisions to come"

    def at(some: Rows) -> NDArray[np.float64]:
        return np.array([frames[row["round"]] for row in some])

    def draw(theme: Theme) -> Figure:
        options: dict[str, Any] = {"sharex": True, "height_ratios": (3, 2)} if forecast else {}
        figure, panels = new_axes(theme, width=8.8, height=5.6 if forecast else 3.6, rows=1 + bool(forecast), **options)
        above = panels[0]
        if random is not None:
            above.axhline(random, color=theme.muted, linestyle="--", linewidth=1.0, label="random policy")
        for number, (name, mean) in enumerate((baselines or {}).items()):
            style = _BASELINE_STYLES[number % len(_BASELINE_STYLES)]
            above.axhline(mean, color=theme.muted, linestyle=style, linewidth=1.0, label=name)
        x, best = at(driven), column(driven, "return_best")
        above.plot(x, best, color=theme.real, alpha=0.45, linewidth=0, marker=".", label="best candidate driven")
        line = {"color": theme.real, "alpha": 0.55, "linewidth": 1.2, **_marked(len(x))}
        above.plot(x, column(driven, "return_mean"), label="mean of the candidates, exploring", **line)
        scores = {"capsize": 3, "markersize": 5, "linewidth": 2.0, "label": "judged score ± standard error"}
        if judged:
            error = column(judged, "standard_error")
            above.errorbar(at(judged), column(judged, "mean"), yerr=error, color=theme.real, marker="o", **scores)
        if final is not None:
            above.errorbar(
                [final.frames], [final.mean], yerr=[final.standard_error], color=theme.ink, marker="*", markersize=12,
                capsize=3, label=f"published: {final.mean:.0f} over {final.episodes} episodes", zorder=4,
            )  # fmt: skip
        label(above, theme, y="real return", title="In the real environment: the score")
        legend(above, theme, loc="best")
        if forecast:
            below, x = panels[1], at(forecast)
            promised, paid = column(forecast, "promised"), column(forecast, "paid")
            below.fill_between(x, promised, paid, color=theme.dream, alpha=0.14, linewidth=0)
            below.plot(x, promised, color=theme.dream, linewidth=1.8, label="the dream promised", **_marked(len(x)))
            below.plot(x, paid, color=theme.real, linewidth=1.8, label="it was paid", **_marked(len(x)))
            label(
                below,
                theme,
                y="return",
                title=f"In the dream: what it promised of {ahead}, and what they paid for real",
            )
            legend(below, theme, loc="best")
        panels[-1].set_xlabel("real frames learnt from", color=theme.muted, fontsize=8)
        panels[-1].xaxis.set_major_formatter(EngFormatter(sep=" "))
        return figure

    return draw


def _marked(points: int) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3} if points < _FEW else {}


def calibration_by_horizon(rows: Rows, rounds: int = 4) -> Draw:
    """Draw what the dream promised and what was paid over growing horizons, of the last ``rounds`` rounds that have it.

    Left: the newest of them. Right: promise against payment, a line a round; on the diagonal the dream keeps its word.
    ValueError where no round has been held to its promise.
    """
    by_round: dict[int, list[Mapping[str, Any]]] = {}
    for row in of_stage(rows, "calibration"):
        by_round.setdefault(row["round"], []).append(row)
    late = list(by_round.items())[-rounds:]
    if not late:
        raise ValueError("no round's dream has been held to what was paid yet")

    def draw(theme: Theme) -> Figure:
        figure, (left, right) = new_axes(theme, 2, width=8.8, height=3.4)
        newest, points = late[-1]
        for key, name, colour in (("promised", "promised", theme.dream), ("paid", "paid", theme.real)):
            left.plot(column(points, "step"), column(points, key), color=colour, marker="o", markersize=3, label=name)
        label(left, theme, x="decisions ahead", y="return", title=f"round {newest}")
        legend(left, theme)
        ends = [column(points, key) for _, points in late for key in ("promised", "paid")]
        bounds = [float(np.nanmin(np.concatenate(ends))), float(np.nanmax(np.concatenate(ends)))]
        right.plot(bounds, bounds, color=theme.muted, linestyle="--", linewidth=1.0, label="promise kept")
        for place, (index, points) in enumerate(late, start=1):
            line = {"color": theme.dream, "alpha": place / len(late), "marker": "o", "markersize": 3}
            right.plot(column(points, "paid"), column(points, "promised"), label=f"round {index}", **line)
        label(right, theme, x="paid", y="promised", title="growing horizons; above the diagonal: promised too much")
        legend(right, theme)
        return figure

    return draw


def learning_panels(rows: Rows, stage: str) -> dict[str, dict[str, Line]]:
    """Collect what a stage recorded round by round: for each number its lines (rounds, values) by name.

    A number X is measured in training as ``X``, on held-out episodes as ``held_out_X`` and on new ones, before anything
    learnt them, as the forecast's ``new_X``; whatever a kind of model calls its numbers. Those that are measured most
    often come first.
    """
    places = {"training": "", "held out": "held_out_", "new": "new_"}
    own, forecast = of_stage(rows, stage), of_stage(rows, "forecast")
    keys = dict.fromkeys(key for row in own for key in row if key not in ("stage", "round", "step", "time"))
    panels: dict[str, dict[str, Line]] = {}
    for base in dict.fromkeys(key.removeprefix("held_out_") for key in keys):
        for name, prefix in places.items():
            found = forecast if name == "new" else own
            line = _line(found, "round", prefix + base)
            if line[0]:
                panels.setdefault(base.replace("_r2", " R²").replace("_", " "), {})[name] = line
    return dict(sorted(panels.items(), key=lambda panel: -len(panel[1]))[:_MOST_PANELS])


def _line(rows: Rows, x: str, y: str) -> tuple[list[float], list[float]]:
    kept = [row for row in rows if row.get(y) is not None]
    return [row[x] for row in kept], [row[y] for row in kept]


def curves(panels: Mapping[str, Mapping[str, Line]], x: str) -> Draw:
    """Draw panels by title, each with its lines (x, y) by name."""
    high = max(1, math.ceil(len(panels) / _A_ROW))
    columns = max(1, math.ceil(len(panels) / high))

    def draw(theme: Theme) -> Figure:
        figure, axes = new_axes(theme, columns, width=8.8, height=2.5 * high, rows=high)
        for panel, (title, lines) in zip(axes, panels.items(), strict=False):
            for accent, (name, (steps, values)) in zip(theme.accents, lines.items(), strict=False):
                panel.plot(steps, values, color=accent, linewidth=1.6, label=name, **_marked(len(steps)))
            panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            label(panel, theme, x=x, title=title)
            legend(panel, theme)
        for panel in axes[len(panels) :]:
            panel.set_axis_off()
        return figure

    return draw


def evolution(rows: Rows) -> Draw:
    """Draw the returns of a learner's candidates, generation by generation over all rounds, and its step size."""
    steps, mean, std, best = (column(rows, key) for key in ("step", "mean", "std", "best"))
    begins = [row["step"] for before, row in pairwise(rows) if row["round"] != before["round"]]

    def draw(theme: Theme) -> Figure:
        figure, (left, right) = new_axes(theme, 2, width=8.8, height=3.0, width_ratios=(2, 1))
        left.fill_between(steps, mean - std, mean + std, color=theme.dream, alpha=0.25, linewidth=0)
        left.plot(steps, mean, color=theme.dream, linewidth=1.6, label="mean ± spread of the candidates")
        left.plot(steps, best, color=theme.accents[2], linewidth=0.9, label="best candidate")
        for begin in begins:
            left.axvline(begin, color=theme.muted, linewidth=0.6, linestyle=":", alpha=0.6)
        right.plot(steps, column(rows, "sigma"), color=theme.accents[3], linewidth=1.6)
        for panel, title in ((left, "return (dotted: a round begins)"), (right, "step size σ")):
            panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            label(panel, theme, x="generation", title=title)
        legend(left, theme, loc="best")
        return figure

    return draw


def returns(scores: Mapping[str, Sequence[float]]) -> Draw:
    """Draw every episode's return as a dot, a row for each policy, the mean as a bar with one standard deviation."""

    def draw(theme: Theme) -> Figure:
        figure, (panel,) = new_axes(theme, width=5.2, height=0.9 + 0.65 * len(scores))
        generator = np.random.default_rng(0)
        colours = (theme.real, theme.muted)
        for row, (name, values) in enumerate(scores.items()):
            colour, height = colours[min(row, 1)], len(scores) - 1 - row
            jitter = generator.uniform(-0.22, 0.22, len(values))
            panel.scatter(values, height + jitter, s=14, color=colour, alpha=0.55, linewidths=0, label=name)
            mean, std = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            panel.errorbar(mean, height, xerr=std, color=theme.ink, linewidth=1.4, capsize=3, marker="D", markersize=5)
        panel.set_yticks(range(len(scores)), list(scores)[::-1], color=theme.ink)
        panel.set_ylim(-0.5, len(scores) - 0.5)
        label(panel, theme, x="return of an episode (diamond: mean; bar: standard deviation)")
        return figure

    return draw


def bars(values: Mapping[str, float | None], x: str) -> Draw:
    """Draw horizontal bars, the first one in the dream's colour, the others, its baselines, muted."""

    def draw(theme: Theme) -> Figure:
        figure, (panel,) = new_axes(theme, width=5.2, height=0.7 + 0.45 * len(values))
        names = list(values)[::-1]
        colours = [theme.dream if name == next(iter(values)) else theme.muted for name in names]
        drawn = panel.barh(names, np.array([values[name] for name in names], np.float64), color=colours, height=0.6)
        panel.bar_label(drawn, fmt="%.3f", color=theme.ink, fontsize=8, padding=3)
        panel.margins(x=0.18)
        panel.tick_params(axis="y", labelcolor=theme.ink)
        panel.axvline(0.0, color=theme.muted, linewidth=0.8)
        label(panel, theme, x=f"{x} (less is better)")
        return figure

    return draw


def reward_calibration(predicted: Sequence[float], realised: Sequence[float]) -> Draw:
    """Draw mean realised against mean predicted rewards of tenths of the steps, beside the diagonal."""

    def draw(theme: Theme) -> Figure:
        figure, (panel,) = new_axes(theme, width=4.4, height=3.2)
        bounds = [min(*predicted, *realised), max(*predicted, *realised)]
        panel.plot(bounds, bounds, color=theme.muted, linewidth=1.0, linestyle="--", label="perfect")
        panel.plot(predicted, realised, color=theme.dream, marker="o", markersize=4, linewidth=1.2, label="M")
        label(panel, theme, x="predicted reward", y="realised reward", title="tenths of the steps")
        legend(panel, theme, loc="upper left")
        return figure

    return draw


def open_loop(horizons: Sequence[int], errors: Mapping[str, Sequence[float | None]], baselines: int = 2) -> Draw:
    """Draw errors of dreams with the recorded actions against how far ahead; the last ``baselines`` muted."""

    def draw(theme: Theme) -> Figure:
        figure, (panel,) = new_axes(theme, width=4.6, height=3.2)
        for place, (name, values) in enumerate(errors.items()):
            below = place - (len(errors) - baselines)
            colour = theme.muted if below >= 0 else theme.accents[1 + place]
            style = ("--", ":")[below % 2] if below >= 0 else "-"
            panel.plot(horizons, np.array(values, np.float64), color=colour, linestyle=style, linewidth=1.4, label=name)
        panel.set_ylim(bottom=0.0)
        label(panel, theme, x="steps ahead", y="RMSE of a latent dimension")
        legend(panel, theme)
        return figure

    return draw


def dream_against_real(
    dream: Sequence[float | None], real: Sequence[float | None], groups: Sequence[str], rho: float | None
) -> Draw:
    """Draw one dot a controller: its return in the dream across, in the real environment up; groups by colour."""

    def draw(theme: Theme) -> Figure:
        figure, (panel,) = new_axes(theme, width=5.2, height=3.6)
        markers = {RANDOM: "o", AROUND_BEST: "^", EARLIER: "s"}
        for accent, (group, marker) in zip(theme.accents, markers.items(), strict=False):
            dots = [
                (x, y) for x, y, own in zip(dream, real, groups, strict=True) if own == group and None not in (x, y)
            ]
            if dots:
                looks = {"s": 26, "marker": marker, "color": accent, "alpha": 0.8, "linewidths": 0}
                panel.scatter(*zip(*dots, strict=True), label=group, **looks)
        tied = rho is None or math.isnan(rho)
        title = "ρ undefined: one of the two orders is all ties" if tied else f"ρ = {rho:.2f}"
        label(panel, theme, x="mean return in the dream", y="mean return in the real environment", title=title)
        legend(panel, theme)
        return figure

    return draw


def dimensions(ahead: NDArray[np.int64], lines: Mapping[str, NDArray[np.float64]], most: int = 3) -> Draw:
    """Draw the dimensions of vectors [T+1, D] by name that vary most in the first of them, a panel each.

    The first is the real episode, the others what models make of it; NaN where a dream has ended.
    """
    real = next(iter(lines.values()))
    chosen = np.argsort(-real.std(0), kind="stable")[:most]

    def draw(theme: Theme) -> Figure:
        figure, axes = new_axes(theme, len(chosen), width=8.8, height=2.5)
        for panel, dimension in zip(axes, chosen, strict=True):
            for accent, (name, values) in zip(theme.accents, lines.items(), strict=False):
                panel.plot(ahead, values[:, dimension], color=accent, linewidth=1.4, label=name)
            label(panel, theme, x="steps ahead", title=f"dimension {dimension}")
        legend(axes[0], theme)
        return figure

    return draw


def time_shares(rows: Rows) -> dict[str, NDArray[np.float64]]:
    """Return each step's share of its round's time, [rounds] by the step's name, the bookkeeping last."""
    rounds = of_stage(rows, "round")
    names = dict.fromkeys(key.removesuffix("_seconds") for row in rounds for key in row if key.endswith("_seconds"))
    seconds = {name: np.nan_to_num(column(rounds, f"{name}_seconds")) for name in names}
    whole = np.sum(list(seconds.values()), axis=0)
    shares = {
        name: np.divide(spent, whole, out=np.zeros(len(rounds)), where=whole > 0) for name, spent in seconds.items()
    }
    return dict(sorted(shares.items(), key=lambda share: share[0] == "bookkeeping"))


def times(rows: Rows) -> Draw:
    """Draw each step's share of its round's time, stacked, a bar a round. ValueError where no round has ended."""
    shares, rounds = time_shares(rows), [row["round"] for row in of_stage(rows, "round")]
    if not shares:
        raise ValueError("no round has ended yet")

    def draw(theme: Theme) -> Figure:
        figure, (panel,) = new_axes(theme, width=8.8, height=2.9)
        base = np.zeros(len(rounds))
        for place, (name, share) in enumerate(shares.items()):
            colour = theme.muted if name == "bookkeeping" else theme.accents[place % len(theme.accents)]
            panel.bar(rounds, share, bottom=base, color=colour, width=0.85, label=name)
            base = base + share
        panel.set_ylim(0.0, 1.0)
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        panel.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        label(panel, theme, x="round")
        legend(panel, theme, loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
        return figure

    return draw
