"""What a round has come to: real scores, what the dream had promised, and how far M and the dream can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wm_engine.config import Config
from wm_engine.controller import load_controller
from wm_engine.evaluate import Scores, evaluate_agent, evaluate_random, record_video
from wm_engine.evolve import ControllerResult
from wm_engine.fidelity import controller_mix, correlation_scalars, dream_real_correlation
from wm_engine.memory.fidelity import memory_fidelity
from wm_engine.rounds import (
    Round,
    dream_fitness,
    dream_starts,
    engine_of,
    evolution_result,
    load_models,
    make_agent,
    real_fitness,
)
from wm_engine.runs import RunFolder, file_fingerprint, read_json, write_json
from wm_engine.vision.latents import Latents


def scores_file(folder: RunFolder) -> Path:
    """Where a round keeps its real scores."""
    return folder.root / "scores.json"


def fidelity_file(folder: RunFolder) -> Path:
    """Where a round keeps how far M and the dream can be trusted."""
    return folder.root / "fidelity.json"


def video_file(folder: RunFolder) -> Path:
    """Where a round keeps the film of its controller driving."""
    return folder.root / "controller.mp4"


def parts_folder(folder: RunFolder) -> Path:
    """Where a round keeps each measurement as soon as it is made."""
    return folder.root / "evaluation"


def round_score(folder: RunFolder) -> float | None:
    """The mean real return of a round's controller; None before it was measured, and where it is not finite."""
    path = scores_file(folder)
    mean = read_json(path)["controller"]["mean"] if path.exists() else None
    return None if mean is None else float(mean)


def assess(current: Round) -> None:
    """Score a round's controller where it counts, and measure how far the dream was right.

    Leaves ``scores.json``: for "controller", "random" and "dream_winner" (null where it is the controller itself) mean,
    std, standard_error and episodes, with the returns, lengths and seeds of every episode; for "dream" what it
    predicted; "gap", the dream's mean less the real one. And ``fidelity.json``: "memory"
    (:func:`wm_engine.memory.fidelity.memory_fidelity`) and "correlation"
    (:func:`wm_engine.fidelity.dream_real_correlation`).
    """
    folder = current.folder
    parts = parts_folder(folder)
    scores = {
        "controller": _part(parts / "controller.json", lambda: _score(current)),
        "random": _part(parts / "random.json", lambda: _random_score(current)),
        "dream_winner": _part(parts / "dream_winner.json", lambda: _dream_winner_score(current)),
        "dream": _part(parts / "dream.json", lambda: _dream_prediction(current)),
    }
    dreamt, real = scores["dream"]["mean"], scores["controller"]["mean"]
    scores["gap"] = None if dreamt is None or real is None else dreamt - real
    fidelity = {
        "memory": _part(parts / "memory.json", lambda: _memory_fidelity(current)),
        "correlation": _part(parts / "correlation.json", lambda: _correlation(current)),
    }
    if not video_file(folder).exists():
        seed, agent = scores["controller"]["seeds"][0], make_agent(folder, current.config)
        record_video(agent, current.config.env, seed, video_file(folder), current.config.evaluate.max_steps)

    numbers = {
        f"{name}_{key}": scores[name][key] for name in ("controller", "random", "dream") for key in ("mean", "std")
    }
    current.recorder.log("evaluate", 0, current.index, gap=scores["gap"], **numbers)
    _log_fidelity(current, fidelity)
    write_json(fidelity_file(folder), fidelity)
    # Last, because the choice among rounds reads it: a round with a score is one that has been measured whole.
    write_json(scores_file(folder), scores)


def score_chosen(current: Round) -> bool:
    """Score the published models, those of the chosen round ``current``, on tracks that no round was scored on.

    The score that a round was chosen by is the best of several, and so is part luck: biased upward. Leaves
    ``scores.json`` at the top of the run folder: "controller" and "random" as in a round's, and "how" they were taken.
    Returns whether there was anything to do.
    """
    run, config = current.run, current.config
    fresh = config.evaluate.model_copy(update={"seed": config.evaluate.seed + config.evaluate.episodes})
    how = {
        "models": {name: file_fingerprint(path) for name, path in run.models().items()},
        "env": config.env.identity(),
        "evaluate": fresh.identity(),
        "precision": config.vision.precision,
    }
    path = scores_file(run)
    if path.exists() and read_json(path)["how"] == how:
        return False
    scores = {
        "controller": _plain(evaluate_agent(make_agent(run, config), config.env, fresh, fleet=current.fleet)),
        "random": _plain(evaluate_random(config.env, fresh, fleet=current.fleet)),
    }
    numbers = {f"{name}_{key}": scores[name][key] for name in scores for key in ("mean", "std")}
    current.recorder.log("evaluate.chosen", 0, current.index, **numbers)
    write_json(path, scores | {"round": current.index, "how": how})
    return True


def assess_folder(folder: RunFolder, config: Config, video: Path | None = None) -> dict[str, Any]:
    """Score the controller in ``folder`` as ``config.evaluate`` says, beside a random policy; nothing is kept."""
    agent = make_agent(folder, config)
    scores = {
        "controller": _plain(evaluate_agent(agent, config.env, config.evaluate)),
        "random": _plain(evaluate_random(config.env, config.evaluate)),
    }
    if video is not None:
        record_video(agent, config.env, scores["controller"]["seeds"][0], video, config.evaluate.max_steps)
    return scores


def _part(path: Path, compute: Callable[[], Any]) -> Any:
    """What ``path`` holds, computed and written first where it is not there: a kill costs one part, not all."""
    if not path.exists():
        write_json(path, compute())
    return read_json(path)


def _plain(scores: Scores) -> dict[str, Any]:
    return {
        "mean": float(scores.mean),
        "std": float(scores.std),
        "standard_error": float(scores.standard_error),
        "episodes": len(scores.returns),
        "returns": [float(value) for value in scores.returns],
        "lengths": [int(value) for value in scores.lengths],
        "seeds": [int(value) for value in scores.seeds],
    }


def _score(current: Round, params: Tensor | None = None) -> dict[str, Any]:
    agent = make_agent(current.folder, current.config, params)
    return _plain(evaluate_agent(agent, current.config.env, current.config.evaluate, fleet=current.fleet))


def _random_score(current: Round) -> dict[str, Any]:
    """The random policy's score; an earlier round's where it was measured in the same way, which gives the same."""
    env, settings = current.config.env, current.config.evaluate
    how = {"env": env.identity(), "evaluate": settings.identity()}
    for index in range(current.index):
        path = parts_folder(current.run.iteration(index)) / "random.json"
        if path.exists() and (earlier := dict(read_json(path)))["how"] == how:
            return earlier
    return _plain(evaluate_random(env, settings, fleet=current.fleet)) | {"how": how}


def _dream_winner_score(current: Round) -> dict[str, Any] | None:
    """The dream phase's own winner, where the real phase came out with another one."""
    result = ControllerResult.load(evolution_result(current.folder))
    winner = result.winners.get("dream")
    if winner is None or torch.equal(winner, result.params):
        return None
    return _score(current, winner)


def _dream_prediction(current: Round) -> dict[str, Any]:
    """What the dream says that the controller is worth, over as many steps as it is scored for in the real world.

    From episode starts only, as real episodes begin there.
    """
    settings = current.config.controller
    _, m = load_models(current)
    spec, params = load_controller(current.folder.controller)
    steps, episodes = current.config.evaluate.max_steps, settings.final_dream_episodes
    out = engine_of(current, m, spec).rollout(
        params.unsqueeze(0),
        dream_starts(current, m, "prediction", settings.starts, 0.0),
        episodes=episodes,
        max_steps=steps,
        temperature=settings.temperature,
        seed=current.seed("prediction"),
        reward=settings.reward,
        done=settings.done,
    )
    returns, lengths = out.returns[0].double().cpu(), out.lengths[0].double().cpu()
    return {
        "mean": float(returns.mean()),
        "std": float(returns.std(unbiased=episodes > 1)),
        "episodes": episodes,
        "max_steps": steps,
        "mean_length": float(lengths.mean()),
        "temperature": settings.temperature,
    }


def _memory_fidelity(current: Round) -> dict[str, Any]:
    _, m = load_models(current)
    latents = Latents.open(current.folder.latents)
    _, held_out = latents.split(current.config.memory.holdout)
    return memory_fidelity(m, latents, held_out, current.seed("memory fidelity"))


def _correlation(current: Round) -> dict[str, Any]:
    settings, folder = current.config.fidelity, current.folder
    vae, m = load_models(current)
    spec, best = load_controller(folder.controller)
    result = ControllerResult.load(evolution_result(folder))
    mix = controller_mix(
        best,
        result.history.get("dream"),
        count=settings.controllers,
        sigma=current.config.controller.sigma,
        seed=current.seed("mix"),
    )
    steps = settings.dream_steps or current.config.controller.dream_steps
    dream = dream_fitness(current, m, spec, "fidelity", settings.dream_episodes, steps)
    real = real_fitness(current, vae, m, spec, "fidelity", settings.real_episodes, settings.real_steps)
    with closing(real):
        return dream_real_correlation(dream, real, mix, resamples=settings.resamples, seed=current.seed("bootstrap"))


def _log_fidelity(current: Round, fidelity: Mapping[str, Any]) -> None:
    """Record the scalars as one row and each curve as a row a point.

    The step of "fidelity.open_loop" is how many steps ahead, that of "fidelity.reward_calibration" the bin from 0.
    """
    memory, log = fidelity["memory"], current.recorder.log
    scalars = {name: value for name, value in memory.items() if value is None or isinstance(value, (int, float))}
    log("fidelity", 0, current.index, **scalars, **correlation_scalars(fidelity["correlation"]))
    curves = {name.removeprefix("open_loop_"): memory[name] for name in memory if name.startswith("open_loop_")}
    del curves["starts"]
    for place, horizon in enumerate(curves.pop("horizon")):
        row = {name: curve[place] for name, curve in curves.items()}
        log("fidelity.open_loop", horizon, current.index, **row)
    bins = {name.removeprefix("reward_bins_"): memory[name] for name in memory if name.startswith("reward_bins_")}
    for place in range(len(bins["count"])):
        row = {name: curve[place] for name, curve in bins.items()}
        log("fidelity.reward_calibration", place, current.index, **row)
