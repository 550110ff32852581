"""Who drives where nothing has been learnt yet, and how a learnt policy explores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wm_engine.envs import BatchedEnv, Explore, Task, random_walk
from wm_engine.real.agent import Agent
from wm_engine.spaces import Actions, Discrete


class UniformActions:
    """Draw actions uniformly at every step, as ``env.action_space.sample()`` does: what the field calls the random
    policy. Lane i draws as a gymnasium action space seeded with ``seeds[i]`` does.

    It hardly moves a car: opposite commands cancel. So it is what controllers are compared with, not what collects.
    """

    def __init__(self, actions: Actions, seeds: Sequence[int]) -> None:
        self._actions = actions
        self._rngs = [np.random.default_rng(seed) for seed in seeds]

    def act(self, observations: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """See :class:`wm_engine.real.driving.Driver`."""
        if isinstance(self._actions, Discrete):
            count = self._actions.count
            return self._actions.from_stored(np.array([self._rngs[lane].integers(count) for lane in lanes]))
        low, high = self._actions.bounds
        return np.stack([self._rngs[lane].uniform(low, high) for lane in lanes]).astype(np.float32)


class PlannedActions:
    """Follow the task's random plans, which get somewhere.

    Every lane's whole sequence is drawn before its first step, from ``numpy.random.default_rng([seed, stream,
    episode])``, so it depends on nothing else.
    """

    def __init__(self, task: Task, repeat: int, seed: int, episodes: Sequence[int], frames: int, stream: int) -> None:
        rngs = [np.random.default_rng([seed, stream, episode]) for episode in episodes]
        self._plans = [task.random_actions(rng, -(-frames // repeat), repeat) for rng in rngs]
        self._steps = np.zeros(len(self._plans), dtype=np.int64)

    def act(self, observations: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """See :class:`wm_engine.real.driving.Driver`."""
        actions = np.stack([self._plans[lane][self._steps[lane]] for lane in lanes])
        self._steps[lanes] += 1
        return actions


class OpenLoop:
    """Follow a blind plan, drawn for lane i from ``numpy.random.default_rng(seeds[i])``.

    Plans are made for frames, and every ``action_repeat``-th action is taken, so that they last as long whatever the
    repeat.
    """

    def __init__(self, plan: Explore, env: BatchedEnv, seeds: Sequence[int]) -> None:
        actions = env.spaces.actions
        self._plans = [
            actions.clip(plan(np.random.default_rng(seed), env.max_frames)[:: env.action_repeat]) for seed in seeds
        ]
        self._step = -1

    def act(self, observations: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """See :class:`wm_engine.envs.Driver`."""
        self._step += 1
        return np.stack([self._plans[lane][self._step] for lane in lanes])


class NoisyAgent:
    """Let an agent drive with smooth exploration noise on its actions; its M is told what was really done.

    In a box the noise of a lane is an Ornstein-Uhlenbeck walk with standard deviation ``noise`` times half the action's
    range and a memory of ten frames; of discrete actions a share ``noise`` is drawn uniformly. It is drawn beforehand
    from ``numpy.random.default_rng([seed, stream, episode])``.
    """

    def __init__(
        self, agent: Agent, actions: Actions, repeat: int, noise: float, seed: int, episodes: Sequence[int],
        frames: int, stream: int,
    ) -> None:  # fmt: skip
        self._agent, self._actions = agent, actions
        rngs = [np.random.default_rng([seed, stream, episode]) for episode in episodes]
        steps = -(-frames // repeat)
        self._steps = np.zeros(len(rngs), dtype=np.int64)
        if isinstance(actions, Discrete):
            draws = [(rng.random(steps) < noise, rng.integers(actions.count, size=steps)) for rng in rngs]
            self._noise = [np.where(taken, choice, -1) for taken, choice in draws]
            return
        low, high = actions.bounds
        half = 0.5 * noise * (high - low)
        memory = max(1.0, 10.0 / repeat)
        self._noise = [(half * random_walk(rng, steps, actions.size, memory)).astype(np.float32) for rng in rngs]

    def act(self, observations: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """See :class:`wm_engine.real.driving.Driver`."""
        noise = np.stack([self._noise[lane][self._steps[lane]] for lane in lanes])
        self._steps[lanes] += 1

        def perturb(chosen: np.ndarray) -> np.ndarray:
            if isinstance(self._actions, Discrete):
                random = self._actions.from_stored(np.maximum(noise, 0))
                return np.where((noise < 0)[:, None], chosen, random).astype(np.float32)
            return self._actions.clip(chosen + noise)

        return self._agent.act(observations, lanes, perturb)
