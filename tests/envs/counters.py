"""Environments of a test's own, registered when this module is imported, in the gymnasium backend's workers."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete


class Counter(gymnasium.Env):
    """Shows [seed, frames, last action] and pays the action; over after 10 frames. Its actions are 5, 6 and 7."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as gymnasium has it
    observation_space = Box(-np.inf, np.inf, (3,), np.float64)
    action_space = Discrete(3, start=5)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        self.shown = np.array([seed, 0.0, 0.0])
        return self.shown.copy(), {}

    def step(self, action):
        assert isinstance(action, int)
        self.shown[1:] = self.shown[1] + 1, action
        return self.shown.copy(), float(action), bool(self.shown[1] >= 10), False, {}

    def render(self):
        return np.full((4, 4, 3), int(self.shown[1]), np.uint8)


class Odd(Counter):
    """Has whatever spaces it is registered with."""

    def __init__(self, render_mode=None, observations=None, actions=None):
        super().__init__(render_mode)
        self.observation_space = observations or Counter.observation_space
        self.action_space = actions or Counter.action_space


ODD = {
    "Dict": {"observations": Dict(x=Box(0, 1, (2,)))},
    "Matrix": {"observations": Box(0, 1, (2, 2))},
    "Grey": {"observations": Box(0, 255, (8, 8, 1), np.uint8)},
    "Integers": {"observations": Box(0, 255, (8,), np.uint8)},
    "MultiDiscrete": {"actions": MultiDiscrete([2, 3])},
    "Unbounded": {"actions": Box(-np.inf, 1.0, (2,))},
    "Huge": {"actions": Box(-1e300, 1e300, (2,), np.float64)},
    "Single": {"actions": Discrete(1)},
    "MatrixActions": {"actions": Box(0, 1, (2, 2))},
}

gymnasium.register("Counter-v0", "envs.counters:Counter", max_episode_steps=8)
for name, spaces in ODD.items():
    gymnasium.register(f"Odd{name}-v0", "envs.counters:Odd", kwargs=spaces)
