"""The diagnosis of a run: its published policy drives, M is held to what it met, and the folder keeps the findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wm_engine.data.sequences import EncodedEpisode
from wm_engine.data.store import RolloutStore
from wm_engine.dream.imagination import imagine
from wm_engine.dream.starts import states_at
from wm_engine.dream.types import Starts
from wm_engine.envs import check_seeds
from wm_engine.files import read_json, save_tensors, write_json
from wm_engine.judge.calibration import draw_starts, driven_actions, paid_over, summed_rewards
from wm_engine.judge.diagnosis import Circumstances, Diagnosis, diagnose, examine
from wm_engine.machine import available_cpus, one_torch_thread, use_threads
from wm_engine.models.latents import LatentCache, encode
from wm_engine.policies.base import EpisodicPolicy, OnLanes, Policy
from wm_engine.real.driving import DrivenBatch, EpisodeBatch, PolicyDriver, RunnerRecipe
from wm_engine.real.scoring import EvaluateSettings, Scores, score_policy
from wm_engine.recorder import read_metrics
from wm_engine.rng import derive_seed
from wm_engine.run.final import judging_planner
from wm_engine.run.published import LoadedRun, load_run

# Neither judged nor scored episodes: those chose what is published, or report it.
FIRST_SEED = 3_000_000
_FIRST_EPISODES = 16
_LATEST_GENERATIONS = 50
_STRIPS = 2
ROAD, VIEW, DREAM, REPLAY = "real", "V's view of it", "dream of the policy", "dream under the driven actions"


def diagnose_run(root: Path, *, episodes: int = 8, planner_episodes: int = 0) -> Diagnosis:
    """Say what is at fault in a run's dream, and keep it in the run folder; the run itself is only read.

    Drives ``episodes`` real episodes with the published policy, without noise, that nothing learns from, and
    ``planner_episodes`` of them by planning in M. Leaves ``diagnosis.json``: "words", "faults", "evidence",
    "circumstances", "models", of which the digests are, and "frames", driven for it; and ``diagnosis.safetensors``: of
    the worst episodes what the road showed, and the latents of V's view and of two dreams.

    Raises what :func:`wm_engine.run.published.load_run` raises.
    """
    run = load_run(root)
    config = run.config
    use_threads(config.threads)
    seeds = check_seeds(range(FIRST_SEED, FIRST_SEED + episodes))
    driven = _drive(run, seeds)
    encoded = [_encoded(run, driven, lane) for lane in range(episodes)]
    rules = config.controller.dream_rules(int(run.published["round"]))
    dream_steps, temperature = rules.steps or config.judge.horizon, rules.temperature
    survival = rules.survival(config.env.found().reward)
    seed = derive_seed(config.seed, "diagnosis")
    evidence = examine(
        run.world, run.controller, encoded, _first_episodes(run), horizon=dream_steps, starts=config.judge.starts,
        temperature=temperature, seed=seed, survival=survival,
    )  # fmt: skip
    controller = planner = None
    if planner_episodes:
        judge = judging_planner(config.judge, config.env.found(), temperature, seed)
        how = EvaluateSettings(episodes=planner_episodes, seed=FIRST_SEED, backend=config.env.backend)
        planner = score_policy(run.agent(), judge, config.env, how)
        controller = Scores.of(driven.trajectories)
    circumstances = _circumstances(run, dream_steps, temperature, survival, controller, planner)
    found = diagnose(evidence, circumstances)
    told, tensors = _strips(run, driven, encoded, dream_steps, temperature, seed, survival)
    frames = sum(one.frames for one in driven.trajectories) + (int(planner.frames.sum()) if planner else 0)
    save_tensors(run.folder.diagnosis.with_suffix(".safetensors"), tensors, {"kind": "diagnosis"})
    write_json(
        run.folder.diagnosis,
        {
            "models": run.published["digests"],
            "words": found.words,
            "faults": [asdict(fault) for fault in found.faults],
            "settings": found.settings,
            "evidence": asdict(evidence),
            "circumstances": asdict(circumstances),
            "planner": planner.plain() if planner else None,
            "frames": frames,
            "strips": told,
        },
    )
    return found


def _drive(run: LoadedRun, seeds: Sequence[int]) -> DrivenBatch:
    """Drive all episodes at once, and keep what was seen."""
    config, count = run.config, len(seeds)
    driver = PolicyDriver(OnLanes.everywhere(run.controller, count), count)
    batch = EpisodeBatch(seeds, driver, config.env.frame_limit, recorded=tuple(range(count)))
    runner = RunnerRecipe(config.env, run.agent(), one_thread=True).build(available_cpus())
    try:
        return runner(batch)
    finally:
        runner.close()


def _encoded(run: LoadedRun, driven: DrivenBatch, lane: int) -> EncodedEpisode:
    trajectory = driven.trajectories[lane]
    with one_torch_thread():
        mu, logvar = encode(run.vision, torch.from_numpy(driven.observations[lane]), run.world.device)
    actions, rewards = torch.from_numpy(trajectory.actions), torch.from_numpy(trajectory.rewards)
    return EncodedEpisode(mu, logvar, actions, rewards, trajectory.terminated)


def _first_episodes(run: LoadedRun) -> list[EncodedEpisode]:
    """Read some of the first round's episodes, which M has known longest."""
    store = RolloutStore.open(run.folder.rollouts, create=False)
    latents = LatentCache(run.vision, store, run.world.device, drawn=run.config.vision.drawn)
    return [latents.read(index) for index in list(store.episodes(0))[:_FIRST_EPISODES]]


def _circumstances(
    run: LoadedRun, dream_steps: int, temperature: float, survival: bool, controller: Scores | None,
    planner: Scores | None,
) -> Circumstances:  # fmt: skip
    config, rounds = run.config, int(run.published["round"]) + 1
    rows = [row for row in read_metrics(run.folder.metrics / "metrics.jsonl") if row["round"] < rounds]
    learnt = {row["round"] for row in rows if row["stage"] == "memory"}
    bound = getattr(config.controller, "sigma_max", None)
    sigmas = [row["sigma"] for row in rows if row["stage"] == "controller" and row.get("sigma") is not None]
    latest = sigmas[-_LATEST_GENERATIONS:]
    correlation = _correlation(run)
    return Circumstances(
        dream_steps=dream_steps,
        stateless=not config.controller.burn_in and bool(run.world.state_size),
        rounds=rounds,
        learning_rounds=len(learnt),
        temperature=temperature,
        end_weight=getattr(config.memory, "end_weight", None),
        at_bound=float(np.mean([sigma >= 0.95 * bound for sigma in latest])) if bound and latest else 0.0,
        rank=_interval(correlation),
        rank_near=_interval(correlation.get("groups", {}).get("around the best", {})),
        controller=(controller.mean, controller.standard_error) if controller else None,
        planner=(planner.mean, planner.standard_error) if planner else None,
        survival=survival,
    )


def _correlation(run: LoadedRun) -> Mapping[str, Any]:
    """Read how dream and road ranked controllers; empty where that is not known of the published models."""
    if not run.folder.scores.exists():
        return {}
    scores: Mapping[str, Any] = read_json(run.folder.scores)
    if scores.get("correlation") is None or scores["how"]["correlation"].get("models") != run.published["digests"]:
        return {}
    found: Mapping[str, Any] = scores["correlation"]
    return found


def _interval(found: Mapping[str, Any]) -> tuple[float, float, float] | None:
    numbers = [found.get(name) for name in ("rho", "low", "high")]
    return None if None in numbers else (numbers[0], numbers[1], numbers[2])  # type: ignore[return-value]


def _strips(
    run: LoadedRun, driven: DrivenBatch, encoded: Sequence[EncodedEpisode], horizon: int, temperature: float,
    seed: int, survival: bool,
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:  # fmt: skip
    """Lay the worst episodes beside dreams of them, from where the promise and the road part most."""
    worst = sorted(range(len(encoded)), key=lambda lane: driven.trajectories[lane].total_reward)[:_STRIPS]
    told: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for place, lane in enumerate(worst):
        episode = encoded[lane]
        length = min(horizon, episode.steps)
        owners, steps = draw_starts([episode], length, run.config.judge.starts, seed)
        begin = states_at(run.world, [episode], owners, steps, seed)
        dreams = imagine(run.world, _actor(run.controller, episode, steps, length), begin, length, temperature, seed,
                         survival=survival)  # fmt: skip
        paid = paid_over(summed_rewards([episode], survival), owners, steps, length)
        at = int(np.argmax(dreams.returns().numpy() - paid))
        start = int(steps[at])
        stop = min(start + length, episode.steps)
        one = Starts(
            episode.mu[start : start + 1], *(None if x is None else x[at : at + 1] for x in (begin.h, begin.c))
        )
        rows: dict[str, Tensor] = {
            ROAD: torch.from_numpy(driven.observations[lane][start : stop + 1]),
            VIEW: episode.mu[start : stop + 1],
        }
        rewards, lengths = {ROAD: float(paid[at]), VIEW: float(paid[at])}, {ROAD: stop - start, VIEW: stop - start}
        actions = driven_actions([episode], np.zeros(1, np.int64), np.array([start]), stop - start)
        for name, actor in ((DREAM, _actor(run.controller, episode, np.array([start]), length)),
                            (REPLAY, actions.__getitem__)):  # fmt: skip
            alone = imagine(run.world, actor, one, stop - start, temperature, seed, survival=survival)
            rows[name], rewards[name] = alone.seen[:, 0], float(alone.returns()[0])
            lengths[name] = int(alone.live.sum())
        tensors |= {f"{place}/{name}": value.contiguous() for name, value in rows.items()}
        trajectory = driven.trajectories[lane]
        told.append({
            "seed": trajectory.seed, "total_reward": trajectory.total_reward, "start": start, "rewards": rewards,
            "lengths": lengths, "rows": list(rows),
        })  # fmt: skip
    return told, tensors


def _actor(policy: Policy, episode: EncodedEpisode, steps: np.ndarray, horizon: int) -> Any:
    """Return who acts in dreams from these steps: the policy, or of one that plans the actions that it planned."""
    if isinstance(policy, EpisodicPolicy):
        return driven_actions([episode], np.zeros(len(steps), np.int64), steps, horizon).__getitem__
    return OnLanes.everywhere(policy, len(steps))
