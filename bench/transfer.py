"""The study of transfer: which part makes a dream teach? ``python -m bench.transfer --out FOLDER``.

Each row changes one thing of a preset, in several variants with equal budgets, and trains each with several seeds. A
variant and a seed are a run folder like any other (``FOLDER/runs/``); one that several rows share is trained once.
Whatever was cut, by ``--budget`` or by a kill, goes on where it stopped when the same command is given again. The table
and the plot are made of the runs' ``metrics.jsonl`` alone, as far as they have come.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from matplotlib.figure import Figure

from wm_engine.errors import ConfigError, WMEngineError
from wm_engine.files import atomic_write, write_json, write_text
from wm_engine.recorder import read_metrics
from wm_engine.report.figures import LIGHT, label, legend, new_axes
from wm_engine.run.config import Config, resolve
from wm_engine.run.loop import run_loop
from wm_engine.run.state import LoopState
from wm_engine.run.steps import STEPS, Step

from .tables import aligned

# Nothing of this changes what is learnt: the scores are what counts here.
_PLAIN = ("estimate=false", "evaluate.film=false", "judge.controllers=0")
# Quantiles of Student's t for 95 % intervals, by degrees of freedom.
_T95 = (math.nan, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
_Z95 = 1.96


@dataclass(frozen=True)
class Variant:
    """One setting of a row: its label, and what it changes of the preset; none: the preset as it is."""

    label: str
    changes: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Name its run folders, the same for equal changes in whichever row."""
        return re.sub(r"[^\w.=-]+", "_", "+".join(self.changes)) or "as-it-is"


def _rounds(c: Config) -> Iterator[Variant]:
    """Many small rounds against few large ones, at equal frames, steps of V and of M, and generations."""
    s: Any = c.controller
    drive = c.drive
    later = c.rounds - 1
    vision, memory = (sum(part.steps_in(index) for index in range(c.rounds)) for part in (c.vision, c.memory))
    frames = drive.first_episodes * drive.first_frames + later * drive.episodes * (drive.frames or c.env.frame_limit)
    for rounds in (1, 2, 4, 8, 16, 32):
        changes = [
            f"rounds={rounds}", f"judge.every={max(1, rounds // 4)}", "vision.every=1", f"vision.until={rounds}",
            f"controller.dream_generations={max(1, round(s.dream_generations * c.rounds / rounds))}",
            f"memory.learning_rate_decay={c.memory.learning_rate_decay ** (c.rounds / rounds):.6g}",
        ]  # fmt: skip
        if rounds == 1:
            changes += [f"drive.first_episodes={round(frames / drive.first_frames)}"]
            changes += [f"vision.first_steps={vision}", f"memory.first_steps={memory}"]
        else:
            parts = ((c.vision, vision, "vision"), (c.memory, memory, "memory"))
            changes += [f"drive.episodes={max(1, round(drive.episodes * later / (rounds - 1)))}"]
            changes += [
                f"{name}.steps={round((whole - part.first_steps) / (rounds - 1))}" for part, whole, name in parts
            ]
        yield Variant(f"{rounds} round{'s' if rounds > 1 else ''}", tuple(changes))


def _repeat(c: Config) -> Iterator[Variant]:
    """Frames for which an action is applied, at equal frames driven and dreamt."""
    for repeat in (1, 2, 4, 8):
        s: Any = c.controller
        steps = max(1, round(s.dream_steps * c.env.repeat / repeat))
        horizon = max(1, round(c.judge.horizon * c.env.repeat / repeat))
        changes = (f"env.action_repeat={repeat}", f"controller.dream_steps={steps}", f"judge.horizon={horizon}")
        yield Variant(f"repeat {repeat}", () if repeat == c.env.repeat else changes)


def _horizon(c: Config) -> Iterator[Variant]:
    """Decisions of a dream, at equal dream steps: longer dreams are fewer."""
    s: Any = c.controller

    def episodes(steps: float) -> str:
        return f"controller.dream_episodes={max(2, round(s.dream_episodes * s.dream_steps / steps))}"

    for steps in (20, 40, 80, 160, 250):
        yield Variant(f"{steps} decisions", (f"controller.dream_steps={steps}", episodes(steps)))
    growth = (160 / 20) ** (1 / max(c.rounds - 1, 1))
    mean = sum(20 * growth**index for index in range(c.rounds)) / c.rounds
    yield Variant(
        "growing from 20 to 160",
        ("controller.dream_steps=20", f"controller.dream_steps_growth={growth:.6g}", "controller.most_dream_steps=160",
         episodes(mean)),
    )  # fmt: skip


def _starts(c: Config) -> Iterator[Variant]:
    """Where dreams begin."""
    yield Variant("beginnings of episodes", ("controller.mid_fraction=0.0",))
    yield Variant("anywhere, without M's state", ("controller.mid_fraction=1.0", "controller.burn_in=false"))
    yield Variant("anywhere, with M's state", ("controller.mid_fraction=1.0",))


def _features(c: Config) -> Iterator[Variant]:
    """What C sees."""
    for features in ("z", "zh", "zhc"):
        yield Variant("[" + ", ".join(features) + "]", (f'controller.features="{features}"',))


def _latents(c: Config) -> Iterator[Variant]:
    """What M learns from and dreams begin with; the agent sees V's mean either way."""
    yield Variant("z drawn from V's posterior", ("vision.drawn=true",))
    yield Variant("V's mean", ("vision.drawn=false",))


def _temperature(c: Config) -> Iterator[Variant]:
    """Temperature of the dream."""
    for temperature in (0.5, 1.0, 1.15, 1.3, 1.5):
        yield Variant(f"temperature {temperature:g}", (f"controller.temperature={temperature}",))


def _dropout(c: Config) -> Iterator[Variant]:
    """Dropout in M's training and in its dreams, one mask a dream."""
    for learning, dreaming in ((0.0, 0.0), (0.05, 0.0), (0.0, 0.1), (0.05, 0.1)):
        changes = (f"memory.dropout={learning}", f"controller.dream_dropout={dreaming}")
        yield Variant(f"{learning:g} in training, {dreaming:g} in dreams", changes if learning or dreaming else ())


def _ensemble(c: Config) -> Iterator[Variant]:
    """Members of M, each dreaming its share of the dreams; C on z alone, since hidden states are not comparable."""
    for members in (1, 3, 5):
        label = f"{members} member{'s' if members > 1 else ''}, [z]"
        yield Variant(label, ('controller.features="z"', *((f"memory.members={members}",) if members > 1 else ())))


def _rewards(c: Config) -> Iterator[Variant]:
    """What M learns of rewards."""
    yield Variant("as they are")
    yield Variant("clipped to 10", ("memory.reward_clip=10.0",))
    yield Variant("the end's with the end", ("memory.end_rewards=false", "controller.end_reward=-100.0"))
    yield Variant("tiles at their mean price", ("memory.priced_rewards=true",))


def _search(c: Config) -> Iterator[Variant]:
    """A search that goes on from round to round against one that begins anew."""
    yield Variant("goes on", ("controller.anew=false",))
    yield Variant("begun anew each round", ("controller.anew=true",))


def _population(c: Config) -> Iterator[Variant]:
    """Candidates a generation, at equal dream steps (fewer generations) and at equal generations."""
    s: Any = c.controller
    for population in (32, 64, 256, 1024):
        generations = max(1, round(s.dream_generations * s.population / population))
        changes = (f"controller.population={population}", f"controller.dream_generations={generations}")
        yield Variant(f"{population}, equal dream steps", changes if population != s.population else ())
    for population in (32, 64, 256, 1024):
        alone = (f"controller.population={population}",)
        yield Variant(f"{population}, equal generations", alone if population != s.population else ())


def _untrained(c: Config) -> Iterator[Variant]:
    """h of an LSTM that stays as it was drawn, M's heads alone learning; beside a trained one and none."""
    yield Variant("h trained", ())
    yield Variant("h of an untrained LSTM", ("memory.lstm_learns=false",))
    yield Variant("no h", ('controller.features="z"',))


ROWS: Mapping[str, Callable[[Config], Iterator[Variant]]] = {
    "rounds": _rounds, "repeat": _repeat, "horizon": _horizon, "starts": _starts, "features": _features,
    "latents": _latents, "temperature": _temperature, "dropout": _dropout, "ensemble": _ensemble,
    "rewards": _rewards, "search": _search, "population": _population, "untrained": _untrained,
}  # fmt: skip
"""Every ablation by its name: what yields its variants of a preset."""


class OutOfTimeError(Exception):
    """The budget is spent; the run has been saved."""


@dataclass(frozen=True)
class Study:
    """What is trained: a preset with changes of its own, where, and with which seeds."""

    out: Path
    preset: str
    changes: tuple[str, ...]
    rows: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def base(self) -> Config:
        """The preset as it is."""
        return resolve(self.preset, [*_PLAIN, *self.changes])

    def variants(self, row: str) -> list[Variant]:
        """List a row's variants."""
        return list(ROWS[row](self.base))

    def config(self, variant: Variant, seed: int) -> Config:
        """Make the configuration of a run; ConfigError where a variant does not fit the preset."""
        config = resolve(self.preset, [*_PLAIN, *self.changes, *variant.changes, f"seed={seed}"])
        if getattr(config.memory, "priced_rewards", False) and config.env.found().price is None:
            raise ConfigError(f"memory.priced_rewards: nothing is hidden of what {config.env.task} pays")
        return config

    def root(self, variant: Variant, seed: int) -> Path:
        """Name a run's folder."""
        return self.out / "runs" / f"{variant.folder}-{seed}"

    def train(self, budget: float) -> tuple[dict[str, str], bool]:
        """Train what is not done yet, all variants with the first seed before any with the second.

        budget : seconds; a run that goes on when they are spent is saved after its present unit
        Returns why variants were refused, by their folders, and whether all was done.
        """
        deadline = time.monotonic() + budget
        refused: dict[str, str] = {}
        wanted = {variant.folder: variant for row in self.rows for variant in self.variants(row)}
        for seed in self.seeds:
            for folder, variant in wanted.items():
                root = self.root(variant, seed)
                if folder in refused or _ended(_records(root)):
                    continue
                if time.monotonic() >= deadline:
                    return refused, False
                click.echo(f"{folder}, seed {seed}", err=True)
                try:
                    run_loop(root, self.config(variant, seed), steps=_until(deadline))
                except OutOfTimeError:
                    return refused, False
                except WMEngineError as error:
                    refused[folder] = str(error)
        return refused, True


def _until(deadline: float) -> list[tuple[str, Step]]:
    """The loop's steps, which save the run and raise OutOfTimeError once the deadline has passed."""

    def bounded(work: Step) -> Step:
        def step(state: LoopState) -> Iterator[None]:
            for _ in work(state):
                yield
                if time.monotonic() >= deadline:
                    state.save()
                    raise OutOfTimeError

        return step

    return [(name, bounded(work)) for name, work in STEPS]


def _records(root: Path) -> list[dict[str, Any]]:
    return read_metrics(root / "metrics" / "metrics.jsonl")


def _ended(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(row["stage"] == "final" for row in rows)


@dataclass(frozen=True)
class Interval:
    """A mean with the half width of its 95 % interval; NaN where it is not known."""

    mean: float
    half: float

    def text(self) -> str:
        """Write it for a table."""
        if math.isnan(self.mean):
            return "–"
        return f"{self.mean:.4g}" + ("" if math.isnan(self.half) else f" ± {self.half:.2g}")


def interval(means: Sequence[float], errors: Sequence[float]) -> Interval:
    """Put seeds together: Student's t over their means; of a single one, 1.96 standard errors over its episodes."""
    if not means:
        return Interval(math.nan, math.nan)
    if len(means) == 1:
        return Interval(means[0], _Z95 * errors[0])
    quantile = _T95[len(means) - 1] if len(means) <= len(_T95) else _Z95
    return Interval(float(np.mean(means)), quantile * float(np.std(means, ddof=1)) / math.sqrt(len(means)))


@dataclass(frozen=True)
class Outcome:
    """What a variant came to, over the seeds that have come so far.

    ended, begun : how many of its seeds; frames, minutes : real frames learnt from and minutes of work, means
    last, best : the last and the best judged score of a run; final : the published policy's, on its own episodes
    planner : planning in the published M; ratio : what the last round's dream promised over what was paid, mean
    curve : by judged round (frames, score)
    """

    label: str
    ended: int
    begun: int
    frames: float
    minutes: float
    last: Interval
    best: Interval
    final: Interval
    planner: Interval
    ratio: float
    curve: list[tuple[float, Interval]]
    refused: str = ""

    def cells(self) -> list[str]:
        """For a table."""
        if self.refused:
            return [self.label, f"not here: {self.refused}"]
        scores = [one.text() for one in (self.last, self.best, self.final, self.planner)]
        ratio = "–" if math.isnan(self.ratio) else f"{self.ratio:.2f}"
        return [
            self.label,
            f"{self.ended} of {self.begun}",
            _number(self.frames),
            _number(self.minutes),
            *scores,
            ratio,
        ]


HEAD = [
    "variant", "seeds", "real frames", "minutes", "last judged", "best judged", "published", "planner", "promised/paid",
]  # fmt: skip


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def outcome(study: Study, variant: Variant, refused: Mapping[str, str]) -> Outcome:
    """Read what a variant's runs have come to."""
    runs = [_records(study.root(variant, seed)) for seed in study.seeds]
    runs = [rows for rows in runs if rows]
    judged = [[row for row in rows if row["stage"] == "judge"] for rows in runs]
    judged = [rows for rows in judged if rows]

    def of(chosen: Sequence[Mapping[str, Any]], mean: str = "mean", error: str = "standard_error") -> Interval:
        return interval([row[mean] for row in chosen], [row[error] for row in chosen])

    def stage(name: str) -> list[Mapping[str, Any]]:
        return [row for rows in runs for row in rows if row["stage"] == name]

    rounds = [[row for row in rows if row["stage"] == "round"] for rows in runs]
    last = [rows[-1] for rows in rounds if rows]
    ratios = [_ratio(rows) for rows in runs]
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    curve = []
    for places in zip(*judged, strict=False):
        curve.append((float(np.mean([row["learning_frames"] for row in places])), of(places)))
    return Outcome(
        label=variant.label,
        ended=sum(_ended(rows) for rows in runs),
        begun=len(runs),
        frames=_mean([row["learning_frames"] for row in last]),
        minutes=_mean([row["minutes"] for row in last]),
        last=of([rows[-1] for rows in judged]),
        best=of([max(rows, key=lambda row: row["mean"]) for rows in judged]),
        final=of(stage("final"), "controller", "controller_standard_error"),
        planner=of(stage("planner")),
        ratio=_mean(known),
        curve=curve,
        refused=refused.get(variant.folder, ""),
    )


def _ratio(rows: Sequence[Mapping[str, Any]]) -> float:
    forecasts = [row for row in rows if row["stage"] == "forecast" and row.get("paid") and row.get("promised")]
    return forecasts[-1]["promised"] / forecasts[-1]["paid"] if forecasts else math.nan


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def table(found: Mapping[str, Sequence[Outcome]]) -> str:
    """Write all rows as text, one table each."""
    lines = []
    for row, outcomes in found.items():
        about = (ROWS[row].__doc__ or "").strip()
        lines += [f"{row}: {about}", *aligned([HEAD, *(one.cells() for one in outcomes if not one.refused)])]
        lines += [" ".join(one.cells()) for one in outcomes if one.refused] + [""]
    lines.append(
        "± is half of a 95 % interval: Student's t over seeds; with one seed, over its episodes alone. Best judged is "
        "the best of a run's judged rounds, which flatters; published is scored on episodes that no choice saw."
    )
    return "\n".join(lines)


def plot(found: Mapping[str, Sequence[Outcome]]) -> Figure:
    """Draw real score over real frames, a panel a row, a line a variant with its intervals."""
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure, panels = new_axes(LIGHT, columns, width=5.2 * columns, height=3.6 * rows, rows=rows)
    for panel, (row, outcomes) in zip(panels, found.items(), strict=False):
        for index, one in enumerate(outcomes):
            if not one.curve:
                continue
            frames, scores = zip(*one.curve, strict=True)
            style = "-" if index < len(LIGHT.accents) else "--"
            panel.errorbar(
                frames, [score.mean for score in scores], yerr=np.nan_to_num([score.half for score in scores]),
                color=LIGHT.accents[index % len(LIGHT.accents)], linestyle=style, marker="o", markersize=3, capsize=2,
                linewidth=1.4, label=one.label,
            )  # fmt: skip
        label(panel, LIGHT, x="real frames learnt from", y="judged real score, 95 %", title=row)
        legend(panel, LIGHT, loc="best")
    for panel in panels[len(found) :]:
        panel.set_axis_off()
    return figure


@click.command()
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("runs/transfer"), show_default=True
)
@click.option("--preset", default="quick", show_default=True, help="What the rows change: a preset's name, or a .toml.")
@click.option("--set", "changes", multiple=True, metavar="SECTION.KEY=VALUE", help="Change the preset for all rows.")
@click.option(
    "--only", "rows", multiple=True, metavar="ROW", help=f"One of {', '.join(ROWS)}; may be given many times."
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Seeds of each variant, from 0.")
@click.option(
    "--budget", type=click.FloatRange(0.0), help="Minutes; what is cut goes on next time.  [default: no bound]"
)
def main(
    out: Path, preset: str, changes: tuple[str, ...], rows: tuple[str, ...], seeds: int, budget: float | None
) -> None:
    """Ablate what makes a dream teach, under equal budgets: a table and a plot of real score over real frames.

    With --budget 0 nothing is trained: the table is of what there is.
    """
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        raise click.UsageError(f"--only {unknown[0]}: there is no such row; there are {', '.join(ROWS)}")
    study = Study(out, preset, changes, rows or tuple(ROWS), tuple(range(seeds)))
    try:
        refused, done = study.train(math.inf if budget is None else 60.0 * budget)
    except WMEngineError as error:
        raise click.ClickException(str(error)) from error
    found = {row: [outcome(study, one, refused) for one in study.variants(row)] for row in study.rows}
    text = table(found)
    write_text(out / "table.txt", text + "\n")
    write_json(out / "table.json", {row: [vars(one) | _plain(one) for one in some] for row, some in found.items()})
    with atomic_write(out / "transfer.png") as file:
        plot(found).savefig(file, format="png", dpi=144)
    click.echo(text)
    if not done:
        click.echo("The budget is spent: give the same command again to go on.")


def _plain(one: Outcome) -> dict[str, Any]:
    """Turn an outcome's intervals into JSON."""
    scores = {name: vars(getattr(one, name)) for name in ("last", "best", "final", "planner")}
    return scores | {"curve": [[frames, vars(score)] for frames, score in one.curve]}


if __name__ == "__main__":
    main()
