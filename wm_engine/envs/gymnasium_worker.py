"""A worker process of the gymnasium backend: it holds some lanes and answers requests until its parent is gone.

Run as a file, with the descriptor of its connection and its parent's process id, so that it imports gymnasium and
NumPy but not this package and torch: a worker starts in half a second and takes 80 MB. Requests are
(name, *arguments); answers are ("ok", value) or ("error", kind, message).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# Python puts the folder of a script first on its path, where this package's modules would hide others of their names.
if __name__ == "__main__":
    sys.path[:] = [folder for folder in sys.path if folder != os.path.dirname(os.path.abspath(__file__))]

import numpy as np

_SECONDS_BETWEEN_LOOKS_AT_THE_PARENT = 2.0


def describe(env_id: str, register: str) -> dict[str, Any]:
    """Make an environment once and tell its spaces as plain values, and its limit of frames (None: it has none).

    ``register``: a module to import first, which registers ``env_id``; "": none.
    """
    import gymnasium

    if register:
        importlib.import_module(register)
    env = gymnasium.make(env_id, render_mode=None, disable_env_checker=True)
    try:
        observations, actions = _observations(env.observation_space), _actions(env.action_space)
        return {
            "observations": observations | {"words": str(env.observation_space)},
            "actions": actions | {"words": str(env.action_space)},
            "max_frames": env.spec.max_episode_steps if env.spec else None,
        }
    finally:
        let_go(env)


def let_go(env: Any) -> None:
    """Close an environment, and empty the Box2D world that it would leave behind.

    pybox2d keeps every body that was not destroyed, even when its world is gone, and gymnasium's ``close`` destroys
    none: 31 episodes of CarRacing left 9,428 bodies. With the contact listener dropped as well, memory stays flat.
    """
    env.close()
    bare = env.unwrapped
    world = getattr(bare, "world", None)
    if type(world).__module__.partition(".")[0] != "Box2D" or not hasattr(bare, "_destroy"):
        return
    for owner, name in (
        (world, "contactListener"),
        (world, "contactListener_bug_workaround"),
        (bare, "contactListener_keepref"),
    ):
        if hasattr(owner, name):
            setattr(owner, name, None)
    bare._destroy()


class Lanes:
    """The environments of one worker, by lane."""

    def __init__(self, env_id: str, max_frames: int, discrete_start: int | None) -> None:
        import gymnasium

        self._gymnasium, self._id, self._max_frames = gymnasium, env_id, max_frames
        self._start = discrete_start  # the first of discrete actions; None: actions are vectors
        self._envs: dict[int, Any] = {}

    def reset(self, seeds: dict[int, int]) -> np.ndarray:
        """Start these lanes on these seeds; their first observations, in order."""
        self.close()
        observations = []
        for lane, seed in seeds.items():
            # A fresh environment: CarRacing keeps its physics world over resets, and traces of the last one.
            env = self._envs[lane] = self._make()
            observation, _ = env.reset(seed=seed)
            observations.append(observation)
        return np.stack(observations)

    def step(self, lanes: list[int], actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Apply one action to each of these lanes; observations, rewards, terminated, truncated."""
        rows = []
        for lane, action in zip(lanes, actions, strict=True):
            given = action if self._start is None else self._start + int(action)
            observation, reward, terminated, truncated, _ = self._envs[lane].step(given)
            rows.append((observation, float(reward), bool(terminated), bool(truncated)))
        observations, rewards, terminations, truncations = zip(*rows, strict=True)
        return np.stack(observations), np.array(rewards), np.array(terminations), np.array(truncations)

    def render(self, lane: int) -> np.ndarray:
        """Draw the environment's picture for people."""
        return np.asarray(self._envs[lane].render())

    def close(self) -> None:
        """Let all environments go."""
        while self._envs:
            let_go(self._envs.popitem()[1])

    def _make(self) -> Any:
        return self._gymnasium.make(
            self._id, render_mode="rgb_array", max_episode_steps=self._max_frames, disable_env_checker=True
        )


def start(env_id: str, max_frames: int, register: str) -> tuple[dict[str, Any], Lanes]:
    """Describe an environment, and make its lanes."""
    found = describe(env_id, register)
    return found, Lanes(env_id, max_frames, found["actions"].get("start"))


def serve(connection: Connection, parent: int, start: Callable[..., tuple[dict[str, Any], Any]]) -> None:
    """Answer requests until the parent says so, closes the connection, or dies.

    ``start`` makes lanes of what the request of that name brings, and tells what the parent should know of them.
    """
    lanes: Any = None
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
            if name == "describe":
                answer: Any = describe(*arguments)
            elif name == "start":
                answer, lanes = start(*arguments)
            else:
                answer = getattr(lanes, name)(*arguments)
        except Exception as error:
            connection.send(("error", _kind(error), str(error)))
        else:
            connection.send(("ok", answer))


def _observations(space: Any) -> dict[str, Any]:
    from gymnasium.spaces import Box

    if isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[2] == 3:
        return {"kind": "picture"}
    if isinstance(space, Box) and space.dtype.kind == "f" and len(space.shape) == 1:
        return {"kind": "vector", "size": int(space.shape[0])}
    return {"kind": "other"}


def _actions(space: Any) -> dict[str, Any]:
    from gymnasium.spaces import Box, Discrete

    if isinstance(space, Discrete) and space.n >= 2:
        return {"kind": "discrete", "count": int(space.n), "start": int(space.start)}
    if isinstance(space, Box) and space.dtype.kind == "f" and len(space.shape) == 1:
        return {"kind": "box", "low": space.low, "high": space.high}
    return {"kind": "other"}


def _kind(error: Exception) -> str:
    # Names, not classes: where gymnasium is what is missing, its error classes are missing too.
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, ImportError) or "DependencyNotInstalled" in names:
        return "missing"
    # An unknown name, version or namespace; or one of a version that gymnasium no longer makes.
    if names & {"UnregisteredEnv", "NameNotFound", "VersionNotFound", "NamespaceNotFound", "DeprecatedEnv"}:
        return "unknown"
    return "unfit" if isinstance(error, ValueError) else type(error).__name__


if __name__ == "__main__":
    # gymnasium itself casts CarRacing's bounds to float32 and warns of it at every make.
    warnings.filterwarnings("ignore", message=".*precision lowered by casting to float32", category=UserWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        serve(Connection(int(sys.argv[1])), int(sys.argv[2]), start)
