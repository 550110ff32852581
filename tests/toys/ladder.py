"""The environment of the second toy task: a ladder whose upper half is upside down; registered when it is imported.

Imported in the gymnasium backend's workers, so it imports neither torch nor wm_engine.
"""

from __future__ import annotations

import gymnasium
import numpy as np

TOP, TURN, GAP = 10, 5, 4


class Ladder(gymnasium.Env):
    """Climb ten rungs: down, stay or up, and from the sixth on up is down. Every rung won pays 0.1; the top ends it.

    The height is seen, with a gap in the middle. The best return is 1; who always goes up is stuck between rungs 5 and 6.
    """

    observation_space = gymnasium.spaces.Box(0.0, 1.4, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as gymnasium has it

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self._rung = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._rung = 0
        return self._seen(), {}

    def step(self, action):
        before = self._rung
        move = (int(action) - 1) * (-1 if before > TURN else 1)
        self._rung = int(np.clip(before + move, 0, TOP))
        return self._seen(), 0.1 * (self._rung - before), self._rung == TOP, False, {}

    def render(self):
        picture = np.zeros((64, 16, 3), np.uint8)
        picture[63 - 6 * self._rung] = 255
        return picture

    def _seen(self):
        return np.array([0.1 * (self._rung + (GAP if self._rung > TURN else 0))], np.float32)


gymnasium.register(id="Ladder-v0", entry_point=Ladder, max_episode_steps=30)
