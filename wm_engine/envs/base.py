"""What every batch of real environments promises, and the part that all of them share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field

from wm_engine.checks import check_int
from wm_engine.envs.frames import preprocess
from wm_engine.envs.task import Task, find_task, recorded_task
from wm_engine.errors import ConfigError
from wm_engine.settings import Section
from wm_engine.spaces import Discrete, Pixels, Spaces

_LARGEST_SEED = 2**31 - 1


class EnvSettings(Section):
    """The environment: its task, how many at once, and on which backend."""

    free: ClassVar[frozenset[str]] = frozenset({"num_threads"})

    task: str = Field(
        "car_racing",
        description="a task of this package, a registered gymnasium environment, or an importable module with a task",
    )
    recorded: str = Field(
        "",
        description="the spaces of imported episodes as JSON, in place of an environment: written by "
        "`wm-engine import-data`",
    )
    backend: Literal["auto", "envpool", "gymnasium", "vizdoom"] = Field(
        "auto", description="auto takes the fastest of the task's backends that is installed"
    )
    action_repeat: int | None = Field(
        None, ge=1, description="frames for which every action is applied; left out: the task's own"
    )
    max_frames: int | None = Field(
        None, ge=1, description="an episode is truncated after so many frames; left out: the task's own"
    )
    num_envs: int = Field(16, ge=1, description="environments that run at once")
    num_threads: int = Field(0, ge=0, description="threads (EnvPool) or worker processes (others); 0: one a CPU")

    def found(self) -> Task:
        """The task itself, or imported episodes in its place; raises what :func:`wm_engine.envs.find_task` raises."""
        if not self.recorded:
            return find_task(self.task)
        try:
            return recorded_task(Spaces.from_json(json.loads(self.recorded)))
        except ValueError as error:
            raise ConfigError(f"env.recorded: {error}") from None

    @property
    def repeat(self) -> int:
        """For how many frames every action is applied."""
        return self.found().action_repeat if self.action_repeat is None else self.action_repeat

    @property
    def frame_limit(self) -> int:
        """After how many frames an episode is truncated."""
        return self.found().max_frames if self.max_frames is None else self.max_frames


@dataclass(frozen=True)
class Step:
    """The answers of n lanes to one action each, in the order in which the lanes were given.

    observations : as ``spaces.observations``, [n, ...], after the action's last frame, an episode's last one included
    rewards : float32 [n], summed over the frames for which the action was applied
    terminated : bool [n], the environment ended the episode
    truncated : bool [n], a limit of frames did, and the environment did not
    frames : int32 [n], for how many frames the action was applied: ``action_repeat``, or fewer where the episode ended
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    frames: np.ndarray

    @property
    def ended(self) -> np.ndarray:
        """bool [n]: the episode is over, for whichever reason."""
        return np.asarray(self.terminated | self.truncated)


class BatchedEnv(Protocol):
    """Many copies ("lanes") of an environment, stepped together, one episode a lane between two resets.

    backend : "envpool" | "gymnasium" | "vizdoom"
    task : what is simulated
    spaces : the task's
    num_lanes : the most lanes a reset may start
    max_frames : after how many frames a lane is truncated
    action_repeat : for how many frames every action is applied
    """

    backend: str
    task: Task
    spaces: Spaces
    num_lanes: int
    max_frames: int
    action_repeat: int

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start one episode a lane, lane i on ``seeds[i]``; n = len(seeds) <= num_lanes.

        Returns the first observations, as ``spaces.observations``: uint8 [n, 64, 64, 3] or float32 [n, size]. The same
        seed gives the same episode for the same actions, whatever the lane, the number of lanes or threads, and
        whatever ran before. ValueError for bad seeds.
        """
        ...

    def step(self, actions: np.ndarray, lanes: np.ndarray | Sequence[int] | None = None) -> Step:
        """Apply ``actions`` float32 [m, A] to the given lanes (None: all n), leaving the others where they are.

        Actions are clipped to their space: a box's to its bounds, and of discrete ones the largest entry is taken. Each
        is applied for ``action_repeat`` frames, or until its lane's episode ends. A lane whose episode is over may not
        be stepped until the next reset: nothing restarts by itself. TypeError and ValueError for actions of another
        type or shape, non-finite ones, and ended or unknown lanes.
        """
        ...

    def render(self, lane: int) -> np.ndarray:
        """A picture of one lane for people, uint8 [height, width, 3]; its size is the backend's own."""
        ...

    def close(self) -> None:
        """End threads and worker processes. Safe to call twice."""
        ...


class LaneEnv:
    """The part of a BatchedEnv that does not depend on who simulates: checks, repeated actions, limits, pictures.

    A backend implements ``_reset`` and ``_step`` for single frames, on the environment's own observations. It is given
    discrete actions as int32 [m], and boxes' as float32 [m, A] within the bounds. One that repeats actions by itself
    implements ``_repeat`` in place of ``_step``. Raises what ``check_int`` raises.
    """

    backend: str

    def __init__(self, task: Task, num_lanes: int, max_frames: int, action_repeat: int = 1) -> None:
        self.task, self.spaces = task, task.spaces
        self.num_lanes = check_int("num_lanes", num_lanes, least=1)
        self.max_frames = check_int("max_frames", max_frames, least=1)
        self.action_repeat = check_int("action_repeat", action_repeat, least=1)
        self._live = np.zeros(0, dtype=bool)
        self._frames = np.zeros(0, dtype=np.int64)  # since the reset, by lane

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        plain = check_seeds(seeds)
        if not 1 <= len(plain) <= self.num_lanes:
            raise ValueError(f"seeds must be 1 to {self.num_lanes} (num_lanes), but were {len(plain)}")
        self._live = np.zeros(0, dtype=bool)
        first = self._reset(plain)
        self._live, self._frames = np.ones(len(plain), dtype=bool), np.zeros(len(plain), dtype=np.int64)
        return self._observations(first)

    def step(self, actions: np.ndarray, lanes: np.ndarray | Sequence[int] | None = None) -> Step:
        chosen = self._check_lanes(lanes)
        step = self._repeat(self._check_actions(actions, len(chosen)), chosen)
        self._live[chosen[step.ended]] = False
        return step

    def close(self) -> None:
        raise NotImplementedError

    def _reset(self, seeds: list[int]) -> np.ndarray:
        """Start lanes 0 to n - 1; their first observations, the environment's own, [n, ...]."""
        raise NotImplementedError

    def _step(self, actions: np.ndarray, lanes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One frame of these lanes: new arrays of observations [m, ...], rewards, terminated and truncated [m]."""
        raise NotImplementedError

    def _aligned(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures [n, height, width, 3] as gymnasium draws them."""
        return pictures

    def _repeat(self, actions: np.ndarray, lanes: np.ndarray) -> Step:
        count = len(lanes)
        rewards, frames = np.zeros(count), np.zeros(count, dtype=np.int32)
        terminated, truncated = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        on = np.arange(count)  # places in ``lanes`` of those whose episode goes on
        last = np.zeros(0)
        for _ in range(self.action_repeat):
            seen, paid, ends, limits = self._step(actions[on], lanes[on])
            if len(on) == count:
                last = seen
            else:
                last[on] = seen
            rewards[on] += paid
            frames[on] += 1
            self._frames[lanes[on]] += 1
            terminated[on] = ends
            truncated[on] = (limits | (self._frames[lanes[on]] >= self.max_frames)) & ~ends
            on = on[~(terminated | truncated)[on]]
            if not len(on):
                break
        return Step(self._observations(last), rewards.astype(np.float32), terminated, truncated, frames)

    def _observations(self, seen: np.ndarray) -> np.ndarray:
        space = self.spaces.observations
        if isinstance(space, Pixels):
            return preprocess(self._aligned(seen), self.task.crop_rows, space.shape[:2])
        return np.ascontiguousarray(seen, dtype=space.dtype)

    def _check_lanes(self, lanes: np.ndarray | Sequence[int] | None) -> np.ndarray:
        chosen = np.arange(len(self._live)) if lanes is None else np.asarray(lanes)
        if chosen.ndim != 1 or chosen.size == 0 or chosen.dtype.kind not in "iu":
            raise ValueError(f"lanes must be a non-empty list of lane indices, but was {lanes!r}")
        if chosen.min() < 0 or chosen.max() >= len(self._live):
            raise ValueError(
                f"lanes must be 0 to {len(self._live) - 1}, the lanes of the last reset, but were {chosen}"
            )
        if len(np.unique(chosen)) != len(chosen):
            raise ValueError(f"lanes must differ from each other, but were {chosen}")
        if not self._live[chosen].all():
            raise ValueError(f"lanes {chosen[~self._live[chosen]].tolist()} have ended; only a reset starts them again")
        return chosen

    def _check_actions(self, actions: np.ndarray, count: int) -> np.ndarray:
        space = self.spaces.actions
        if not isinstance(actions, np.ndarray) or actions.dtype.kind != "f":
            had = actions.dtype if isinstance(actions, np.ndarray) else type(actions).__name__
            raise TypeError(f"actions must be a floating numpy array, but was {had}")
        if actions.shape != (count, space.size):
            raise ValueError(f"actions must have shape [{count}, {space.size}], but had {list(actions.shape)}")
        if not np.isfinite(actions).all():
            raise ValueError(
                f"actions must be finite, but row {int(np.argmin(np.isfinite(actions).all(axis=1)))} was not"
            )
        return space.to_stored(actions) if isinstance(space, Discrete) else space.clip(actions)


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """Return ``seeds`` as plain ints in [0, 2^31), which both backends take; TypeError or ValueError otherwise."""
    plain = [check_int(f"seeds[{index}]", seed, least=0) for index, seed in enumerate(seeds)]
    for index, seed in enumerate(plain):
        if seed > _LARGEST_SEED:
            raise ValueError(f"seeds[{index}] must be below 2^31, but was {seed}")
    return plain
