"""The steps of a round: what each does, in units of work that a kill can come between.

    drive ─► see ─► remember ─► dream ─► judge

Each step is a generator over units. Between two of them the state is whole: it may be written, and a run that goes on
from there ends with the same bits. So whatever is drawn in a unit is keyed by the round and the unit's number.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from wm_engine.cluster import CrossoverRecipe, DreamRecipe, FleetEngine
from wm_engine.data.replay import draw_frames
from wm_engine.data.sequences import EncodedEpisode, cut_windows
from wm_engine.data.store import EpisodeWriter
from wm_engine.dream import DreamEngine
from wm_engine.dream.engine import fastest_backend
from wm_engine.dream.starts import recorded_starts
from wm_engine.envs import BatchedEnv, Driver
from wm_engine.errors import ConfigError, MissingDependencyError, RunMismatchError
from wm_engine.files import read_json, write_json
from wm_engine.judge.calibration import calibrate
from wm_engine.judge.model_errors import one_step_errors
from wm_engine.learn.base import Dreamer, Problem
from wm_engine.machine import choose_precision
from wm_engine.models.base import WorldModel
from wm_engine.policies.base import OnLanes, Policy
from wm_engine.policies.controller import ControllerSpec
from wm_engine.real.agent import Agent
from wm_engine.real.driving import EpisodeBatch, PolicyDriver
from wm_engine.real.exploration import NoisyAgent, PlannedActions
from wm_engine.real.scoring import EvaluateSettings, score_policy
from wm_engine.rng import episode_seeds, keyed_generator
from wm_engine.run.published import count_judged, publish
from wm_engine.run.state import LoopState

_log = logging.getLogger(__name__)

# Frames that V's batches are cut from at a time: 200 MB of pictures.
_FRAMES_AT_ONCE = 16384
_MEASURED_FRAMES = 512
_MEASURED_EPISODES = 16
# Rewards beyond these quantiles do not widen the scale that M learns rewards in; and no scale is narrower, beside the
# rewards' own size, than rounding can tell from nothing.
_COMMON = (0.005, 0.995)
_LEAST_SCALE = 1e-4

Step = Callable[[LoopState], Iterator[None]]


@dataclass(frozen=True)
class _Exploring:
    """Makes the driver of a batch of a round's episodes: a policy with noise, or the task's random plans."""

    policy: Policy | None
    noise: float
    seed: int
    episodes: range
    frames: int
    round: int

    def __call__(self, env: BatchedEnv, agent: Agent | None) -> Driver:
        if self.policy is None or agent is None:
            return PlannedActions(env.task, env.action_repeat, self.seed, self.episodes, self.frames, self.round)
        driver = agent.with_policy(OnLanes(self.policy, torch.arange(self.episodes.start, self.episodes.stop)))
        driver.begin(len(self.episodes))
        actions = env.spaces.actions
        return NoisyAgent(
            driver, actions, env.action_repeat, self.noise, self.seed, self.episodes, self.frames, self.round
        )


def drive(state: LoopState) -> Iterator[None]:
    """Drive the round's episodes into the store, those that are not there yet; then hold the dream to them.

    In the first round the task's random plans drive, later what the learner would try next, with exploration noise. A
    batch that was cut is driven again whole, and only its missing episodes are written. Without an environment, what
    was imported is all there is.
    """
    s, env, round_index = state.config.drive, state.config.env, state.place.round
    if not state.task.simulated:
        state.place.stored_frames = state.store.total_frames(round_index)
        yield
        return
    first = round_index == 0
    count, limit = (s.first_episodes, s.first_frames) if first else (s.episodes, s.frames or env.frame_limit)
    policy = None if first else state.learner.candidates(count, state.seed("candidates"))
    agent = None if first else state.agent()
    seeds, key = episode_seeds(state.seed("episodes"), count), state.seed("exploration")
    there = sum(state.store.info(index).round == round_index for index in state.store.episodes())
    lanes = min(env.num_envs, count)
    plan = []
    for begin in range(there - there % lanes, count, lanes):
        episodes = range(begin, min(begin + lanes, count))
        driver = _Exploring(policy, s.noise, key, episodes, limit, round_index)
        wanted = tuple(episode - begin for episode in episodes if episode >= there)
        plan.append(EpisodeBatch(seeds[begin : episodes.stop], driver, limit, 0 if first else s.patience, wanted))

    def writers(batch: EpisodeBatch) -> Mapping[int, EpisodeWriter]:
        name = "random" if first else "learner"
        return {lane: state.store.writer(batch.seeds[lane], name, round_index) for lane in batch.recorded}

    try:
        for _ in state.runners(agent).drive(plan, writers):
            yield
    except BaseException:
        state.store.abandon()
        raise
    state.place.stored_frames = state.store.total_frames(round_index)
    if policy is not None:
        _forecast(state, policy)
    yield


def _forecast(state: LoopState, policy: Policy) -> None:
    """Measure V, M and the dream's promise on the newly driven episodes, before anything has learnt them."""
    judge, round_index = state.config.judge, state.place.round
    newest = state.replay().newest
    infos = [state.store.info(index) for index in newest]
    returns = np.array([info.total_reward for info in infos])
    state.recorder.log(
        "drive", round_index, round_index,
        return_mean=returns.mean(), return_best=returns.max(), return_of_mean=returns[0],
        frames_mean=float(np.mean([info.frames for info in infos])),
        terminated=float(np.mean([info.terminated for info in infos])),
        learning_frames=state.place.learning_frames,
    )  # fmt: skip
    rng = np.random.default_rng(state.seed("measured frames"))
    frames = torch.from_numpy(draw_frames(state.store, newest, rng, _MEASURED_FRAMES)).to(state.device)
    with torch.inference_mode():
        seen = state.vision.model.eval().measure(frames)
    episodes = [state.latents.read(index) for index in newest]
    errors = one_step_errors(state.world, episodes[:_MEASURED_EPISODES], state.seed("errors"))
    numbers = {f"new_{name}": value for name, value in {**seen, **errors}.items()}
    rules = state.config.controller.dream_rules(round_index)
    found = calibrate(
        state.world, policy, episodes, horizon=judge.horizon, starts=judge.starts, temperature=rules.temperature,
        seed=state.seed("calibration"), survival=rules.survival(state.task.reward), done=rules.done,
    )  # fmt: skip
    if found is not None:
        for length, promised, paid in zip(found.horizons, found.promised, found.paid, strict=True):
            state.recorder.log_point("calibration", int(length), round_index, promised=promised, paid=paid)
        numbers |= {"promised": found.promised[-1], "paid": found.paid[-1], "rank": found.rank}
    state.recorder.log("forecast", round_index, round_index, **numbers)


def see(state: LoopState) -> Iterator[None]:
    """Let V go on learning, from new and old episodes; what it has encoded before is forgotten."""
    s, place = state.config.vision, state.place
    steps = s.steps_in(place.round)
    vision, replay = state.vision.model, state.replay()
    if not vision.learns:
        if place.round == 0 and place.done == 0:
            rng = np.random.default_rng(state.seed("vision"))
            vision.fit(torch.from_numpy(draw_frames(state.store, replay.training, rng, _FRAMES_AT_ONCE)))
            state.latents.clear()
            place.vision_steps += 1
        yield
        return
    per_block = max(1, _FRAMES_AT_ONCE // s.batch_size)
    block, frames = -1, np.zeros(0)
    sums: dict[str, float] = {}
    for step in range(place.done, steps):
        if step // per_block != block:
            block = step // per_block
            count = min(steps - block * per_block, per_block) * s.batch_size
            frames = _mixed_frames(state, count, block)
        vision.train()
        at = (step % per_block) * s.batch_size
        batch = torch.from_numpy(frames[np.arange(at, at + s.batch_size) % len(frames)]).to(state.device)
        value, scalars = vision.loss(batch, keyed_generator(state.seed("vision"), step), s)
        state.vision.step(value, s.learning_rate_of(place.round), s.clip)
        place.vision_steps += 1
        _add(sums, scalars)
        yield
    if steps:
        vision.eval()
        state.latents.clear()
        with torch.inference_mode():
            rng = np.random.default_rng(state.seed("measured frames", "held out"))
            held = torch.from_numpy(draw_frames(state.store, replay.held_out, rng, _MEASURED_FRAMES))
            measured = vision.measure(held.to(state.device))
        numbers = {f"held_out_{name}": value for name, value in measured.items()}
        state.recorder.log("vision", place.vision_steps, place.round, **_means(sums), **numbers)
    yield


def _mixed_frames(state: LoopState, count: int, block: int) -> np.ndarray:
    """Observations for V's batches, shuffled: a share of the newest episodes, the rest of all."""
    s, training = state.config.vision, state.replay().training
    rng = np.random.default_rng([state.seed("frames"), block])
    recent = draw_frames(state.store, training[-s.recent_episodes :], rng, round(count * s.recent))
    parts = [recent] if len(recent) else []
    if count > round(count * s.recent):
        parts.append(draw_frames(state.store, training, rng, count - round(count * s.recent)))
    frames = np.concatenate(parts)
    return frames[rng.permutation(len(frames))]


def remember(state: LoopState) -> Iterator[None]:
    """Let M go on learning, a good part of each batch from the newest episodes."""
    s, place = state.config.memory, state.place
    steps = s.steps_in(place.round)
    world, replay = state.memory.model, state.replay()
    if steps and place.done == 0:
        world.scale_rewards(*_reward_units(state))
    sums: dict[str, float] = {}
    for step in range(place.done, steps):
        world.train()
        rng = np.random.default_rng([state.seed("sequences"), step])
        chosen = replay.draw(rng, s.sequences, s.recent, s.recent_episodes)
        batch = cut_windows([_as_learnt(state, index) for index in chosen], s.sequence_length, rng).to(state.device)
        value, scalars = world.loss(batch, keyed_generator(state.seed("memory"), step), s)
        state.memory.step(value, s.learning_rate_of(place.round), s.clip)
        place.memory_steps += 1
        _add(sums, scalars)
        yield
    state.world = world.finished()
    if steps:
        held = [state.latents.read(index) for index in replay.held_out[-_MEASURED_EPISODES:]]
        errors = one_step_errors(state.world, held, state.seed("errors"))
        numbers = {f"held_out_{name}": value for name, value in errors.items()}
        state.recorder.log("memory", place.memory_steps, place.round, **_means(sums), **numbers)
    yield


def _as_learnt(state: LoopState, index: int) -> EncodedEpisode:
    """Read an episode with the rewards that M is to learn."""
    return replace(state.latents.read(index), rewards=torch.from_numpy(_learnt_rewards(state, index)))


def _learnt_rewards(state: LoopState, index: int) -> np.ndarray:
    """Return an episode's rewards float32 [T] as the settings let M learn them."""
    s = state.config.memory
    _, rewards = state.store.actions_and_rewards(index)
    if s.priced_rewards and state.task.price is not None:
        rewards = state.task.price(rewards, state.config.env.repeat)
    if not s.end_rewards and state.store.info(index).terminated:
        # The head then learns nothing of the end: what is usual stands in its place.
        rewards = np.append(rewards[:-1], np.median(rewards)).astype(np.float32)
    return np.clip(rewards, -s.reward_clip, s.reward_clip) if s.reward_clip else rewards


def _reward_units(state: LoopState) -> tuple[float, float]:
    """The center and the scale that M learns rewards in: mean and deviation of the common ones.

    Neither their unit nor their offset nor a rare giant then decides what is learnt of the rest.
    """
    episodes = state.replay().training
    rewards = np.concatenate([_learnt_rewards(state, index) for index in episodes]).astype(np.float64)
    low, high = np.quantile(rewards, _COMMON)
    common = np.clip(rewards, low, high)
    if common.std() == 0.0:  # rewards so rare that they lie beyond the quantiles
        common = rewards
    floor = _LEAST_SCALE * float(np.abs(rewards).max())
    scale = max(float(common.std()), floor)
    return float(common.mean()), scale if scale > 0.0 else 1.0


def dream(state: LoopState) -> Iterator[None]:
    """Let the learner go on, in dreams from recorded states, or in the real environment where it was told to."""
    place = state.place
    units = state.learner.units(place.round)
    if units and place.done < units:
        problem = make_problem(state, Driving(state) if state.config.controller.wants_real() else None)
        for numbers in state.learner.learn(problem, place.done):
            place.units += 1
            state.recorder.log("controller", place.units, place.round, **numbers)
            yield
    yield


def make_problem(state: LoopState, real: Driving | None = None) -> Problem:
    """Put together what a learner is given in the present round."""
    s = state.config.controller
    rng = np.random.default_rng(state.seed("start episodes"))
    episodes = [state.latents.read(index) for index in state.replay().spread(rng, s.start_episodes)]
    starts = recorded_starts(state.world, episodes, s.starts, s.mid_fraction, state.seed("starts"), s.burn_in)
    return Problem(
        state.place.round, state.seed("learner"), state.world, starts,
        lambda spec, world=None: make_dreamer(state, spec, world), real,
    )  # fmt: skip


class Driving:
    """The real environment, as learners are handed it."""

    def __init__(self, state: LoopState) -> None:
        self._state, self.frames = state, 0
        self._runners = state.runners(state.agent())

    def returns(
        self, policy: Callable[[np.ndarray], Policy], seeds: list[int], max_frames: int, patience: int
    ) -> np.ndarray:
        """See :class:`wm_engine.learn.base.RealWorld`."""
        lanes = self._state.config.env.num_envs
        numbers = [np.arange(first, min(first + lanes, len(seeds))) for first in range(0, len(seeds), lanes)]
        batches = [
            EpisodeBatch([seeds[i] for i in part], PolicyDriver(policy(part), len(part)), max_frames, patience)
            for part in numbers
        ]
        driven = [one for batch in self._runners.drive(batches) for one in batch]
        frames = sum(one.frames for one in driven)
        self.frames += frames
        self._state.place.ranking_frames += frames
        return np.array([np.nan if one.failed else one.total_reward for one in driven], dtype=np.float32)


def judge(state: LoopState) -> Iterator[None]:
    """Score the present policy for real now and then, and publish it where it is to be.

    The scores choose among rounds where ``judge.choose`` says so; they rank no candidate and teach nothing.
    """
    s, place = state.config.judge, state.place
    last = place.round == state.config.rounds - 1
    if place.done == 0 and state.task.simulated and s.every and ((place.round + 1) % s.every == 0 or last):
        policy = state.learner.policy()
        agent = state.agent()
        how = EvaluateSettings(episodes=s.episodes, seed=s.seed, backend=state.config.env.backend)
        scores = score_policy(agent, policy, state.config.env, how, state.fleet, state.runners(agent))
        place.judged_frames += int(scores.frames.sum())
        place.scores.append({
            "round": place.round,
            "mean": scores.mean,
            "standard_error": scores.standard_error,
            "episodes": s.episodes,
            "frames": place.learning_frames,
        })  # fmt: skip
        state.recorder.log(
            "judge", place.round, place.round, mean=scores.mean, std=scores.std, standard_error=scores.standard_error,
            episodes=s.episodes, learning_frames=place.learning_frames,
        )  # fmt: skip
        _log.info("round %d: %.0f ± %.0f over %d real episodes", place.round, scores.mean, scores.std, s.episodes)
        best = max(place.scores, key=lambda score: (score["mean"], -score["round"]))
        if s.choose == "last" or best["round"] == place.round:
            publish(state)
        else:
            count_judged(state)
    elif last and place.done == 0:
        publish(state)
    yield


STEPS: tuple[tuple[str, Step], ...] = (
    ("drive", drive),
    ("see", see),
    ("remember", remember),
    ("dream", dream),
    ("judge", judge),
)
"""A round, in order."""


def make_engine(
    state: LoopState, world: WorldModel, spec: ControllerSpec, crossovers: Mapping[str, int] | None = None
) -> DreamEngine:
    """Make the engine on this machine that the configuration asks for; ConfigError or MissingDependencyError."""
    settings, device = state.config.dream, state.device
    elsewhere = [name for name in settings.devices if name.partition(":")[0] != device.type]
    if elsewhere:
        raise ConfigError(f"dream.devices: must be of the kind of device, {device}, but named {', '.join(elsewhere)}")
    precision = choose_precision("dream.precision", settings.precision, device)
    try:
        return DreamEngine(
            world, spec, device, settings.backend, precision, devices=settings.devices or None, crossovers=crossovers
        )
    except ValueError as error:
        raise ConfigError(f"dream: {error}") from error
    except RuntimeError as error:
        raise MissingDependencyError(f"dream.backend: {error}") from error


def make_dreamer(state: LoopState, spec: ControllerSpec, world: WorldModel | None = None) -> Dreamer:
    """Make what dreams in this round, in M as it last finished learning or in ``world``: an engine here, or one on
    each of the cluster's workers.

    RunMismatchError where "auto" comes to another backend than the run was begun with, which would give other bits.
    """
    dreamer, place = _make_dreamer(state, spec, world or state.world), state.place
    if place.backend not in (None, dreamer.backend):
        raise RunMismatchError(
            f"dream.backend: this run has dreamt with {place.backend!r}, and would go on with {dreamer.backend!r}, "
            f"which gives other bits. Go on where it was begun, or set dream.backend with --on-change keep."
        )
    place.backend = dreamer.backend
    return dreamer


def _make_dreamer(state: LoopState, spec: ControllerSpec, world: WorldModel) -> Dreamer:
    """An engine here, or one on each of the cluster's workers.

    A GPU's measured choice of kernels, from which bits follow, is kept in the run's folder.
    """
    path = state.folder.crossovers
    known: dict[str, int] = dict(read_json(path)) if path.exists() else {}
    settings, fleet = state.config.dream, state.fleet
    if fleet is None:
        engine = make_engine(state, world, spec, known)
        _keep(state, known, engine.crossovers())
        return engine
    backend, precision = settings.backend, choose_precision("dream.precision", settings.precision, state.device)
    if backend == "auto" and fleet.device == state.device.type:
        backend = make_engine(state, world, spec).backend
    elif backend == "auto":
        # By name too: were it left to the workers, one without Triton would dream other bits than the rest.
        try:
            backend = fastest_backend(fleet.device, precision, world, spec)
        except ValueError as error:
            raise ConfigError(f"dream: {error}") from error
    recipe = DreamRecipe(world, spec, fleet.device, backend, precision, known)
    if backend == "triton":
        # One worker measures for all.
        found = next(iter(fleet.map(CrossoverRecipe(recipe), [None])))
        recipe = DreamRecipe(world, spec, fleet.device, backend, precision, _keep(state, known, found))
    return FleetEngine(recipe, fleet, state.device)


def _keep(state: LoopState, known: dict[str, int], found: dict[str, int]) -> dict[str, int]:
    """Merge newly measured crossovers into the run's record and return them."""
    if not found.keys() <= known.keys():
        write_json(state.folder.crossovers, known | found)
    return known | found


def _add(sums: dict[str, float], scalars: Mapping[str, Tensor]) -> None:
    for name, value in scalars.items():
        sums[name] = sums.get(name, 0.0) + float(value.detach())
    sums["steps"] = sums.get("steps", 0.0) + 1.0


def _means(sums: dict[str, float]) -> dict[str, float]:
    steps = sums.pop("steps", 0.0)
    return {name: value / steps for name, value in sums.items()} if steps else {}
