"""What every batch of real environments promises, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field

from wm_engine.checks import check_int
from wm_engine.envs.frames import CAR_RACING_ROWS, preprocess
from wm_engine.settings import Section

CAR_RACING = "CarRacing-v3"
_LARGEST_SEED = 2**31 - 1


class EnvSettings(Section):
    """Which environment, how many at once, and on what."""

    free: ClassVar[frozenset[str]] = frozenset({"num_threads"})

    id: str = Field(CAR_RACING, description="a registered gymnasium environment with pictures and continuous actions")
    backend: Literal["auto", "envpool", "gymnasium"] = Field(
        "auto", description="auto takes EnvPool where it is installed and knows the environment, gymnasium otherwise"
    )
    max_steps: int = Field(1000, ge=1, description="an episode is truncated after so many steps")
    num_envs: int = Field(16, ge=1, description="environments that run at once")
    num_threads: int = Field(0, ge=0, description="threads (EnvPool) or worker processes (gymnasium); 0: one a CPU")


@dataclass(frozen=True)
class Step:
    """What n lanes answered to one action each, in the order in which the lanes were given.

    frames : uint8 [n, 64, 64, 3], the frame after the action, the last one of an episode included
    rewards : float32 [n]
    terminated : bool [n], the environment ended the episode
    truncated : bool [n], the step limit did
    """

    frames: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray

    @property
    def ended(self) -> np.ndarray:
        """bool [n]: the episode is over, for whichever reason."""
        return np.asarray(self.terminated | self.truncated)


class BatchedEnv(Protocol):
    """Many copies ("lanes") of an environment, stepped together, one episode a lane between two resets.

    backend : "envpool" | "gymnasium"
    num_lanes : the most lanes a reset may start
    action_size : A
    action_low, action_high : float32 [A]
    """

    backend: str
    num_lanes: int
    action_size: int
    action_low: np.ndarray
    action_high: np.ndarray

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start one episode a lane, lane i on the track of ``seeds[i]``; n = len(seeds) <= num_lanes.

        Returns the first frames, uint8 [n, 64, 64, 3]. The same seed gives the same episode for the same actions,
        whatever the lane, the number of lanes or threads, and whatever ran before. ValueError for bad seeds.
        """
        ...

    def step(self, actions: np.ndarray, lanes: np.ndarray | Sequence[int] | None = None) -> Step:
        """Apply ``actions`` float32 [m, A] to the given lanes (None: all n), leaving the others where they are.

        Actions are clipped to [action_low, action_high]. A lane whose episode is over may not be stepped until the next
        reset: nothing restarts by itself. ValueError for wrong shapes, non-finite actions, and ended or unknown lanes.
        """
        ...

    def render(self, lane: int) -> np.ndarray:
        """A picture of one lane for people, uint8 [height, width, 3]; its size is the backend's own."""
        ...

    def close(self) -> None:
        """End threads and worker processes. Safe to call twice."""
        ...


class LaneEnv:
    """The part of a BatchedEnv that does not depend on who simulates: checks, the state of lanes, preprocessing.

    A backend sets the attributes of BatchedEnv and implements ``_reset`` and ``_step`` on the environment's raw frames.
    """

    backend: str
    num_lanes: int
    action_size: int
    action_low: np.ndarray
    action_high: np.ndarray

    def __init__(self, env_id: str, num_lanes: int) -> None:
        self.num_lanes = check_int("num_lanes", num_lanes, least=1)
        self._rows = CAR_RACING_ROWS if env_id == CAR_RACING else None
        self._live = np.zeros(0, dtype=bool)

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        plain = check_seeds(seeds)
        if not 1 <= len(plain) <= self.num_lanes:
            raise ValueError(f"seeds must be 1 to {self.num_lanes} (num_lanes), but were {len(plain)}")
        self._live = np.zeros(0, dtype=bool)
        frames = self._reset(plain)
        self._live = np.ones(len(plain), dtype=bool)
        return preprocess(frames, self._rows)

    def step(self, actions: np.ndarray, lanes: np.ndarray | Sequence[int] | None = None) -> Step:
        chosen = self._check_lanes(lanes)
        frames, rewards, terminated, truncated = self._step(self._check_actions(actions, len(chosen)), chosen)
        step = Step(preprocess(frames, self._rows), rewards.astype(np.float32), terminated, truncated)
        self._live[chosen[step.ended]] = False
        return step

    def close(self) -> None:
        raise NotImplementedError

    def _reset(self, seeds: list[int]) -> np.ndarray:
        raise NotImplementedError

    def _step(self, actions: np.ndarray, lanes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        raise NotImplementedError

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
        if not isinstance(actions, np.ndarray) or actions.dtype.kind != "f":
            raise TypeError(f"actions must be a floating numpy array, but was {type(actions).__name__}")
        if actions.shape != (count, self.action_size):
            raise ValueError(f"actions must have shape [{count}, {self.action_size}], but had {list(actions.shape)}")
        if not np.isfinite(actions).all():
            raise ValueError(
                f"actions must be finite, but row {int(np.argmin(np.isfinite(actions).all(axis=1)))} was not"
            )
        return np.clip(actions, self.action_low, self.action_high).astype(np.float32)


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """``seeds`` as plain ints in [0, 2^31), the range that both backends take; TypeError or ValueError otherwise."""
    plain = [check_int(f"seeds[{index}]", seed, least=0) for index, seed in enumerate(seeds)]
    for index, seed in enumerate(plain):
        if seed > _LARGEST_SEED:
            raise ValueError(f"seeds[{index}] must be below 2^31, but was {seed}")
    return plain
