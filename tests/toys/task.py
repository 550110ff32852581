"""The toy task: a vector is seen, one of three actions is taken."""

import numpy as np

from wm_engine.envs import Task
from wm_engine.spaces import Discrete, Spaces, Vector


class OneAction:
    """Take one action for ever, whatever is seen: a baseline."""

    def __init__(self, seeds, action=2):
        self._action = np.eye(3, dtype=np.float32)[action]

    def act(self, observations, lanes):
        return np.tile(self._action, (len(lanes), 1))


task = Task(
    name="corridor",
    env_id="Corridor-v0",
    spaces=Spaces(Vector(2), Discrete(3)),
    max_frames=30,
    frames_per_second=10,
    solved=0.9,
    register="toys.corridor",
    baselines={"always right": OneAction},
)
