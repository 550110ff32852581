"""Peers: other people's algorithms, which learn in a real environment what a run's policy learns in its dreams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wm_engine.envs.task import Baseline
from wm_engine.errors import MissingDependencyError


@dataclass(frozen=True)
class DQN:
    """Deep Q-learning (Mnih et al. 2015) by stable-baselines3, where vectors are seen and actions are discrete.

    env_id : the registered environment, which it learns in as it is
    settings : of ``stable_baselines3.DQN``
    """

    env_id: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, frames: int, seed: int) -> Baseline:
        """Learn from ``frames`` frames; what it draws follows from ``seed``. See :data:`wm_engine.envs.Peer`."""
        try:
            import stable_baselines3
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"DQN needs stable-baselines3, which is not installed ({error}): pip install 'wm-engine[peers]'"
            ) from error
        model = stable_baselines3.DQN("MlpPolicy", self.env_id, seed=seed % 2**32, device="cpu", **self.settings)
        model.learn(frames)
        return _Greedy(model)


@dataclass(frozen=True)
class _Greedy:
    """Takes the action that a stable-baselines3 model holds to be the best; the same for every seed."""

    model: Any

    def __call__(self, seeds: Sequence[int]) -> _Greedy:
        return self

    def act(self, observations: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """See :class:`wm_engine.envs.Driver`."""
        chosen, _ = self.model.predict(observations, deterministic=True)
        return np.eye(self.model.action_space.n, dtype=np.float32)[chosen]
