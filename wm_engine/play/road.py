"""The real environment beside a dream, from the same recorded state on, under the same actions."""

from __future__ import annotations

import numpy as np

from wm_engine.data.store import RolloutStore
from wm_engine.envs import EnvSettings, make_env


class Road:
    """One real environment. Recorded states are come by again: the episode's seed, then its recorded actions.

    Raises what :func:`wm_engine.envs.make_env` raises, in words, where the environment is not installed.
    """

    def __init__(self, settings: EnvSettings, store: RolloutStore) -> None:
        self._env = make_env(settings.model_copy(update={"num_threads": 1}), 1)
        self._store = store
        self.observation = np.zeros(0)
        self.total, self.ended, self.repeats = 0.0, False, True
        """The return since the beginning; whether the episode is over; whether it began where the record says."""

    def begin(self, episode: int, step: int) -> None:
        """Bring the environment to where a recorded episode was before step ``step``."""
        self.observation = self._env.reset([self._store.info(episode).seed])[0]
        self.ended = False
        actions, _ = self._store.actions_and_rewards(episode)
        for action in actions[:step]:
            self.step(action)
        self.repeats = not self.ended and np.array_equal(
            self.observation, self._store.observations(episode, step, step + 1)[0]
        )
        self.total = 0.0

    def step(self, action: np.ndarray) -> None:
        """Take an action float32 [A] there; nothing happens after the end."""
        if self.ended:
            return
        step = self._env.step(action[None])
        self.observation = step.observations[0]
        self.total += float(step.rewards[0])
        self.ended = bool(step.ended[0])

    def close(self) -> None:
        """End the environment."""
        self._env.close()
