"""A worker process of the gymnasium backend: it holds some lanes and answers requests until its parent is gone.

Run as a file, with the descriptor of its connection and its parent's process id, so that it imports gymnasium and
NumPy but not this package and torch: a worker starts in half a second and takes 80 MB. Requests are
(name, *arguments); answers are ("ok", value) or ("error", kind, message).
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from multiprocessing.connection import Connection
from typing import Any

# Python puts the folder of a script first on its path, where this package's modules would hide others of their names.
if __name__ == "__main__":
    sys.path[:] = [folder for folder in sys.path if folder != os.path.dirname(os.path.abspath(__file__))]

import numpy as np

_SECONDS_BETWEEN_LOOKS_AT_THE_PARENT = 2.0


class Lanes:
    """The environments of one worker, by lane."""

    def __init__(self, env_id: str, max_steps: int) -> None:
        import gymnasium

        self._gymnasium, self._id, self._max_steps = gymnasium, env_id, max_steps
        self._envs: dict[int, Any] = {}

    def describe(self) -> dict[str, Any]:
        """The action space's size and bounds; ValueError where actions are not one bounded vector of floats."""
        env = self._make()
        space = env.action_space
        is_box = isinstance(space, self._gymnasium.spaces.Box) and len(space.shape) == 1
        if not is_box or space.dtype.kind != "f" or not (np.isfinite(space.low) & np.isfinite(space.high)).all():
            env.close()
            raise ValueError(f"actions must be one vector of bounded floats, but are {space}")
        env.close()
        return {"low": space.low.astype(np.float32), "high": space.high.astype(np.float32)}

    def reset(self, seeds: dict[int, int]) -> np.ndarray:
        """Start these lanes on these seeds; their first frames, in order."""
        self.close()
        frames = []
        for lane, seed in seeds.items():
            # A fresh environment: CarRacing keeps its physics world over resets, and traces of the last one.
            env = self._envs[lane] = self._make()
            observation, _ = env.reset(seed=seed)
            frames.append(self._frame(env, observation))
        return np.stack(frames)

    def step(self, lanes: list[int], actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One action for each of these lanes; frames, rewards, terminated, truncated."""
        rows = []
        for lane, action in zip(lanes, actions, strict=True):
            observation, reward, terminated, truncated, _ = self._envs[lane].step(action)
            rows.append((self._frame(self._envs[lane], observation), float(reward), bool(terminated), bool(truncated)))
        frames, rewards, terminations, truncations = zip(*rows, strict=True)
        return np.stack(frames), np.array(rewards), np.array(terminations), np.array(truncations)

    def render(self, lane: int) -> np.ndarray:
        """The environment's picture for people."""
        return np.asarray(self._envs[lane].render())

    def close(self) -> None:
        for env in self._envs.values():
            env.close()
        self._envs.clear()

    def _make(self) -> Any:
        return self._gymnasium.make(
            self._id, render_mode="rgb_array", max_episode_steps=self._max_steps, disable_env_checker=True
        )

    def _frame(self, env: Any, observation: Any) -> np.ndarray:
        is_picture = isinstance(observation, np.ndarray) and observation.dtype == np.uint8 and observation.ndim == 3
        return observation if is_picture else np.asarray(env.render())


def serve(connection: Connection, parent: int) -> None:
    """Answer requests until the parent says so, closes the connection, or dies."""
    lanes: Lanes | None = None
    while True:
        while not connection.poll(_SECONDS_BETWEEN_LOOKS_AT_THE_PARENT):
            if os.getppid() != parent:
                return
        try:
            name, *arguments = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        if name == "close":
            return
        try:
            if name == "start":
                lanes = Lanes(*arguments)
                answer = lanes.describe()
            else:
                answer = getattr(lanes, name)(*arguments)
        except Exception as error:
            connection.send(("error", _kind(error), str(error)))
        else:
            connection.send(("ok", answer))


def _kind(error: Exception) -> str:
    # Names, not classes: where gymnasium is what is missing, its error classes are missing too.
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, ImportError) or "DependencyNotInstalled" in names:
        return "missing"
    if "UnregisteredEnv" in names:
        return "unknown"
    return "unfit" if isinstance(error, ValueError) else type(error).__name__


if __name__ == "__main__":
    # gymnasium itself casts CarRacing's bounds to float32 and warns of it at every make.
    warnings.filterwarnings("ignore", message=".*precision lowered by casting to float32", category=UserWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
