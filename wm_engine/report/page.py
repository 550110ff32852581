"""From a run folder to ``report/index.html``: what there is is shown, what is missing is said."""

from __future__ import annotations

import logging
import math
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from wm_engine.errors import CorruptFileError, StorageError, WMEngineError
from wm_engine.memory.model import MDNRNN
from wm_engine.records import read_metrics
from wm_engine.report import figures, pictures
from wm_engine.rollouts import RolloutStore
from wm_engine.runs import Manifest, RunFolder, atomic_write, chosen_scores, read_json, storage_errors, write_text
from wm_engine.vision.model import VAE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_log = logging.getLogger(__name__)

_HOLDOUT = 0.1
_STRIP_START = 60
_Row = dict[str, Any]


@dataclass
class _Page:
    """What the template is given, filled section by section."""

    folder: Path
    missing: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def figure(self, name: str, draw: figures.Draw) -> str:
        return figures.save(draw, self.folder, name)


@dataclass(frozen=True)
class _Run:
    """A run folder, read: the round that the page is about, and all records."""

    run: RunFolder
    index: int
    config: dict[str, Any]
    config_text: str
    rows: list[_Row]
    manifest: Manifest

    @property
    def folder(self) -> RunFolder:
        return self.run.iteration(self.index)

    def metrics(self, stage: str) -> list[_Row]:
        """The rows of one stage of this round, by step."""
        rows = (row for row in self.rows if row["stage"] == stage and row["iteration"] == self.index)
        return sorted(rows, key=lambda row: row["step"])


def write_report(run: RunFolder) -> Path:
    """Write ``RUN/report/index.html`` with its pictures and the video beside it; returns the page's path.

    The page is about the round whose models were chosen, or the newest one where none was yet. It is made from the run
    folder alone and needs no network. Whatever a run that is only half done lacks is left out and named on the page.

    Raises CorruptFileError where config.toml or manifest.json is damaged, StorageError where it cannot be written.
    """
    state = _read(run)
    page = _Page(run.report)
    with storage_errors(run.report):
        run.report.mkdir(parents=True, exist_ok=True)
    sections: Sequence[tuple[str, Callable[[_Page, _Run], Any]]] = (
        ("scores", _scores),
        ("video", _video),
        ("strips", _strips),
        ("reconstructions", _reconstructions),
        ("curves", _curves),
        ("memory", _memory),
        ("correlation", _correlation),
        ("rates", _rates),
        ("times", _times),
        ("rounds", _rounds),
    )
    for name, section in sections:
        try:
            page.values[name] = section(page, state)
        except StorageError:
            raise
        except (FileNotFoundError, WMEngineError, KeyError, IndexError, ValueError, TypeError) as error:
            page.values[name] = None
            reason = f"{type(error).__name__}: {error}" if isinstance(error, (KeyError, IndexError)) else str(error)
            page.missing.append(f"{name}: {reason}")
            _log.warning("report: %s left out: %s", name, reason)
    html = _template().render(
        name=run.root.resolve().name,
        round=state.index,
        config=state.config_text,
        missing=page.missing,
        ahead_of=lambda strip: ["start" if step == 0 else f"+{step}" for step in strip["ahead"]],
        **page.values,
    )
    target = run.report / "index.html"
    write_text(target, html)
    return target


def _template() -> Any:
    text = resources.files("wm_engine.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "duration": _duration}
    return environment.from_string(text)


def _number(value: float | None, digits: int = 1) -> str:
    """12,345.6; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.{digits}f}".replace("-", "−")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _read(run: RunFolder) -> _Run:
    text, config = _read_config(run.config)
    manifest = Manifest(run.manifest)
    begun = [index for index, _, _ in manifest.entries()]
    index = manifest.published if manifest.published is not None else max(begun, default=0)
    return _Run(run, index, config, text, read_metrics(run.metrics / "metrics.jsonl"), manifest)


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    """The configuration as it is written, and its tables; both empty where there is none."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return text, tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CorruptFileError(f"{path}: not valid TOML ({error}). Restore it from a copy.") from error
    except OSError as error:
        raise CorruptFileError(f"{path}: cannot be read ({error.strerror}).") from error


def _scores(page: _Page, state: _Run) -> dict[str, Any]:
    scores = read_json(_existing(state.folder.root / "scores.json", "the controller has not been evaluated yet"))
    names = {"controller": "controller", "dream_winner": "the dream's own winner", "random": "random policy"}
    rows = [{"name": names[key], **scores[key]} for key in names if scores.get(key)]
    controller, random, dream = scores["controller"], scores["random"], scores.get("dream")
    error = math.hypot(controller["standard_error"], random["standard_error"])
    return {
        "rows": rows,
        "controller": controller,
        "random": random,
        "dream": dream,
        "gap": scores.get("gap"),
        "fresh": chosen_scores(state.run, state.manifest),
        "env": state.config.get("env", {}).get("id", "the environment"),
        "errors_apart": (controller["mean"] - random["mean"]) / error if error > 0 else math.nan,
        "figure": page.figure("returns", figures.returns({row["name"]: row["returns"] for row in rows})),
    }


def _video(page: _Page, state: _Run) -> str:
    source = _existing(state.folder.root / "controller.mp4", "no video has been recorded yet")
    with atomic_write(page.folder / "controller.mp4") as file, open(source, "rb") as video:
        shutil.copyfileobj(video, file)
    return "controller.mp4"


def _models(state: _Run) -> tuple[VAE, MDNRNN | None, RolloutStore, list[int]]:
    """V, M where there is one, the store, and the held-out episodes, those of the newest driving first."""
    vae = VAE.load(_existing(state.folder.vision, "V has not been trained yet")).eval()
    m = MDNRNN.load(state.folder.memory).eval() if state.folder.memory.exists() else None
    store = RolloutStore.open(state.run.rollouts, create=False)
    _, held_out = store.split(state.config.get("vision", {}).get("holdout", _HOLDOUT))
    if not held_out:
        raise ValueError("the store holds no held-out episode")
    known = [index for index in held_out if store.info(index).iteration <= state.index]
    return vae, m, store, sorted(known or held_out, key=lambda index: -store.info(index).iteration)


def _strips(page: _Page, state: _Run) -> list[dict[str, Any]]:
    vae, m, store, held_out = _models(state)
    if m is None:
        raise ValueError("M has not been trained yet")
    newest = [index for index in held_out if store.info(index).iteration == store.info(held_out[0]).iteration]
    by_return = sorted(newest, key=lambda index: store.info(index).total_reward)
    chosen = dict.fromkeys((by_return[-1], by_return[len(by_return) // 2]))
    strips = []
    for number, episode in enumerate(chosen):
        steps = store.info(episode).steps
        strip = pictures.film_strip(vae, m, store.read(episode), episode, min(_STRIP_START, steps // 2))
        rows = []
        for place, (name, frames) in enumerate(strip.rows.items()):
            file = f"strip-{number}-{place}.png"
            pictures.save_row(frames, page.folder / file)
            rows.append({"name": name, "file": file})
        info = store.info(episode)
        strips.append({
            "episode": episode, "start": strip.start, "ahead": strip.ahead, "rows": rows,
            "total_reward": info.total_reward, "policy": info.policy,
        })  # fmt: skip
    return strips


def _reconstructions(page: _Page, state: _Run) -> dict[str, Any]:
    vae, _, store, held_out = _models(state)
    originals, views = pictures.reconstructions(vae, store, held_out)
    pictures.save_row(originals, page.folder / "originals.png")
    pictures.save_row(views, page.folder / "views.png")
    rows = [row for row in state.metrics("vision") if "held_out_pixel_rmse" in row]
    return {
        "rows": [
            {"name": "held-out frames", "file": "originals.png"},
            {"name": "V's view of them", "file": "views.png"},
        ],
        "count": len(originals),
        "pixel_rmse": rows[-1]["held_out_pixel_rmse"] if rows else None,
    }


def _curves(page: _Page, state: _Run) -> list[dict[str, str]]:
    panels = {
        "vision": (
            ("squared error a frame", {"training": "reconstruction", "held out": "held_out_reconstruction"}),
            ("KL divergence a frame, nats", {"training": "kl", "held out": "held_out_kl"}),
        ),
        "memory": (
            (
                "latent NLL, nats a dimension",
                {"training": "nll_per_dimension", "held out": "held_out_nll_per_dimension"},
            ),
            ("reward R²", {"held out": "held_out_reward_r2"}),
        ),
    }
    titles = {"vision": "V, the variational autoencoder", "memory": "M, the MDN-RNN"}
    drawn = []
    for stage, wanted in panels.items():
        rows = state.metrics(stage)
        if not rows:
            page.missing.append(f"curves: {stage} has not been trained yet")
            continue
        lines = [(title, {name: _line(rows, key) for name, key in keys.items()}) for title, keys in wanted]
        drawn.append({"title": titles[stage], "figure": page.figure(f"curve-{stage}", figures.curves(lines, "step"))})
    places = {"in the dream": "controller_dream", "in the real environment": "controller_real"}
    phases = {name: rows for name, stage in places.items() if (rows := state.metrics(stage))}
    if phases:
        figure = page.figure("curve-controller", figures.evolution(phases))
        drawn.append({"title": "C, the controller's evolution", "figure": figure})
    else:
        page.missing.append("curves: no controller has been evolved yet")
    return drawn


def _line(rows: Sequence[_Row], key: str) -> tuple[list[float], list[float]]:
    kept = [row for row in rows if row.get(key) is not None]
    return [row["step"] for row in kept], [row[key] for row in kept]


def _fidelity(state: _Run) -> dict[str, Any]:
    return dict(read_json(_existing(state.folder.root / "fidelity.json", "the dream has not been measured yet")))


def _memory(page: _Page, state: _Run) -> dict[str, Any]:
    numbers = _fidelity(state)["memory"]
    likelihood = {
        "M": numbers["nll_per_dimension"],
        "last z copied": numbers["nll_copy_last"],
        "unconditional Gaussian": numbers["nll_gaussian"],
    }
    errors = {
        "dream, most likely": numbers["open_loop_most_likely"],
        "dream, drawn": numbers["open_loop_sampled"],
        "last z copied": numbers["open_loop_copy_last"],
        "mean z": numbers["open_loop_gaussian"],
    }
    predicted, realised = numbers["reward_bins_predicted"], numbers["reward_bins_realised"]
    return {
        **numbers,
        "likelihood": page.figure("likelihood", figures.bars(likelihood, "nats a dimension")),
        "calibration": page.figure("calibration", figures.calibration(predicted, realised, "tenths of the steps")),
        "horizon": page.figure("horizon", figures.horizon(numbers["open_loop_horizon"], errors)),
    }


def _correlation(page: _Page, state: _Run) -> dict[str, Any]:
    result = _fidelity(state)["correlation"]
    draw = figures.dream_against_real(result["dream"], result["real"], result["labels"], result["rho"])
    return {**result, "figure": page.figure("dream-against-real", draw)}


def _rates(page: _Page, state: _Run) -> list[dict[str, Any]]:
    """Medians over the record of everything logged as UNIT_per_second."""
    names = {
        "collect": "collecting, real",
        "vision": "training V",
        "memory": "training M",
        "controller_dream": "evolving in the dream",
        "controller_real": "evolving in the real environment",
    }
    rates = []
    for stage, name in names.items():
        found: dict[str, list[float]] = {}
        for row in state.rows:
            if row["stage"] == stage:
                for key, value in row.items():
                    if key.endswith("_per_second") and value is not None:
                        found.setdefault(key.removesuffix("_per_second"), []).append(value)
        rates += [{"name": name, "unit": unit, "rate": statistics.median(values)} for unit, values in found.items()]
    if not rates:
        raise ValueError("no rate has been recorded yet")
    return rates


def _times(page: _Page, state: _Run) -> dict[str, Any]:
    done = [(index, stage, entry) for index, stage, entry in state.manifest.entries() if entry.done]
    if not done:
        raise ValueError("no stage has been finished yet")
    longest = max(1e-9, *(entry.seconds for _, _, entry in done))
    rows = [
        {
            "round": index,
            "stage": stage,
            "seconds": entry.seconds,
            "resumed": entry.resumed,
            "share": entry.seconds / longest,
        }
        for index, stage, entry in done
    ]
    return {"rows": rows, "total": sum(entry.seconds for _, _, entry in done)}


def _rounds(page: _Page, state: _Run) -> dict[str, Any]:
    rows = []
    for index in sorted({index for index, _, _ in state.manifest.entries()}):
        folder = state.run.iteration(index).root
        if not (folder / "scores.json").exists():
            continue
        scores = read_json(folder / "scores.json")
        fidelity = read_json(folder / "fidelity.json") if (folder / "fidelity.json").exists() else {}
        memory, correlation = fidelity.get("memory", {}), fidelity.get("correlation", {})
        rows.append({
            "index": index,
            "controller": scores["controller"],
            "random": scores["random"],
            "dream": scores.get("dream") or {},
            "nll": memory.get("nll_per_dimension"),
            "reward_r2": memory.get("reward_r2"),
            "rho": correlation.get("rho"),
            "chosen": index == state.manifest.published,
        })  # fmt: skip
    if not rows:
        raise ValueError("no round has been evaluated yet")
    figure = None
    if len(rows) > 1:
        controllers: list[Mapping[str, float]] = [row["controller"] for row in rows]
        draw = figures.rounds(
            [row["index"] for row in rows],
            [scores["mean"] for scores in controllers],
            [scores["standard_error"] for scores in controllers],
            statistics.fmean(row["random"]["mean"] for row in rows),
        )
        figure = page.figure("rounds", draw)
    return {"rows": rows, "figure": figure}


def _existing(path: Path, reason: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{reason} ({path.name} is not there)")
    return path
