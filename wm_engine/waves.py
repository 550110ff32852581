"""Driving: policies in the real environments, many episodes at once, here or on the workers of a fleet.

:func:`drive` is the one loop over real frames that collection, real fitness and evaluation share. A :class:`Wave` is
one call of it that can be sent away: the rounding of V's batched products depends on which episodes are driven at once,
so the wave, and not the episode, is what a fleet shares out, and results are those of one machine to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from wm_engine.agent import Agent
from wm_engine.checks import check_int
from wm_engine.envs import BatchedEnv, EnvSettings, Step, make_env
from wm_engine.fleet import Fleet
from wm_engine.machine import one_torch_thread
from wm_engine.rollouts import EpisodeWriter


class Policy(Protocol):
    """Whoever chooses actions."""

    def act(self, frames: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Actions float32 [m, A] for the frames uint8 [m, 64, 64, 3] of the given lanes int64 [m].

        Called once a step, with the lanes that are still driving.
        """
        ...


@dataclass(frozen=True)
class Trajectory:
    """One real episode without its frames.

    actions : float32 [T, A], as the environment took them; rewards : float32 [T]
    terminated : the environment ended it; truncated : a step limit or lost patience did
    failed : the policy gave a non-finite action (the environment got zeros instead)
    """

    seed: int
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    failed: bool

    @property
    def steps(self) -> int:
        """T."""
        return len(self.rewards)

    @property
    def total_reward(self) -> float:
        """The return, undiscounted, summed in float64."""
        return float(self.rewards.sum(dtype=np.float64))


OnStep = Callable[[np.ndarray, np.ndarray, np.ndarray, Step], None]


def drive(
    env: BatchedEnv, policy: Policy, seeds: Sequence[int], on_step: OnStep | None = None, patience: int = 0
) -> list[Trajectory]:
    """Drive one episode a seed, all at once, each to its end.

    Parameters
    ----------
    env : with at least as many lanes as seeds
    policy : acts; whatever it keeps for a lane begins with this call (an Agent wants ``begin`` first)
    seeds : of the tracks; lane i drives on ``seeds[i]``
    on_step : called after every step with lanes [m], the frames before it [m, ...], the actions taken [m, A], the Step
    patience : end an episode, as truncated, after so many steps in a row without a positive reward; 0: never

    Returns
    -------
    trajectories : in the order of the seeds. A lane whose policy gives a non-finite action is driven on with zeros and
        marked as failed; the other lanes do not notice.
    """
    check_int("patience", patience, least=0)
    frames = env.reset(seeds)
    count = len(frames)
    lanes = np.arange(count)
    actions: list[list[np.ndarray]] = [[] for _ in range(count)]
    rewards: list[list[float]] = [[] for _ in range(count)]
    terminated, truncated, failed = (np.zeros(count, dtype=bool) for _ in range(3))
    fruitless = np.zeros(count, dtype=np.int64)
    while len(lanes):
        chosen = np.asarray(policy.act(frames, lanes), dtype=np.float32)
        finite = np.asarray(np.isfinite(chosen).all(axis=1))
        failed[lanes[~finite]] = True
        taken = np.clip(np.where(finite[:, None], chosen, np.float32(0)), env.action_low, env.action_high)
        step = env.step(taken, lanes)
        fruitless[lanes] = np.where(step.rewards > 0, 0, fruitless[lanes] + 1)
        if patience:
            lost = (fruitless[lanes] >= patience) & ~step.ended
            step = Step(step.frames, step.rewards, step.terminated, step.truncated | lost)
        for row, lane in enumerate(lanes):
            actions[lane].append(taken[row])
            rewards[lane].append(float(step.rewards[row]))
        terminated[lanes], truncated[lanes] = step.terminated, step.truncated
        if on_step is not None:
            on_step(lanes, frames, taken, step)
        lanes, frames = lanes[~step.ended], step.frames[~step.ended]
    return [
        Trajectory(
            seed=int(seeds[lane]),
            actions=np.stack(actions[lane]),
            rewards=np.array(rewards[lane], dtype=np.float32),
            terminated=bool(terminated[lane]),
            truncated=bool(truncated[lane]),
            failed=bool(failed[lane]),
        )
        for lane in range(count)
    ]


def recording(writers: Mapping[int, EpisodeWriter], bar: Any = None) -> OnStep:
    """What gives every step of a lane to its writer, and finishes the episode.

    Lanes without a writer are not recorded. ``bar``: a progress bar that counts the steps of all lanes.
    """

    def on_step(lanes: np.ndarray, frames: np.ndarray, actions: np.ndarray, step: Step) -> None:
        for row, lane in enumerate(lanes):
            writer = writers.get(int(lane))
            if writer is not None:
                writer.add(frames[row], actions[row], float(step.rewards[row]))
                if step.ended[row]:
                    writer.finish(step.frames[row], step.terminated[row], step.truncated[row])
        if bar is not None:
            bar.update(len(lanes))

    return on_step


class Drivers(Protocol):
    """Makes the policy of a wave from the environment and, where the crew has one, its agent. Pickled with the wave."""

    def __call__(self, env: BatchedEnv, agent: Agent | None) -> Policy: ...


@dataclass(frozen=True)
class Wave:
    """Episodes driven at once: lane i on the track of ``seeds[i]``.

    drivers : who drives
    max_steps, patience : as in :func:`drive`
    recorded : the lanes whose episodes are wanted whole
    """

    seeds: Sequence[int]
    drivers: Drivers
    max_steps: int
    patience: int = 0
    recorded: tuple[int, ...] = ()


@dataclass(frozen=True)
class Candidates:
    """Drivers of a population: lane i is driven by ``params[candidate[i]]``, float32 [P, D]."""

    params: Tensor
    candidate: np.ndarray

    def __call__(self, env: BatchedEnv, agent: Agent | None) -> Policy:
        if agent is None:
            raise ValueError("candidates need a crew with an agent, but it had none")
        driver = agent.with_params(self.params)
        driver.begin(self.candidate)
        return driver


class Crew:
    """Environments, and the agent that acts in them where one does. Environments are kept from wave to wave."""

    def __init__(self, env_settings: EnvSettings, agent: Agent | None = None) -> None:
        self._env_settings, self._agent = env_settings, agent
        self._envs: dict[int, BatchedEnv] = {}

    def drive(self, wave: Wave, on_step: OnStep | None = None) -> list[Trajectory]:
        """The wave's episodes, in the order of its seeds."""
        env = self.env(len(wave.seeds), wave.max_steps)
        return drive(env, wave.drivers(env, self._agent), wave.seeds, on_step, wave.patience)

    def env(self, lanes: int, max_steps: int) -> BatchedEnv:
        """An environment with at least so many lanes."""
        env = self._envs.get(max_steps)
        if env is None or env.num_lanes < lanes:
            if env is not None:
                env.close()
            env = self._envs[max_steps] = make_env(self._env_settings, lanes, max_steps)
        return env

    def close(self) -> None:
        """End the environments; a later wave starts new ones."""
        for env in self._envs.values():
            env.close()
        self._envs.clear()


@dataclass(frozen=True)
class Driven:
    """What a wave that was driven elsewhere comes back with: its trajectories, and the frames of recorded lanes."""

    trajectories: list[Trajectory]
    frames: dict[int, np.ndarray]


@dataclass(frozen=True)
class CrewRecipe:
    """A crew for a fleet's workers; each keeps its own CPUs busy, unless ``env_settings`` say otherwise.

    ``one_thread``: torch keeps to one thread, as the driver's does where it drives such waves itself.
    """

    env_settings: EnvSettings
    agent: Agent | None
    one_thread: bool = False

    def build(self, cpus: int) -> _Workplace:
        threads = self.env_settings.num_threads or cpus
        crew = Crew(self.env_settings.model_copy(update={"num_threads": threads}), self.agent)
        return _Workplace(crew, self.one_thread)


class _Workplace:
    def __init__(self, crew: Crew, one_thread: bool) -> None:
        self._crew, self.close = crew, crew.close
        self._threads = one_torch_thread if one_thread else contextlib.nullcontext

    def __call__(self, wave: Wave) -> Driven:
        frames: dict[int, list[np.ndarray]] = {lane: [] for lane in wave.recorded}

        def keep(lanes: np.ndarray, before: np.ndarray, actions: np.ndarray, step: Step) -> None:
            for row, lane in enumerate(lanes):
                if lane in frames:
                    frames[lane].append(before[row].copy())
                    if step.ended[row]:
                        frames[lane].append(step.frames[row].copy())

        with self._threads():
            trajectories = self._crew.drive(wave, keep if wave.recorded else None)
        return Driven(trajectories, {lane: np.stack(kept) for lane, kept in frames.items()})


class Crews:
    """Drives waves: one after another here, or side by side on the workers of ``fleet``, with the same results.

    agent : acts where a wave's drivers ask for it
    one_thread : of torch, on the workers; here that is for the caller to see to
    """

    def __init__(
        self,
        env_settings: EnvSettings,
        agent: Agent | None = None,
        fleet: Fleet | None = None,
        one_thread: bool = False,
    ) -> None:
        self._here, self._fleet = Crew(env_settings, agent), fleet
        self._recipe = CrewRecipe(env_settings, agent, one_thread)

    def drive(
        self, waves: Sequence[Wave], writers: Callable[[Wave], Mapping[int, EpisodeWriter]], bar: Any = None
    ) -> Iterator[list[Trajectory]]:
        """Each wave's trajectories, in order.

        writers : called as a wave begins to be written, in order: what takes the episodes of its recorded lanes
        bar : a progress bar that counts steps
        """
        if self._fleet is None:
            for wave in waves:
                yield self._here.drive(wave, recording(writers(wave), bar))
            return
        for wave, driven in zip(waves, self._fleet.map(self._recipe, waves), strict=True):
            for lane, writer in writers(wave).items():
                _write(writer, driven.trajectories[lane], driven.frames[lane])
            if bar is not None:
                bar.update(sum(trajectory.steps for trajectory in driven.trajectories))
            yield driven.trajectories

    def close(self) -> None:
        """End the environments that run here."""
        self._here.close()


def _write(writer: EpisodeWriter, trajectory: Trajectory, frames: np.ndarray) -> None:
    for frame, action, reward in zip(frames, trajectory.actions, trajectory.rewards, strict=False):
        writer.add(frame, action, float(reward))
    writer.finish(frames[-1], trajectory.terminated, trajectory.truncated)
