"""The environment of the toy task: a corridor of nine places, whose right end pays; registered when it is imported.

Imported in the gymnasium backend's workers, so it imports neither torch nor wm_engine.
"""

from __future__ import annotations

import gymnasium
import numpy as np


class Corridor(gymnasium.Env):
    """Walk left, stay or walk right; the place is seen as a vector of two numbers. The right end pays 1 and ends it."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as gymnasium has it

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self._place = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._place = float(self.np_random.uniform(-0.8, 0.0))
        return self._seen(), {}

    def step(self, action):
        self._place = float(np.clip(self._place + 0.25 * (int(action) - 1), -1.0, 1.0))
        there = self._place >= 0.9
        return self._seen(), 1.0 if there else -0.01, there, False, {}

    def render(self):
        picture = np.zeros((16, 64, 3), np.uint8)
        picture[:, int(31 * (self._place + 1.0))] = 255
        return picture

    def _seen(self):
        return np.array([self._place, self._place**2], np.float32)


gymnasium.register(id="Corridor-v0", entry_point=Corridor, max_episode_steps=30)
