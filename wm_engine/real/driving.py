"""Driving: policies in the real environments, many episodes at once, here or on the workers of a fleet.

:func:`drive` is the one loop over real steps that collection, real fitness and scoring share. An :class:`EpisodeBatch`
is one call of it that can be sent away: the rounding of V's batched products depends on which episodes are driven at
once, so the batch, and not the episode, is what a fleet shares out, and results are those of one machine to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from wm_engine.checks import check_int
from wm_engine.data.store import EpisodeWriter
from wm_engine.envs import BatchedEnv, Driver, EnvSettings, Step, make_env
from wm_engine.fleet import Fleet
from wm_engine.machine import one_torch_thread
from wm_engine.policies.base import Policy
from wm_engine.real.agent import Agent


@dataclass(frozen=True)
class Trajectory:
    """One real episode of T decisions without its observations.

    actions : float32 [T, A], as the environment took them; rewards : float32 [T], summed over each action's repeats
    frames : how many frames it lasted
    terminated : the environment ended it; truncated : a limit or lost patience did
    failed : the policy gave a non-finite action (the environment got zeros instead)
    """

    seed: int
    actions: np.ndarray
    rewards: np.ndarray
    frames: int
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
    env: BatchedEnv, driver: Driver, seeds: Sequence[int], on_step: OnStep | None = None, patience: int = 0
) -> list[Trajectory]:
    """Drive one episode a seed, all at once, each to its end.

    Parameters
    ----------
    env : with at least as many lanes as seeds
    driver : acts; whatever it keeps for a lane begins with this call (an Agent wants ``begin`` first)
    seeds : of the episodes; lane i drives ``seeds[i]``
    on_step : called after every step with lanes [m], what they saw before [m, ...], the actions taken [m, A], the Step
    patience : end an episode, as truncated, after so many frames in a row without a positive reward; 0: never

    Returns
    -------
    trajectories : in the order of the seeds. A lane whose driver gives a non-finite action is driven on with zeros and
        marked as failed; the other lanes do not notice.
    """
    check_int("patience", patience, least=0)
    observations = env.reset(seeds)
    count = len(observations)
    lanes = np.arange(count)
    actions: list[list[np.ndarray]] = [[] for _ in range(count)]
    rewards: list[list[float]] = [[] for _ in range(count)]
    terminated, truncated, failed = (np.zeros(count, dtype=bool) for _ in range(3))
    frames, fruitless = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    while len(lanes):
        chosen = np.asarray(driver.act(observations, lanes), dtype=np.float32)
        finite = np.asarray(np.isfinite(chosen).all(axis=1))
        failed[lanes[~finite]] = True
        taken = env.spaces.actions.clip(np.where(finite[:, None], chosen, np.float32(0)))
        step = env.step(taken, lanes)
        frames[lanes] += step.frames
        fruitless[lanes] = np.where(step.rewards > 0, 0, fruitless[lanes] + step.frames)
        if patience:
            lost = (fruitless[lanes] >= patience) & ~step.ended
            step = replace(step, truncated=step.truncated | lost)
        for row, lane in enumerate(lanes):
            actions[lane].append(taken[row])
            rewards[lane].append(float(step.rewards[row]))
        terminated[lanes], truncated[lanes] = step.terminated, step.truncated
        if on_step is not None:
            on_step(lanes, observations, taken, step)
        lanes, observations = lanes[~step.ended], step.observations[~step.ended]
    return [
        Trajectory(
            seed=int(seeds[lane]),
            actions=np.stack(actions[lane]),
            rewards=np.array(rewards[lane], dtype=np.float32),
            frames=int(frames[lane]),
            terminated=bool(terminated[lane]),
            truncated=bool(truncated[lane]),
            failed=bool(failed[lane]),
        )
        for lane in range(count)
    ]


def write_steps(writers: Mapping[int, EpisodeWriter], bar: Any = None) -> OnStep:
    """Give every step of a lane to its writer, and finish the episode.

    Lanes without a writer are not recorded. ``bar``: a progress bar that counts the frames of all lanes.
    """

    def on_step(lanes: np.ndarray, observations: np.ndarray, actions: np.ndarray, step: Step) -> None:
        for row, lane in enumerate(lanes):
            writer = writers.get(int(lane))
            if writer is not None:
                writer.add(observations[row], actions[row], float(step.rewards[row]), int(step.frames[row]))
                if step.ended[row]:
                    writer.finish(step.observations[row], step.terminated[row], step.truncated[row])
        if bar is not None:
            bar.update(int(step.frames.sum()))

    return on_step


class DriverFactory(Protocol):
    """Makes the driver of a batch from the environment and, where the runner has one, its agent. Pickled with it."""

    def __call__(self, env: BatchedEnv, agent: Agent | None) -> Driver: ...


@dataclass(frozen=True)
class EpisodeBatch:
    """Episodes driven at once: lane i with ``seeds[i]``.

    driver : makes who drives
    max_frames, patience : as in :func:`drive`
    recorded : the lanes whose episodes are wanted whole
    """

    seeds: Sequence[int]
    driver: DriverFactory
    max_frames: int
    patience: int = 0
    recorded: tuple[int, ...] = ()


@dataclass(frozen=True)
class PolicyDriver:
    """Drive a batch by a policy on the runner's V and M."""

    policy: Policy
    lanes: int

    def __call__(self, env: BatchedEnv, agent: Agent | None) -> Driver:
        if agent is None:
            raise ValueError("a policy drives on V's and M's features, but the runner has no agent")
        driver = agent.with_policy(self.policy)
        driver.begin(self.lanes)
        return driver


class VectorRunner:
    """Environments, and the agent that acts in them where one does. Environments are kept from batch to batch."""

    def __init__(self, settings: EnvSettings, agent: Agent | None = None) -> None:
        self._settings, self.agent = settings, agent
        self._envs: dict[int, BatchedEnv] = {}

    def drive(self, batch: EpisodeBatch, on_step: OnStep | None = None) -> list[Trajectory]:
        """Drive a batch's episodes; returns them in the order of its seeds."""
        env = self.env(len(batch.seeds), batch.max_frames)
        return drive(env, batch.driver(env, self.agent), batch.seeds, on_step, batch.patience)

    def env(self, lanes: int, max_frames: int) -> BatchedEnv:
        """Return an environment with at least so many lanes."""
        env = self._envs.get(max_frames)
        if env is None or env.num_lanes < lanes:
            if env is not None:
                env.close()
            env = self._envs[max_frames] = make_env(self._settings, lanes, max_frames)
        return env

    def close(self) -> None:
        """End the environments; a later batch starts new ones."""
        for env in self._envs.values():
            env.close()
        self._envs.clear()


@dataclass(frozen=True)
class DrivenBatch:
    """A batch that was driven elsewhere: its trajectories, what recorded lanes saw, and the frames
    of each of their steps."""

    trajectories: list[Trajectory]
    observations: dict[int, np.ndarray]
    frames: dict[int, list[int]]


@dataclass(frozen=True)
class RunnerRecipe:
    """A runner for a fleet's workers; each keeps its own CPUs busy, unless ``settings`` say otherwise.

    ``one_thread``: torch keeps to one thread, as the driver's does where it drives such batches itself.
    """

    settings: EnvSettings
    agent: Agent | None
    one_thread: bool = False

    def build(self, cpus: int) -> _RemoteRunner:
        threads = self.settings.num_threads or cpus
        runner = VectorRunner(self.settings.model_copy(update={"num_threads": threads}), self.agent)
        return _RemoteRunner(runner, self.one_thread)


class _RemoteRunner:
    def __init__(self, runner: VectorRunner, one_thread: bool) -> None:
        self._runner, self.close = runner, runner.close
        self._threads = one_torch_thread if one_thread else contextlib.nullcontext

    def __call__(self, batch: EpisodeBatch) -> DrivenBatch:
        seen: dict[int, list[np.ndarray]] = {lane: [] for lane in batch.recorded}
        frames: dict[int, list[int]] = {lane: [] for lane in batch.recorded}

        def keep(lanes: np.ndarray, before: np.ndarray, actions: np.ndarray, step: Step) -> None:
            for row, lane in enumerate(lanes):
                if lane in seen:
                    seen[lane].append(before[row].copy())
                    frames[lane].append(int(step.frames[row]))
                    if step.ended[row]:
                        seen[lane].append(step.observations[row].copy())

        with self._threads():
            trajectories = self._runner.drive(batch, keep if batch.recorded else None)
        return DrivenBatch(trajectories, {lane: np.stack(kept) for lane, kept in seen.items()}, frames)


class Runners:
    """Drives batches: one after another here, or side by side on the workers of ``fleet``, with the same results.

    agent : acts where a batch's driver asks for it
    one_thread : of torch, on the workers; here that is for the caller to see to
    """

    def __init__(
        self,
        settings: EnvSettings,
        agent: Agent | None = None,
        fleet: Fleet | None = None,
        one_thread: bool = False,
    ) -> None:
        self._here, self._fleet = VectorRunner(settings, agent), fleet
        self._settings, self._one_thread = settings, one_thread
        self._recipe = RunnerRecipe(settings, agent, one_thread)

    def use(self, agent: Agent | None) -> Runners:
        """Let another agent act from here on, in the same environments; returns the runners themselves."""
        self._here.agent = agent
        self._recipe = RunnerRecipe(self._settings, agent, self._one_thread)
        return self

    def drive(
        self,
        batches: Sequence[EpisodeBatch],
        writers: Callable[[EpisodeBatch], Mapping[int, EpisodeWriter]] = lambda batch: {},
        bar: Any = None,
    ) -> Iterator[list[Trajectory]]:
        """Drive batches; yields each one's trajectories, in order.

        writers : called as a batch begins to be written, in order: what takes the episodes of its recorded lanes
        bar : a progress bar that counts frames
        """
        if self._fleet is None:
            for batch in batches:
                yield self._here.drive(batch, write_steps(writers(batch), bar))
            return
        for batch, driven in zip(batches, self._fleet.map(self._recipe, batches), strict=True):
            for lane, writer in writers(batch).items():
                _write(writer, driven, lane)
            if bar is not None:
                bar.update(sum(trajectory.frames for trajectory in driven.trajectories))
            yield driven.trajectories

    def close(self) -> None:
        """End the environments that run here."""
        self._here.close()


def _write(writer: EpisodeWriter, driven: DrivenBatch, lane: int) -> None:
    trajectory, seen = driven.trajectories[lane], driven.observations[lane]
    steps = zip(seen, trajectory.actions, trajectory.rewards, driven.frames[lane], strict=False)
    for observation, action, reward, frames in steps:
        writer.add(observation, action, float(reward), frames)
    writer.finish(seen[-1], trajectory.terminated, trajectory.truncated)
