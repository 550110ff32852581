"""The toy learner: random search over tables of action values that are linear in z."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from wm_engine.dream.imagination import imagine
from wm_engine.dream.types import Starts
from wm_engine.envs import Task
from wm_engine.files import load_tensors, save_tensors
from wm_engine.learn.base import Learner, LearnerSettings, Problem, State
from wm_engine.models.base import WorldModel
from wm_engine.policies.base import Policy
from wm_engine.rng import keyed_generator


class SearchSettings(LearnerSettings):
    """What the toy is told."""

    kind: Literal["toys.learner"] = "toys.learner"
    tries: int = Field(8, ge=1, description="tables that a round tries")
    dream_steps: int = Field(12, ge=1, description="steps of a dream")


class Tables:
    """Linear tables float32 [n, A, Z+1], one a lane; the action with the largest value is taken."""

    features = "z"

    def __init__(self, tables: Tensor) -> None:
        self.tables = tables

    def act(self, features: Tensor, lanes: Tensor) -> Tensor:
        seen = torch.cat([features, torch.ones(len(features), 1)], dim=-1)
        values = torch.einsum("naf,nf->na", self.tables[lanes % len(self.tables)], seen)
        return torch.nn.functional.one_hot(values.argmax(-1), values.shape[1]).float()


class RandomSearch(Learner):
    """Keeps the best table seen; tries others around it."""

    Settings = SearchSettings

    def __init__(self, settings: SearchSettings, shape: tuple[int, int]) -> None:
        self.settings, self.best, self.width = settings, torch.zeros(1, *shape), 1.0

    @classmethod
    def build(cls, settings: Any, task: Task, world: WorldModel, seed: int, device: torch.device) -> RandomSearch:
        return cls(settings, (task.spaces.actions.size, world.latent + 1))

    def units(self, round_index: int) -> int:
        return self.settings.tries

    def learn(self, problem: Problem, done: int) -> Iterator[dict[str, float]]:
        count = min(32, len(problem.starts))
        starts = Starts(problem.starts.z[:count])
        for unit in range(done, self.settings.tries):
            noise = torch.randn(self.best.shape, generator=keyed_generator(problem.seed, unit))
            tried = torch.cat([self.best, self.best + self.width * noise])
            returns = [
                float(
                    imagine(problem.world, Tables(table), starts, self.settings.dream_steps, seed=unit).returns().mean()
                )
                for table in tried.unsqueeze(1)
            ]
            if returns[1] > returns[0]:
                self.best = tried[1:]
            yield {"mean": sum(returns) / 2, "best": max(returns), "std": 0.0, "steps": 2.0 * count}

    def policy(self) -> Policy:
        return Tables(self.best)

    def candidates(self, count: int, seed: int) -> Policy:
        noise = torch.randn(count, *self.best.shape[1:], generator=keyed_generator(seed))
        noise[0] = 0.0
        return Tables(self.best + 0.3 * noise)

    def state(self) -> State:
        return {"best": self.best}, {"width": self.width}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.best, self.width = tensors["best"], values["width"]

    def save_policy(self, path: Path, policy: Policy) -> None:
        assert isinstance(policy, Tables)
        save_tensors(path, {"tables": policy.tables}, {"kind": "toys.learner"})

    @classmethod
    def load_policy(cls, path: Path) -> Policy:
        return Tables(load_tensors(path)[0]["tables"])


learner = RandomSearch
