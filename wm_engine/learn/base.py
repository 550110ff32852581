"""What every learner promises: it takes a problem, a round at a time, and gives a policy.

A kind of learner is a file of this folder with a module attribute ``learner``, a class with a ``Settings`` section of
its own; a dotted name is any module on Python's path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from wm_engine.dream.types import DreamOutput, Starts
from wm_engine.envs.task import Task
from wm_engine.kinds import find_kind
from wm_engine.models.base import WorldModel
from wm_engine.policies.base import Policy
from wm_engine.settings import Section

State = tuple[dict[str, Tensor], dict[str, Any]]


class Dreamer(Protocol):
    """Dreams populations: a :class:`wm_engine.dream.engine.DreamEngine`, or a fleet of them."""

    backend: str

    @property
    def device(self) -> torch.device: ...

    def rollout(
        self,
        params: Tensor,
        starts: Starts,
        *,
        episodes: int,
        max_steps: int,
        temperature: float,
        seed: int,
        reward: str,
        done: str,
    ) -> DreamOutput:
        """See :meth:`wm_engine.dream.engine.DreamEngine.rollout`."""
        ...


class RealWorld(Protocol):
    """The real environment, for learners that may try themselves there."""

    frames: int
    """How many frames have been driven so far."""

    def returns(
        self, policy: Callable[[np.ndarray], Policy], seeds: list[int], max_frames: int, patience: int
    ) -> np.ndarray:
        """Drive one episode a seed: float32 [N] returns, NaN where the policy failed.

        policy : makes the policy of a batch's lanes from the numbers int64 [n] of its episodes
        max_frames : where an episode is cut; patience : after so many frames without a positive reward (0: never)
        """
        ...


@dataclass(frozen=True)
class Problem:
    """A round as a learner is given it.

    round : which one, from 0; seed : of everything that the learner draws in it
    world : M, finished; starts : recorded states to dream from
    dreamer : makes an engine, or a fleet of them, that dreams controllers of a shape, in ``world`` or in a world model
        that is given beside the shape
    real : the real environment; None where the learner's settings did not ask for it
    """

    round: int
    seed: int
    world: WorldModel
    starts: Starts
    dreamer: Callable[..., Dreamer]
    real: RealWorld | None = None


@dataclass(frozen=True)
class DreamRules:
    """How a learner's dreams go, for whoever wants to dream as it does.

    steps : the most decisions of a dream; None: as many as a real episode has
    temperature : tau; done : "threshold" | "sample", how a dream ends
    reward : what a dreamt step is worth: "task", as the task says, "predicted" (M's) or "survival" (1)
    """

    steps: int | None = None
    temperature: float = 1.0
    done: str = "threshold"
    reward: str = "task"

    def survival(self, task_reward: str) -> bool:
        """Whether every step is worth 1, in a task whose own rewards are ``task_reward``."""
        return (task_reward if self.reward == "task" else self.reward) == "survival"


class LearnerSettings(Section):
    """Settings of every kind of learner: where dreams begin."""

    kind: str = "evolution"
    starts: int = Field(4096, ge=1, description="recorded states that a round's dreams begin from")
    start_episodes: int = Field(
        96, ge=1, description="episodes that these are taken from: half of them the newest, half any of the others"
    )
    mid_fraction: float = Field(1.0, ge=0.0, le=1.0, description="share of them from the middle of episodes")
    burn_in: bool = Field(True, description="they come with M's hidden state after what was recorded before them")

    def wants_real(self) -> bool:
        """Say whether the learner is handed the real environment."""
        return False

    def dream_rules(self, round_index: int) -> DreamRules:
        """Say how the dreams of a round go."""
        return DreamRules()


class Learner(ABC):
    """A kind of learner. All that it has learnt is in ``state``; a round's work is cut into units.

    ``build`` raises ConfigError where the settings do not fit the task or the world model.
    """

    Settings: ClassVar[type[LearnerSettings]]

    @classmethod
    @abstractmethod
    def build(cls, settings: Any, task: Task, world: WorldModel, seed: int, device: torch.device) -> Learner:
        """Make a new one for a task and a world model of the given shape."""

    @abstractmethod
    def units(self, round_index: int) -> int:
        """Return how many units of work a round has."""

    @abstractmethod
    def learn(self, problem: Problem, done: int) -> Iterator[dict[str, float]]:
        """Do the round's units from number ``done`` on; yields each one's numbers for the record.

        Whatever is drawn follows from the problem's seed and the unit's number alone.
        """

    @abstractmethod
    def policy(self) -> Policy:
        """Return the present policy, for one lane."""

    @abstractmethod
    def candidates(self, count: int, seed: int) -> Policy:
        """Return what the learner would try next, a policy for ``count`` lanes; in lane 0 the present policy."""

    @abstractmethod
    def state(self) -> State:
        """Return everything that a continued run needs, as (tensors, JSON-able values), taken between units."""

    @abstractmethod
    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Put back what :meth:`state` returned; CorruptFileError where it is not whole."""

    @abstractmethod
    def save_policy(self, path: Path, policy: Policy) -> None:
        """Write one of its policies as a safetensors file that :meth:`load_policy` reads."""

    @classmethod
    @abstractmethod
    def load_policy(cls, path: Path) -> Policy:
        """Read a policy back, for one lane; CorruptFileError where the file holds something else."""


def learner_kind(name: Any) -> type[Learner]:
    """Find a kind of learner; ConfigError with the nearest known name where there is none."""
    found: type[Learner] = find_kind("controller.kind", name, "wm_engine.learn", "learner")
    return found
