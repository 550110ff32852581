"""Environments simulated by EnvPool: C++ threads, about fifteen times gymnasium's frames a second."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import numpy as np

from wm_engine.envs.base import LaneEnv
from wm_engine.envs.task import Task
from wm_engine.errors import ConfigError, MissingDependencyError
from wm_engine.spaces import Box

HOW_TO_GET_IT = "it has wheels for Linux on x86-64 with Python 3.11 or newer: pip install envpool"


def envpool_problem(task: Task) -> str | None:
    """Say why EnvPool cannot run ``task`` here; None where it can."""
    if "envpool" not in task.backends:
        return f"{task.name} runs on {', '.join(task.backends)} only, not on EnvPool"
    if importlib.util.find_spec("envpool") is None:
        return f"EnvPool is not installed ({HOW_TO_GET_IT})"
    try:
        import envpool
    except ImportError as error:
        return f"EnvPool is installed but cannot be imported ({error})"
    known = task.env_id in envpool.list_all_envs()
    return None if known else f"EnvPool {envpool.__version__} is too old for {task.env_id}"


def _envpool() -> Any:
    import envpool  # half a second that a run on gymnasium need not wait

    return envpool


class EnvPoolEnv(LaneEnv):
    """One pool of EnvPool's environments, made anew at every reset: a lane's seed is fixed when its pool is made.

    EnvPool restarts an ended lane at its next step, ignoring that step's action. Lanes that have ended are simply not
    sent again, so no such step ever happens here. Its defaults that matter are set, not relied on: the limit of frames
    is ours, and actions are repeated by LaneEnv alone.
    """

    backend = "envpool"

    def __init__(self, task: Task, num_lanes: int, max_frames: int, num_threads: int, action_repeat: int = 1) -> None:
        super().__init__(task, num_lanes, max_frames, action_repeat)
        problem = envpool_problem(task)
        if problem is not None:
            kind = MissingDependencyError if "envpool" in task.backends else ConfigError
            raise kind(f'{problem}. Set env.backend = "gymnasium", or "auto".')
        self._threads = num_threads
        self._check_actions_of_the_pool()
        self._pool: Any = None
        self._pictures = np.zeros(0, dtype=np.uint8)

    def render(self, lane: int) -> np.ndarray:
        """The lane's newest picture as the environment drew it: EnvPool has no larger one at no cost."""
        if self._pictures.ndim != 4:
            raise ValueError(f"{self.task.name} has no pictures on EnvPool; render on gymnasium")
        return self._aligned(self._pictures[lane])

    def close(self) -> None:
        # EnvPool's own close() leaves its threads; they end with the last reference.
        self._pool = None

    def _check_actions_of_the_pool(self) -> None:
        # Not the spec's action_space: making that one warns of gymnasium's float64 bounds.
        action, space = _envpool().make_spec(self.task.env_id).action_array_spec["action"], self.spaces.actions
        low, high = (np.asarray(bound, dtype=np.float32).tolist() for bound in (action.minimum, action.maximum))
        wanted = (list(space.low), list(space.high)) if isinstance(space, Box) else (0.0, float(space.count - 1))
        if (low, high) != wanted:
            raise ConfigError(
                f"{self.task.name}: the task says {space}, but {self.task.env_id} on EnvPool has actions from {low} to "
                f"{high}"
            )

    def _make(self, seeds: list[int]) -> Any:
        return _envpool().make(
            self.task.env_id,
            env_type="gymnasium",
            num_envs=len(seeds),
            env_seed=seeds,
            num_threads=min(self._threads, len(seeds)),
            max_episode_steps=self.max_frames,
        )

    def _reset(self, seeds: list[int]) -> np.ndarray:
        self._pool = None  # ends the old pool's threads before the new one's begin
        self._pool = self._make(seeds)
        with warnings.catch_warnings():
            # Of the bounds of vectors, which the pool's first reset has gymnasium cast.
            warnings.filterwarnings("ignore", message=".*precision lowered by casting to float32")
            observations, info = self._pool.reset()
        self._pictures = observations[np.argsort(info["env_id"])]
        return self._pictures.copy()

    def _step(self, actions: np.ndarray, lanes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        observations, rewards, terminated, truncated, info = self._pool.step(actions, lanes.astype(np.int32))
        # Answers may come in another order than the lanes were given.
        order = np.empty(len(lanes), dtype=np.int64)
        order[np.argsort(lanes)] = np.argsort(info["env_id"])
        observations = observations[order]
        self._pictures[lanes] = observations
        return observations, rewards[order], terminated[order], truncated[order]

    def _aligned(self, pictures: np.ndarray) -> np.ndarray:
        return pictures if self.task.align is None else self.task.align(pictures)
