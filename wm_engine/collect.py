"""Collection: policies drive the real environments, and what they meet goes into the rollout store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from wm_engine.agent import Agent
from wm_engine.checks import check_int
from wm_engine.envs import CAR_RACING, BatchedEnv, EnvSettings, choose_backend
from wm_engine.fleet import Fleet
from wm_engine.progress import track
from wm_engine.records import Recorder
from wm_engine.rollouts import EpisodeWriter, RolloutStore
from wm_engine.settings import Section
from wm_engine.waves import Crews, Policy, Trajectory, Wave


class CollectSettings(Section):
    """How many real episodes a round collects, and who drives."""

    policy: Literal["random", "agent", "evolve"] = Field(
        "random",
        description="from the second round on (the first has no agent yet): random held actions, the round's best "
        "controller with exploration noise, or a whole population that is being evolved in the real environment",
    )
    episodes: int = Field(64, ge=1, description="episodes a round adds to the store")
    max_steps: int = Field(1000, ge=1, description="an episode is cut after so many steps")
    patience: int = Field(
        0, ge=0, description="cut an episode after so many steps in a row without a positive reward; 0: never"
    )
    noise: float = Field(
        0.2, ge=0.0, description="exploration noise on an agent's actions, in halves of their range; 0: none"
    )


def track_seeds(seed: int, count: int, stream: int = 0) -> list[int]:
    """``count`` environment seeds in [0, 2^31), all different: consecutive numbers from a hashed place.

    ``seed``: any non-negative integer; ``stream`` tells apart uses of one seed, such as the rounds of a pipeline.
    """
    words = np.random.SeedSequence([check_int("seed", seed, least=0), check_int("stream", stream, least=0)])
    first = int(words.generate_state(1, np.uint64)[0])
    return [(first + index) % 2**31 for index in range(count)]


class UniformPolicy:
    """Actions drawn uniformly from their bounds at every step: what ``env.action_space.sample()`` does, and what the
    field calls the random policy. Lane i draws as a gymnasium action space seeded with ``seeds[i]`` does.

    It hardly moves a car: opposite commands cancel. So it is what controllers are compared with, not what collects.
    """

    def __init__(self, env: BatchedEnv, seeds: Sequence[int]) -> None:
        self._low, self._high = env.action_low, env.action_high
        self._rngs = [np.random.default_rng(seed) for seed in seeds]

    def act(self, frames: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        rows = [self._rngs[lane].uniform(self._low, self._high) for lane in lanes]
        return np.stack(rows).astype(np.float32)


class BrownianPolicy:
    """Random actions that drive: targets held for a while, approached smoothly, biased to gas where there is a pedal.

    Every lane's whole sequence is drawn before its first step, from ``numpy.random.default_rng([seed, stream,
    episode])``, so it depends on nothing else.
    """

    def __init__(
        self, env_id: str, env: BatchedEnv, seed: int, episodes: Sequence[int], max_steps: int, stream: int = 0
    ) -> None:
        plan = _car_actions if env_id == CAR_RACING else _box_actions
        self._plans = [
            plan(np.random.default_rng([seed, stream, episode]), max_steps, env.action_low, env.action_high)
            for episode in episodes
        ]
        self._steps = np.zeros(len(self._plans), dtype=np.int64)

    def act(self, frames: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        actions = np.stack([self._plans[lane][self._steps[lane]] for lane in lanes])
        self._steps[lanes] += 1
        return actions


class NoisyAgent:
    """An agent whose actions carry smooth exploration noise; its M is told what was really done.

    The noise of a lane is an Ornstein-Uhlenbeck walk with standard deviation ``noise`` times half the action's range
    and a memory of ten steps, drawn beforehand from ``numpy.random.default_rng([seed, stream, episode])``.
    """

    def __init__(
        self,
        agent: Agent,
        env: BatchedEnv,
        noise: float,
        seed: int,
        episodes: Sequence[int],
        max_steps: int,
        stream: int = 0,
    ) -> None:
        self._agent, self._low, self._high = agent, env.action_low, env.action_high
        half = 0.5 * noise * (env.action_high - env.action_low)
        rngs = [np.random.default_rng([seed, stream, episode]) for episode in episodes]
        self._noise = [(half * _walk(rng, max_steps, env.action_size)).astype(np.float32) for rng in rngs]
        self._steps = np.zeros(len(self._noise), dtype=np.int64)

    def act(self, frames: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        noise = np.stack([self._noise[lane][self._steps[lane]] for lane in lanes])
        self._steps[lanes] += 1
        return self._agent.act(frames, lanes, lambda actions: np.clip(actions + noise, self._low, self._high))


@dataclass(frozen=True)
class _Collectors:
    """Drivers of a collection's episodes: with an agent where the crew has one, at random otherwise."""

    env_id: str
    noise: float
    seed: int
    episodes: range
    max_steps: int
    stream: int

    def __call__(self, env: BatchedEnv, agent: Agent | None) -> Policy:
        if agent is None:
            return BrownianPolicy(self.env_id, env, self.seed, self.episodes, self.max_steps, self.stream)
        agent.begin(np.zeros(len(self.episodes), dtype=np.int64))
        return NoisyAgent(agent, env, self.noise, self.seed, self.episodes, self.max_steps, self.stream)


def collect(
    store: RolloutStore,
    env_settings: EnvSettings,
    settings: CollectSettings,
    seed: int,
    iteration: int = 0,
    agent: Agent | None = None,
    recorder: Recorder | None = None,
    fleet: Fleet | None = None,
) -> None:
    """Add the round's episodes to ``store``, those that are not there yet.

    Episodes are driven in waves of ``env_settings.num_envs`` lanes and stand in the store in their own order, with
    seeds from ``track_seeds(seed, episodes, iteration)``. A wave that was cut is driven again whole, and only its
    missing episodes are written, so an interrupted collection ends with the same store, bit for bit.

    ``agent``: with one controller; needed for, and only for, ``policy = "agent"``. ``fleet``: drives the waves, which
    leaves the same store. Raises what :func:`wm_engine.envs.make_env` raises, ValueError for arguments that do not fit,
    and StorageError where the disk is full.
    """
    if settings.policy == "evolve" or (settings.policy == "agent") != (agent is not None):
        raise ValueError(
            f"collect drives with an agent or at random, but policy was {settings.policy!r}, agent {agent!r}"
        )
    total = settings.episodes
    done = sum(store.info(index).iteration == iteration for index in range(len(store)))
    if done >= total:
        return
    lanes = min(env_settings.num_envs, total)
    seeds = track_seeds(seed, total, iteration)
    begin = done - done % lanes
    plan: dict[int, Wave] = {}
    for first in range(begin, total, lanes):
        episodes = range(first, min(first + lanes, total))
        drivers = _Collectors(env_settings.id, settings.noise, seed, episodes, settings.max_steps, iteration)
        wanted = tuple(episode - first for episode in episodes if episode >= done)
        plan[episodes.stop] = Wave(seeds[first : episodes.stop], drivers, settings.max_steps, settings.patience, wanted)

    def writers(wave: Wave) -> Mapping[int, EpisodeWriter]:
        name = "agent" if agent else "brownian"
        return {lane: store.writer(wave.seeds[lane], name, iteration) for lane in wave.recorded}

    with (
        contextlib.closing(Crews(env_settings, agent, fleet)) as crews,
        track((total - begin) * settings.max_steps, f"collect ({choose_backend(env_settings)})", "frame") as bar,
    ):
        began = time.perf_counter()
        try:
            for stop, driven in zip(plan, crews.drive(list(plan.values()), writers, bar), strict=True):
                frames = sum(trajectory.steps for trajectory in driven)
                rate = frames / (time.perf_counter() - began)
                bar.total -= len(driven) * settings.max_steps - frames  # those that ended before the limit
                if recorder is not None:
                    recorder.log("collect", stop, iteration, frames_per_second=rate, **_summary(driven))
                began = time.perf_counter()
        except BaseException:
            store.abandon()
            raise


def _summary(driven: list[Trajectory]) -> dict[str, float]:
    return {
        "return_mean": float(np.mean([trajectory.total_reward for trajectory in driven])),
        "steps_mean": float(np.mean([trajectory.steps for trajectory in driven])),
        "terminated": float(np.mean([trajectory.terminated for trajectory in driven])),
    }


def _walk(rng: np.random.Generator, steps: int, size: int, memory: float = 10.0) -> np.ndarray:
    """An Ornstein-Uhlenbeck walk [steps, size] of mean 0 and standard deviation 1 that forgets in ``memory`` steps."""
    keep = np.exp(-1.0 / memory)
    kicks = np.sqrt(1.0 - keep * keep) * rng.standard_normal((steps, size))
    walk = np.empty((steps, size))
    state = rng.standard_normal(size)
    for step in range(steps):
        walk[step] = state
        state = keep * state + kicks[step]
    return walk


def _held(rng: np.random.Generator, steps: int, mean_span: float) -> np.ndarray:
    """For each step the number of its span; spans last ``mean_span`` steps on average (geometric)."""
    return np.cumsum(rng.random(steps) < 1.0 / mean_span)


def _box_actions(rng: np.random.Generator, steps: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Smooth walks over the whole box, for environments of which nothing is known."""
    walk = _walk(rng, steps, len(low))
    return np.clip(0.5 * (low + high) + 0.5 * (high - low) * walk, low, high).astype(np.float32)


def _car_actions(rng: np.random.Generator, steps: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Steering, gas and brake [steps, 3] that take a car along the road for a while, then off it, at many speeds.

    Measured over 24 tracks of 500 steps: 13 tiles an episode; on grass at step 100 in 39 % of them, at step 400 in
    96 %. So more and shorter episodes (``max_steps``, ``patience``) show V more road than few long ones.
    """
    # Every episode has a temper of its own: how sharply it steers, how much gas it gives, how often it brakes.
    sharpness, pedal, caution = rng.uniform(0.1, 0.4), rng.uniform(0.02, 0.25), rng.uniform(0.0, 0.3)
    spans = _held(rng, steps, mean_span=8.0)
    count = int(spans[-1]) + 1
    steer = np.clip(sharpness * rng.standard_normal(count), -1.0, 1.0)
    gas = np.clip(pedal + 0.1 * rng.standard_normal(count), 0.0, 1.0)
    braking = rng.random(count) < caution
    brake = np.where(braking, rng.uniform(0.05, 0.8, count), 0.0)
    targets = np.stack([steer, np.where(braking, 0.0, gas), brake], axis=1)[spans]
    actions = np.empty((steps, 3))
    state = np.zeros(3)
    for step in range(steps):
        state = state + 0.3 * (targets[step] - state)
        actions[step] = state
    return np.clip(actions, low, high).astype(np.float32)
