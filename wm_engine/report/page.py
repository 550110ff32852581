"""From a run folder to ``report/index.html``: what there is is shown, what is missing is said."""

from __future__ import annotations

import functools
import logging
import math
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from wm_engine.data.replay import Replay
from wm_engine.data.store import RolloutStore
from wm_engine.errors import CorruptFileError, StorageError, WMEngineError
from wm_engine.files import atomic_write, read_json, storage_errors, write_text
from wm_engine.recorder import read_metrics
from wm_engine.report import figures, pictures
from wm_engine.run.folder import RunFolder
from wm_engine.run.published import LoadedRun, how_scored, load_run
from wm_engine.spaces import Pixels, Vector

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_log = logging.getLogger(__name__)

_STRIP_START = 60
_LATEST_HELD_OUT = 4
_STALE = "those there are of models that are no longer published; `wm-engine train` takes them anew"


class _Run:
    """A run folder as the page's sections read it: each part when it is asked for, once."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.config_text, self.config = _read_config(folder.config)
        self.rows = read_metrics(folder.metrics / "metrics.jsonl")

    def figure(self, name: str, draw: figures.Draw) -> str:
        """Draw into the report's folder."""
        return figures.save(draw, self.folder.report, name)

    def setting(self, section: str, key: str) -> Any:
        """Return one setting as it stands in ``config.toml``; None where it is not there."""
        return self.config.get(section, {}).get(key)

    @functools.cached_property
    def published(self) -> Mapping[str, Any]:
        return dict(read_json(_existing(self.folder.published, "nothing is published yet")))

    @functools.cached_property
    def scores(self) -> Mapping[str, Any]:
        return dict(read_json(_existing(self.folder.scores, "the published policy is not scored yet")))

    def scored(self, part: str, reason: str) -> Mapping[str, Any]:
        """Return a part of ``scores.json``.

        ValueError for ``reason`` where it is not there, and where it was taken of models that are no longer published.
        """
        found: Mapping[str, Any] | None = self.scores.get(part)
        if found is None:
            raise ValueError(reason)
        if self.scores["how"][part].get("models", self.published["digests"]) != self.published["digests"]:
            raise ValueError(_STALE)
        return found

    @functools.cached_property
    def loaded(self) -> LoadedRun:
        return load_run(self.folder.root)

    @functools.cached_property
    def held_out(self) -> tuple[RolloutStore, list[int]]:
        """The store, and the newest episodes that the published models have not learnt."""
        store = RolloutStore.open(self.folder.rollouts, create=False)
        replay = Replay(store, int(self.loaded.published["round"]), self.loaded.config.drive.holdout)
        if not replay.held_out:
            raise ValueError("the store holds no held-out episode")
        return store, replay.held_out[-_LATEST_HELD_OUT:]


def write_report(folder: RunFolder) -> Path:
    """Write ``RUN/report/index.html`` with its pictures and the film beside it; returns the page's path.

    It is made from the run folder alone and needs no network. Whatever a run that is only half done lacks, or a kind of
    model cannot show, is left out and named on the page. ``report/road-and-promise.png`` is the picture for a README.

    Raises MissingRunError where there is no run, RunMismatchError for a folder of the first edition, CorruptFileError
    where config.toml is damaged, StorageError where the page cannot be written.
    """
    run = _Run(folder.existing())
    with storage_errors(folder.report):
        folder.report.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {}
    missing: dict[str, list[str]] = {}
    for name, section in _SECTIONS.items():
        key = name.replace(" ", "_")
        try:
            values[key] = section(run)
        except StorageError:
            raise
        except Exception as error:  # kinds of models are anyone's code: what fails in one costs a section, not the page
            values[key] = None
            expected = isinstance(error, (FileNotFoundError, WMEngineError, ValueError))
            reason = str(error) if expected else f"{type(error).__name__}: {error}"
            missing.setdefault(reason, []).append(name)
            _log.warning("report: %s left out: %s", name, reason)
    html = _template().render(
        name=folder.root.resolve().name,
        task=run.setting("env", "task"),
        config=run.config_text,
        missing=missing,
        **values,
    )
    target = folder.report / "index.html"
    write_text(target, html)
    return target


def _template() -> Any:
    text = resources.files("wm_engine.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "duration": duration}
    return environment.from_string(text)


def number(value: float | None, digits: int = 1) -> str:
    """Write 12,345.6; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.{digits}f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Write 3 h 05 min, 4 min 10 s or 7.5 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the configuration as it is written, and its tables."""
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CorruptFileError(f"{path}: not valid TOML ({error}). Restore it from a copy.") from error
    except OSError as error:
        raise CorruptFileError(f"{path}: cannot be read ({error.strerror}).") from error


def _existing(path: Path, reason: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{reason} ({path.name} is not there)")
    return path


def _or_none(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except (FileNotFoundError, WMEngineError, KeyError, ValueError, TypeError):
        return None


def _stage(run: _Run, stage: str, reason: str) -> list[Mapping[str, Any]]:
    rows = figures.of_stage(run.rows, stage)
    if not rows:
        raise ValueError(reason)
    return rows


def _score(run: _Run) -> dict[str, Any]:
    controller = run.scored("controller", "the published policy is not scored yet")
    random = run.scored("random", "the random policy is not scored yet")
    beside = _baselines(run)
    named = {"controller": controller["returns"], "random policy": random["returns"]}
    named |= {name: score["returns"] for name, score in beside.items()}
    return {
        "controller": controller,
        "random": random,
        "baselines": beside,
        "published": run.published,
        "how": how_scored(run.published, controller["episodes"]),
        "figure": run.figure("returns", figures.returns(named)),
    }


def _baselines(run: _Run) -> Mapping[str, Mapping[str, Any]]:
    """The scores of the task's baselines and peers, those that there are, by name."""
    found = _or_none(functools.partial(run.scored, "baselines", "")) or {}
    return {name: score for name, score in found.items() if "returns" in score}


def _progress(run: _Run) -> dict[str, Any]:
    """The newest numbers of a run that goes on: its last round, and its last judged score."""
    last = _stage(run, "round", "no round has ended yet")[-1]
    judged = figures.of_stage(run.rows, "judge")
    return {
        "round": last["round"],
        "rounds": run.config.get("rounds"),
        "frames": last["learning_frames"],
        "minutes": last["minutes"],
        "judged": judged[-1] if judged else None,
    }


def _road_and_promise(run: _Run) -> dict[str, Any]:
    controller, random = (_or_none(functools.partial(run.scored, part, "")) for part in ("controller", "random"))
    final = None
    if controller is not None:
        at = run.published["learning_frames"]
        final = figures.FinalScore(at, controller["mean"], controller["standard_error"], controller["episodes"])
    draw = figures.road_and_promise(
        run.rows,
        horizon=run.setting("judge", "horizon"),
        random=None if random is None else random["mean"],
        baselines={name: score["mean"] for name, score in _baselines(run).items()},
        final=final,
    )
    return {"figure": run.figure("road-and-promise", draw), "horizon": run.setting("judge", "horizon")}


def _film(run: _Run) -> str:
    source = _existing(run.folder.film, "no film has been recorded yet")
    note = source.with_suffix(".json")
    if note.exists() and read_json(note) != run.published["digests"]:
        raise ValueError(_STALE)
    with atomic_write(run.folder.report / source.name) as file, open(source, "rb") as film:
        shutil.copyfileobj(film, file)
    return source.name


def _strips(run: _Run) -> list[dict[str, Any]]:
    models = run.loaded
    store, held_out = run.held_out
    if not isinstance(store.spaces.observations, (Pixels, Vector)):
        raise ValueError(f"there is no picture of {store.spaces.observations}")
    by_return = sorted(held_out, key=lambda index: store.info(index).total_reward)
    strips = []
    for place, episode in enumerate(dict.fromkeys((by_return[-1], by_return[len(by_return) // 2]))):
        info = store.info(episode)
        start = min(_STRIP_START, info.steps // 2)
        strip = pictures.film_strip(models.vision, models.world, store, episode, start)
        shown = _shown(run, strip, f"strip-{place}", isinstance(store.spaces.observations, Pixels))
        told = {"episode": episode, "start": start, "policy": info.policy, "total_reward": info.total_reward}
        strips.append(told | {"rewards": strip.rewards, "steps": strip.lengths[pictures.REAL]} | shown)
    return strips


def _shown(run: _Run, strip: pictures.FilmStrip, name: str, as_pictures: bool) -> dict[str, Any]:
    """Write a film strip's rows as pictures, or as curves where vectors are seen."""
    if not as_pictures:
        lines = {}
        for row, values in strip.rows.items():
            lines[row] = values.astype(np.float64)
            lines[row][strip.lengths[row] + 1 :] = np.nan
        ahead = np.arange(len(strip.rows[pictures.REAL]))
        return {"rows": [], "figure": run.figure(name, figures.dimensions(ahead, lines))}
    rows = []
    for place, (row, values) in enumerate(strip.rows.items()):
        file = f"{name}-{place}.png"
        shown = sum(step <= strip.lengths[row] for step in strip.ahead)
        pictures.save_row(values[strip.ahead], run.folder.report / file, shown)
        rows.append({"name": row, "file": file})
    ticks = ["start" if step == 0 else f"+{step}" for step in strip.ahead]
    return {"rows": rows, "ticks": ticks, "figure": None}


def _reconstructions(run: _Run) -> dict[str, Any]:
    vision = run.loaded.vision
    store, held_out = run.held_out
    if not isinstance(store.spaces.observations, Pixels):
        raise ValueError(f"there is no picture of {store.spaces.observations}")
    originals, views = pictures.reconstructions(vision, store, held_out)
    rows = []
    for name, file, shown in (
        ("held-out pictures", "originals.png", originals),
        ("V's view of them", "views.png", views),
    ):
        pictures.save_row(shown, run.folder.report / file)
        rows.append({"name": name, "file": file})
    error = np.sqrt(np.square(originals.astype(np.float64) - views).mean())
    return {"rows": rows, "ticks": [""] * len(originals), "rmse": float(error)}


def _calibration(run: _Run) -> str:
    return run.figure("calibration", figures.calibration_by_horizon(run.rows))


def _correlation(run: _Run) -> dict[str, Any]:
    result = run.scored("correlation", "no controllers have been ranked both ways in this run")
    draw = figures.dream_against_real(result["dream"], result["real"], result["labels"], result["rho"])
    return {**result, "figure": run.figure("dream-against-real", draw)}


def _memory(run: _Run) -> dict[str, Any]:
    found = run.scored("memory", "M has not been measured on held-out episodes")
    likelihood = {
        "M": found["nll_per_dimension"],
        "last z copied": found["nll_copy_last"],
        "unconditional Gaussian": found["nll_gaussian"],
    }
    errors = {
        "dream, most likely": found["open_loop_most_likely"],
        "dream, drawn": found["open_loop_sampled"],
        "last z copied": found["open_loop_copy_last"],
        "mean z": found["open_loop_gaussian"],
    }
    bins = figures.reward_calibration(found["reward_bins_predicted"], found["reward_bins_realised"])
    return {
        **found,
        "likelihood": run.figure("likelihood", figures.bars(likelihood, "nats a dimension")),
        "horizon": run.figure("open-loop", figures.open_loop(found["open_loop_horizon"], errors)),
        "rewards": run.figure("reward-calibration", bins),
    }


def _learning(stage: str, title: str) -> Callable[[_Run], dict[str, str]]:
    def section(run: _Run) -> dict[str, str]:
        _stage(run, stage, "nothing is recorded of it")
        panels = figures.learning_panels(run.rows, stage)
        return {"title": title, "figure": run.figure(f"learning-{stage}", figures.curves(panels, "round"))}

    return section


def _controller(run: _Run) -> dict[str, str]:
    rows = _stage(run, "controller", "nothing is recorded of it")
    if {"mean", "std", "best"} <= rows[-1].keys():
        draw = figures.evolution(rows)
    else:  # a kind of learner whose units are no generations
        own = [{**row, "round": row["step"]} for row in rows]
        draw = figures.curves(figures.learning_panels(own, "controller"), "unit")
    return {"title": "C", "figure": run.figure("learning-controller", draw)}


def _rounds(run: _Run) -> dict[str, Any]:
    by_round: dict[int, dict[str, Mapping[str, Any]]] = {}
    for stage in ("round", "drive", "forecast", "judge"):
        for row in figures.of_stage(run.rows, stage):
            by_round.setdefault(row["round"], {})[stage] = row
    if not by_round:
        raise ValueError("no round has driven yet")
    frames = figures.frames_by_round(run.rows)
    published = _or_none(lambda: run.published["round"])
    rows = []
    for index, found in sorted(by_round.items()):
        forecast, judged = found.get("forecast", {}), found.get("judge", {})
        promised, paid = forecast.get("promised"), forecast.get("paid")
        ratio = promised / paid if promised is not None and paid is not None and paid > 0.0 else None
        rows.append({
            "index": index, "frames": frames.get(index), "minutes": found.get("round", {}).get("minutes"),
            "mean": judged.get("mean"), "standard_error": judged.get("standard_error"),
            "driven": found.get("drive", {}).get("return_mean"), "promised": promised, "paid": paid,
            "ratio": ratio, "rank": forecast.get("rank"),
            "memory": forecast.get("new_nll_per_dimension"), "reward": forecast.get("new_reward_r2"),
            "vision": forecast.get("new_error"), "published": index == published,
        })  # fmt: skip
    return {"rows": rows}


def _times(run: _Run) -> dict[str, Any]:
    rows = _stage(run, "round", "no round has ended yet")
    names = figures.time_shares(run.rows)
    seconds = {name: float(np.nansum(figures.column(rows, f"{name}_seconds"))) for name in names}
    whole = sum(seconds.values())
    shares = {name: {"seconds": spent, "share": spent / whole if whole else 0.0} for name, spent in seconds.items()}
    generations = figures.of_stage(run.rows, "controller")
    rates = [
        row["steps"] / row["fitness_seconds"] for row in generations if row.get("steps") and row.get("fitness_seconds")
    ]
    overhead = [row["overhead_share"] for row in rows if row.get("overhead_share") is not None]
    return {
        "steps": shares,
        "whole": whole,
        "overhead": statistics.median(overhead) if overhead else None,
        "rate": statistics.median(rates) if rates else None,
        "figure": run.figure("times", figures.times(run.rows)),
    }


_SECTIONS: Mapping[str, Callable[[_Run], Any]] = {
    "score": _score,
    "progress": _progress,
    "road and promise": _road_and_promise,
    "film": _film,
    "strips": _strips,
    "reconstructions": _reconstructions,
    "calibration": _calibration,
    "correlation": _correlation,
    "memory": _memory,
    "learning of V": _learning("vision", "V"),
    "learning of M": _learning("memory", "M"),
    "learning of C": _controller,
    "rounds": _rounds,
    "times": _times,
}
