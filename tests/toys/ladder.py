"""The environment of the second toy task: a ladder whose upper half is upside down; registered when it is imported.

Imported in the gymnasium backend's workers, so it imports neither torch nor wm_engine.
"""

from __future__ import annotations

import gymnasium
import numpy as np

TOP, TURN = 6, 3


class Ladder(gymnasium.Env):
    """Climb six rungs: down, stay or up, and above the third up is down. A rung won pays a sixth; the top ends it.

    The height is seen, with a gap where the ladder turns. The best return is 1; who always goes up comes no further
    than the fourth rung.
    """

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
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
        return self._seen(), (self._rung - before) / TOP, self._rung == TOP, False, {}

    def render(self):
        picture = np.zeros((64, 16, 3), np.uint8)
        picture[63 - 10 * self._rung] = 255
        return picture

    def _seen(self):
        return np.array([(self._rung + (self._rung > TURN)) / (TOP + 1)], np.float32)


gymnasium.register(id="Ladder-v0", entry_point=Ladder, max_episode_steps=30)
