"""Sweeps: C learnt anew for every value of a setting, on the same V and M of a run, and scored for real.

    every value, every seed:  a new learner ─► rounds of dreams in the published M ─► real score, dreamt return

    RUN/sweeps/NAME/
      sweep.json             what was asked for, on which models; then what every value came to
      VALUE/seed-S/          the learner's checkpoints, its record, its policy, and score.json

Everything else is held equal: seed S of every value begins with the same candidates, dreams from the same recorded
states and is scored on the same real episodes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wm_engine.dream.imagination import imagine
from wm_engine.errors import ConfigError, CorruptFileError, RunMismatchError
from wm_engine.files import Checkpoints, lock_folder, read_json, sweep_temporaries, write_json
from wm_engine.fleet import Fleet
from wm_engine.judge.intervals import student_interval
from wm_engine.learn.evolution import Evolution
from wm_engine.machine import use_threads
from wm_engine.models.trainer import repeatable
from wm_engine.policies.base import OnLanes, Policy
from wm_engine.policies.controller import Controllers
from wm_engine.progress import track
from wm_engine.real.driving import Runners
from wm_engine.real.scoring import Scores, score_policy
from wm_engine.recorder import Recorder
from wm_engine.rng import RNG_VERSION
from wm_engine.run.config import Config, differences, read_config
from wm_engine.run.folder import RunFolder
from wm_engine.run.loop import workers
from wm_engine.run.published import LoadedRun, load_run
from wm_engine.run.state import LoopState, Place
from wm_engine.run.steps import Driving, make_problem

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_log = logging.getLogger(__name__)

_SWEPT = ("controller", "dream")
_SETTABLE = (*_SWEPT, "evaluate", "judge", "cluster")


@dataclass(frozen=True)
class SweepPlan:
    """A sweep as it is asked for.

    key : the setting, "controller.temperature"; values : as they stand in the configuration
    configs : the configuration of each value, checked; seeds : how many trainings of each value
    rounds : rounds of the learner's units in each of these; name : of the sweep's folder
    """

    key: str
    values: tuple[Any, ...]
    configs: tuple[Config, ...]
    seeds: int
    rounds: int
    name: str


def plan_sweep(
    run: LoadedRun,
    over: str,
    *,
    seeds: int = 1,
    rounds: int | None = None,
    changes: Sequence[str] = (),
    name: str | None = None,
) -> SweepPlan:
    """Check what is asked for, all values of it, before any work.

    Parameters
    ----------
    run : whose V and M every value gets
    over : "section.key=value,value,...", a setting of the learner (``controller``) or of the dream (``dream``)
    seeds : trainings of each value
    rounds : rounds of the learner's units in each; None: as many as the published policy has had
    changes : other settings, as ``--set`` takes them, the same for all values
    name : of the sweep's folder; None: the setting's

    Raises ConfigError where a setting or a value is none, RunMismatchError where the run has no recorded states.
    """
    key, equals, text = over.partition("=")
    key = key.strip()
    if not equals or not text.strip():
        raise ConfigError(
            f"--over {over}: must look like section.key=value,value, for example controller.sigma=0.1,0.3"
        )
    if key.partition(".")[0] not in _SWEPT:
        raise ConfigError(
            f"--over {key}: must be a setting of the learner (controller.KEY) or of the dream (dream.KEY), since V and "
            "M stay as they are"
        )
    for change in changes:
        if change.partition(".")[0].strip() not in _SETTABLE:
            raise ConfigError(
                f"--set {change}: must be of {', '.join(_SETTABLE)}: everything else made the V and M that are swept on"
            )
    configs = [read_config(run.folder.config, [*changes, f"{key}={value}"]) for value in _listed(text)]
    values = [_setting(config, key) for config in configs]
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise ConfigError(f"--over {key}: names {_text(twice[0])} twice")
    if not (run.folder.rollouts / "index.jsonl").exists():
        raise RunMismatchError(
            f"{run.folder.root}: has no recorded episodes that dreams could begin from, so nothing can be swept in it"
        )
    most = int(run.published["round"]) + 1
    return SweepPlan(key, tuple(values), tuple(configs), seeds, most if rounds is None else rounds, name or key)


def _listed(text: str) -> list[str]:
    """Cut "a,b" into its values, at the commas that are in no list of their own."""
    try:
        found = tomllib.loads(f"values = [{text}]")
        if found.keys() == {"values"} and found["values"]:
            return [json.dumps(value) for value in found["values"]]
    except tomllib.TOMLDecodeError:
        pass  # bare words
    return [word.strip() for word in text.split(",") if word.strip()]


def _setting(config: Config, key: str) -> Any:
    tables: Any = config.tables()
    for name in key.split("."):
        tables = tables.get(name) if isinstance(tables, Mapping) else None
    return tables


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _file_name(value: Any) -> str:
    """Return a folder's name for a value; a digest tells values apart whose plain letters are the same."""
    text = _text(value)
    plain = re.sub(r"[^\w.+-]", "_", text)[:60]
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def run_sweep(root: Path, plan: SweepPlan, *, ray: str | None = None) -> dict[str, Any]:
    """Bring a sweep to its end; returns what ``sweep.json`` then holds.

    Killed at any moment and called again, it goes on from its last checkpoint, to the same results. Values and seeds
    may be added to one that is done; everything else must be as it was.

    Parameters
    ----------
    root : the run folder
    plan : of :func:`plan_sweep`
    ray : a Ray cluster that dreams and drives, "auto" or HOST:PORT; results are those without it

    Raises RunMismatchError where the sweep's folder holds another one, RunBusyError where a process is at work in the
    run, and what the loop raises where this machine cannot do what is asked for.
    """
    run = load_run(root)
    folder, base = run.folder.sweeps / plan.name, plan.configs[0]
    use_threads(base.threads)
    base.env.found()
    how = {
        "key": plan.key,
        "rounds": plan.rounds,
        "models": dict(run.published["digests"]),
        "settings": _without(base.identity(), plan.key),
    }
    with lock_folder(run.folder.root):
        sweep_temporaries(run.folder.root)
        found = _check(folder / "sweep.json", how)
        found |= {"how": how, "horizon": base.judge.horizon, "dreams": base.judge.dream_episodes}
        write_json(folder / "sweep.json", found)
        with workers(plan.configs, ray) as fleet, contextlib.closing(_scorers(base, fleet)) as scorers:
            points = [
                (value, config, seed)
                for seed in range(plan.seeds)
                for value, config in zip(plan.values, plan.configs, strict=True)
            ]
            with track(len(points), f"sweep {plan.key}", "training") as bar:
                for value, config, seed in points:
                    bar.set_postfix_str(f"{_text(value)}, seed {seed}")
                    own = config.model_copy(update={"seed": (base.seed + seed) % 2**32})
                    place = folder / _file_name(value) / f"seed-{seed}"
                    score = _point(run, own, plan.rounds, place, fleet, scorers)
                    _add(found, value, seed, score)
                    write_json(folder / "sweep.json", found)
                    bar.update(1)
    return found


def _scorers(config: Config, fleet: Fleet | None) -> Runners:
    """Make the environments that all trainings are scored in."""
    chosen = config.env.model_copy(update={"backend": config.evaluate.backend})
    return Runners(chosen, None, fleet, one_thread=True)


def _without(tables: dict[str, Any], key: str) -> dict[str, Any]:
    """The settings but the swept one."""
    section, _, name = key.partition(".")
    return json.loads(json.dumps(tables | {section: {k: v for k, v in tables[section].items() if k != name}}))


def _check(path: Path, how: dict[str, Any]) -> dict[str, Any]:
    """Return what a sweep has come to so far; RunMismatchError where it is another one."""
    if not path.exists():
        return {"values": []}
    found: dict[str, Any] = read_json(path)
    changes = differences(found["how"], how)
    if changes:
        raise RunMismatchError(
            f"{path.parent}: holds another sweep:\n  " + "\n  ".join(changes) + "\nGive this one a --name of its own."
        )
    return found


def _point(
    run: LoadedRun, config: Config, rounds: int, folder: Path, fleet: Fleet | None, scorers: Runners
) -> dict[str, Any]:
    """Train and score one policy, or read what it came to."""
    path = folder / "score.json"
    if path.exists():
        return dict(read_json(path))
    began = time.monotonic()
    with Recorder(folder / "metrics") as recorder:
        state = LoopState(config, run.folder, recorder, fleet)
        state.use(run.vision, run.world, int(run.published["round"]))
        with contextlib.closing(state), repeatable(state.device):
            policy = _learn(state, Checkpoints(folder / "checkpoints"), rounds)
            state.learner.save_policy(folder / "controller.safetensors", policy)
            real = score_policy(state.agent(), policy, config.env, config.evaluate, fleet, scorers)
            found = _outcome(state, policy, real) | {"seconds": time.monotonic() - began}
    write_json(path, found)
    Checkpoints(folder / "checkpoints").clear()
    return found


def _learn(state: LoopState, checkpoints: Checkpoints, rounds: int) -> Policy:
    """Let a new learner go through its rounds, all on the same M; from its last checkpoint on, where there is one."""
    latest = checkpoints.latest()
    if latest is not None:
        _restore(state, *latest[1:])
    learner, place, saved = state.learner, state.place, time.monotonic()
    while place.round < rounds:
        if place.done < learner.units(place.round):
            problem = make_problem(state, Driving(state) if state.config.controller.wants_real() else None)
            for numbers in learner.learn(problem, place.done):
                place.done, place.units = place.done + 1, place.units + 1
                state.recorder.log("controller", place.units, place.round, **numbers)
                if time.monotonic() - saved >= state.config.checkpoint_seconds:
                    _save(state, checkpoints)
                    saved = time.monotonic()
        place.round, place.done = place.round + 1, 0
    return learner.policy()


def _save(state: LoopState, checkpoints: Checkpoints) -> None:
    tensors, values = state.learner.state()
    number = max(checkpoints.steps(), default=0) + 1
    checkpoints.save(number, tensors, {"rng_version": RNG_VERSION, "place": asdict(state.place), "learner": values})


def _restore(state: LoopState, tensors: dict[str, Any], saved: dict[str, Any]) -> None:
    if saved["rng_version"] != RNG_VERSION:
        raise RunMismatchError(
            f"{state.folder.root}: a sweep drawn with version {saved['rng_version']} of the random numbers, but this "
            f"program has {RNG_VERSION}. Go on with the version that began it."
        )
    try:
        state.learner.load_state(tensors, saved["learner"])
        state.place = Place(**saved["place"])
    except (KeyError, TypeError) as error:
        raise CorruptFileError(f"{state.folder.sweeps}: a checkpoint is not whole ({error})") from error


def _outcome(state: LoopState, policy: Policy, real: Scores) -> dict[str, Any]:
    """Put a policy's real score beside the return of fresh dreams, those that it was taught in."""
    judge, rules = state.config.judge, state.config.controller.dream_rules(state.place.round)
    # The round after the last one: starts and draws that no training saw.
    problem = make_problem(state)
    if isinstance(state.learner, Evolution) and isinstance(policy, Controllers):
        dream = state.learner.dream_fitness(problem, judge.dream_episodes, judge.horizon)
        dreamt = dream(policy.params, 0)[0].double().cpu()
    else:
        starts = problem.starts
        chosen = torch.arange(judge.dream_episodes) % len(starts)
        parts = (None if part is None else part[chosen] for part in (starts.h, starts.c))
        dreamt = imagine(
            problem.world, OnLanes.everywhere(policy, len(chosen)), type(starts)(starts.z[chosen], *parts),
            judge.horizon, rules.temperature, problem.seed,
            survival=rules.survival(state.task.reward), done=rules.done,
        ).returns()  # fmt: skip
    values = np.asarray(dreamt, dtype=np.float64)
    return {
        "real": real.plain(),
        "dreamt": {"mean": float(values.mean()), "standard_error": float(values.std(ddof=1)) / math.sqrt(len(values))
                   if len(values) > 1 else 0.0},
        "units": state.place.units,
        "ranking_frames": state.place.ranking_frames,
        "backend": state.place.backend,
    }  # fmt: skip


def _add(found: dict[str, Any], value: Any, seed: int, score: Mapping[str, Any]) -> None:
    """Put one training's outcome with the others of its value, and take their means and intervals anew."""
    mine = next((one for one in found["values"] if one["value"] == value), None)
    if mine is None:
        mine = {"value": value, "trainings": []}
        found["values"].append(mine)
    others = [one for one in mine["trainings"] if one["seed"] != seed]
    one = {"seed": seed, "real": score["real"], "dreamt": score["dreamt"], "seconds": score["seconds"]}
    mine["trainings"] = sorted([*others, one], key=lambda training: training["seed"])
    for part in ("real", "dreamt"):
        means = [training[part]["mean"] for training in mine["trainings"]]
        mine[part] = asdict(student_interval(means)) if None not in means else {"mean": None, "low": None, "high": None}


def read_sweeps(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Read what the sweeps of a run have come to so far, by name; those on models that are no longer published, too."""
    return {path.parent.name: dict(read_json(path)) for path in sorted(folder.sweeps.glob("*/sweep.json"))}


def describe(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Put a sweep's values in order, as rows for people: ``value``, ``seeds``, ``episodes``, ``real`` and ``dreamt``
    (each with mean, low, high), ``means`` of the trainings in both."""
    rows = [
        {
            "value": _text(one["value"]),
            "number": float(one["value"]) if type(one["value"]) in (int, float) else None,
            "seeds": len(one["trainings"]),
            "episodes": one["trainings"][0]["real"]["episodes"],
            "real": one["real"],
            "dreamt": one["dreamt"],
            "means": {part: [training[part]["mean"] for training in one["trainings"]] for part in ("real", "dreamt")},
        }
        for one in found["values"]
    ]
    if all(row["number"] is not None for row in rows):
        rows.sort(key=lambda row: row["number"])
    return rows
