"""Environments simulated by EnvPool: C++ threads, about fifteen times gymnasium's frames a second."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from wm_engine.envs.base import CAR_RACING, LaneEnv
from wm_engine.errors import ConfigError, MissingDependencyError

HOW_TO_GET_IT = "it has wheels for Linux on x86-64 with Python 3.11 or newer: pip install envpool"
# EnvPool's environments with pictures and continuous actions that have been held against gymnasium's
# (docs/environments.md). Others run on gymnasium.
ENVIRONMENTS = (CAR_RACING,)


def envpool_problem(env_id: str) -> str | None:
    """Why EnvPool cannot run ``env_id`` here; None where it can."""
    if env_id not in ENVIRONMENTS:
        return f"EnvPool is used for {', '.join(ENVIRONMENTS)} only, not for {env_id}"
    if importlib.util.find_spec("envpool") is None:
        return f"EnvPool is not installed ({HOW_TO_GET_IT})"
    try:
        import envpool
    except ImportError as error:
        return f"EnvPool is installed but cannot be imported ({error})"
    return None if env_id in envpool.list_all_envs() else f"EnvPool {envpool.__version__} is too old for {env_id}"


# gymnasium scales its drawing down with pygame's smoothscale, which takes 2 off every flat colour; EnvPool's are exact.
_DARKER = np.uint8(2)


def _envpool() -> Any:
    import envpool  # half a second that a run on gymnasium need not wait

    return envpool


def _as_gymnasium(frames: np.ndarray) -> np.ndarray:
    return np.maximum(frames, _DARKER) - _DARKER


class EnvPoolEnv(LaneEnv):
    """One pool of EnvPool's environments, made anew at every reset: a lane's seed is fixed when its pool is made.

    EnvPool restarts an ended lane at its next step, ignoring that step's action. Lanes that have ended are simply not
    sent again, so no such step ever happens here. Its defaults that matter are set, not relied on: the step limit is
    ours, and there is no frame skip (the environment has no such option). Colours are made gymnasium's, so that models
    learnt here serve there.
    """

    backend = "envpool"

    def __init__(self, env_id: str, num_lanes: int, max_steps: int, num_threads: int) -> None:
        super().__init__(env_id, num_lanes)
        problem = envpool_problem(env_id)
        if problem is not None:
            kind = MissingDependencyError if env_id in ENVIRONMENTS else ConfigError
            raise kind(f'{problem}. Set env.backend = "gymnasium", or "auto".')
        self._id, self._max_steps, self._threads = env_id, max_steps, num_threads
        # Not the spec's action_space: making that one warns of gymnasium's float64 bounds.
        action = _envpool().make_spec(env_id).action_array_spec["action"]
        self.action_size = action.shape[0]
        self.action_low = np.asarray(action.minimum, dtype=np.float32)
        self.action_high = np.asarray(action.maximum, dtype=np.float32)
        self._pool: Any = None
        self._pictures = np.zeros(0, dtype=np.uint8)

    def render(self, lane: int) -> np.ndarray:
        """The lane's newest frame as the environment drew it: EnvPool has no larger picture at no cost."""
        return np.asarray(self._pictures[lane])

    def close(self) -> None:
        # EnvPool's own close() leaves its threads; they end with the last reference.
        self._pool = None

    def _make(self, seeds: list[int]) -> Any:
        return _envpool().make(
            self._id,
            env_type="gymnasium",
            num_envs=len(seeds),
            env_seed=seeds,
            num_threads=min(self._threads, len(seeds)),
            max_episode_steps=self._max_steps,
        )

    def _reset(self, seeds: list[int]) -> np.ndarray:
        self._pool = None  # ends the old pool's threads before the new one's begin
        self._pool = self._make(seeds)
        frames, info = self._pool.reset()
        self._pictures = _as_gymnasium(frames[np.argsort(info["env_id"])])
        return self._pictures

    def _step(self, actions: np.ndarray, lanes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        frames, rewards, terminated, truncated, info = self._pool.step(actions, lanes.astype(np.int32))
        # Answers may come in another order than the lanes were given.
        order = np.empty(len(lanes), dtype=np.int64)
        order[np.argsort(lanes)] = np.argsort(info["env_id"])
        frames = _as_gymnasium(frames[order])
        self._pictures[lanes] = frames
        return frames, rewards[order], terminated[order], truncated[order]
