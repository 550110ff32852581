"""The end of a run: the published policy's score, a film, and how far the dream ranks controllers as the road does."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from wm_engine.envs import Task
from wm_engine.files import read_json, write_json
from wm_engine.judge.dream_real_correlation import controller_mix, correlation_scalars, dream_real_correlation
from wm_engine.judge.model_errors import model_errors
from wm_engine.judge.settings import JudgeSettings
from wm_engine.learn.evolution import Evolution
from wm_engine.learn.evolve.fitness import RealFitness
from wm_engine.learn.plan import PlanningPolicy, PlanSettings
from wm_engine.models.latents import LatentCache
from wm_engine.policies.controller import Controllers
from wm_engine.real.scoring import record_film, score_baselines, score_policy, score_random
from wm_engine.run.card import write_card
from wm_engine.run.published import LoadedRun, load_run, read_published
from wm_engine.run.state import LoopState
from wm_engine.run.steps import Driving, make_problem

_log = logging.getLogger(__name__)

# Episodes that M is measured on, and that its baselines are fitted on.
_MOST_EPISODES = 64


def finish(state: LoopState) -> None:
    """Score what is published, unless that is done.

    Leaves ``scores.json``: "controller", "random" and "baselines" (those of the task, and its peers, by name), on
    episodes that no choice among rounds saw; "how" they were taken; "memory" and "correlation", how far M and the dream
    can be trusted; "planner", what planning in M scores on the first of the policy's episodes; "published", where the
    policy was trained, how it was chosen, after how many real frames and minutes. Of imported episodes, which have no
    environment, it holds "memory" and "published" alone.
    """
    folder, config = state.folder, state.config
    models = read_published(folder)["digests"]
    scored = {"models": models, "env": config.env.identity(), "evaluate": config.evaluate.identity()}
    unlearnt = {name: value for name, value in scored.items() if name != "models"}
    task = config.env.found()
    names = [*task.baselines, *task.plans, *(task.peers if config.evaluate.peers else ())]
    beside = unlearnt | {"names": names, "frames": read_published(folder)["learning_frames"]}
    trusted = {"models": models, "judge": config.judge.identity(), "episodes": len(state.store)}
    parts: dict[str, Any] = read_json(folder.scores) if folder.scores.exists() else {}
    run = load_run(folder.root)
    measures = (
        ("controller", _score, scored),
        ("random", _score_random, unlearnt),
        ("baselines", _score_baselines, beside),
        ("memory", _memory, trusted),
        ("correlation", _correlation, trusted),
        ("planner", _planner, trusted | scored),
    )
    # Without an environment there is nothing to score in, and M is measured alone.
    for name, measure, how in measures if task.simulated else [part for part in measures if part[0] == "memory"]:
        if name not in parts or parts["how"].get(name) != how:
            parts[name] = measure(state, run)
            parts["how"] = parts.get("how", {}) | {name: how}
            write_json(folder.scores, parts)
    planner = parts.get("planner")
    if planner is not None:
        beside = {name: planner[name] for name in ("mean", "std", "standard_error", "episodes")}
        state.recorder.log("planner", 0, state.place.round, **beside)
    published = read_published(folder)
    parts["published"] = {name: value for name, value in published.items() if name != "digests"}
    write_json(folder.scores, parts)
    write_card(folder)
    if not task.simulated:
        return
    if config.evaluate.film and not _is_of(folder.film, models):
        record_film(run.agent(), run.controller, config.env, config.evaluate.seed, folder.film)
        write_json(folder.film.with_suffix(".json"), models)
    state.recorder.log(
        "final", 0, published["round"], controller=parts["controller"]["mean"],
        controller_standard_error=parts["controller"]["standard_error"], random=parts["random"]["mean"],
        learning_frames=published["learning_frames"], minutes=published["minutes"],
    )  # fmt: skip


def _is_of(film: Path, models: dict[str, str]) -> bool:
    """Say whether a film is there, and of these models."""
    note = film.with_suffix(".json")
    return film.exists() and note.exists() and read_json(note) == models


def _score(state: LoopState, run: LoadedRun) -> dict[str, Any]:
    return score_policy(run.agent(), run.controller, state.config.env, state.config.evaluate, state.fleet).plain()


def _score_random(state: LoopState, run: LoadedRun) -> dict[str, Any]:
    return score_random(state.config.env, state.config.evaluate, state.fleet).plain()


def _score_baselines(state: LoopState, run: LoadedRun) -> dict[str, Any]:
    return score_baselines(
        state.config.env, state.config.evaluate, state.fleet, run.published["learning_frames"], state.seed("peers")
    )


def _planner(state: LoopState, run: LoadedRun) -> dict[str, Any] | None:
    """Score a planner in the published M; None where none is asked for."""
    s, config = state.config.judge, state.config
    if not s.planner_episodes:
        return None
    rules = config.controller.dream_rules(state.place.round)
    planner = judging_planner(s, state.task, rules.temperature, state.seed("planner"))
    how = config.evaluate.model_copy(update={"episodes": s.planner_episodes})
    return score_policy(run.agent(), planner, config.env, how, state.fleet).plain()


def judging_planner(s: JudgeSettings, task: Task, temperature: float, seed: int) -> PlanningPolicy:
    """Make the planner that judges M; ``temperature``: of the dreams that it plans in."""
    plan = PlanSettings(
        horizon=s.planner_horizon,
        candidates=s.planner_candidates,
        elites=max(2, s.planner_candidates // 8),
        every=min(s.planner_every, s.planner_horizon),
        temperature=temperature,
    )
    return PlanningPolicy(plan, task.spaces, task.reward, seed)


def _memory(state: LoopState, run: LoadedRun) -> dict[str, Any] | None:
    replay = state.replay()
    others = replay.training[:: math.ceil(len(replay.training) / _MOST_EPISODES)]
    latents = LatentCache(run.vision, state.store, state.device, drawn=run.config.vision.drawn)
    held, rest = ([latents.read(index) for index in part] for part in (replay.held_out[-_MOST_EPISODES:], others))
    return model_errors(run.world, held, rest, state.seed("model errors")) if held and rest else None


def _correlation(state: LoopState, run: LoadedRun) -> dict[str, Any] | None:
    """Rank a mix of controllers both ways; None where the policy is no controller, or none is to be ranked."""
    s, learner = state.config.judge, state.learner
    if not s.controllers or not isinstance(learner, Evolution) or not isinstance(run.controller, Controllers):
        return None
    mix = controller_mix(
        run.controller.params[0], None, count=s.controllers, sigma=learner.settings.sigma, seed=state.seed("mix")
    )
    problem = make_problem(state)
    steps = learner.settings.steps_in(max(state.place.round - 1, 0))
    dream = learner.dream_fitness(problem, s.dream_episodes, steps)
    real = RealFitness(
        Driving(state), learner.spec, episodes=s.real_episodes, max_frames=s.real_frames, seed=state.seed("correlation")
    )
    found = dream_real_correlation(dream, real, mix, resamples=s.resamples, seed=state.seed("bootstrap"))
    state.recorder.log("correlation", 0, state.place.round, **correlation_scalars(found))
    return found
