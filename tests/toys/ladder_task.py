"""The second toy task: what a random policy never meets decides, so one round cannot know it, and a loop can."""

import numpy as np

from wm_engine.envs import Task
from wm_engine.spaces import Discrete, Spaces, Vector


def hesitate(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Draw a plan, float32 [frames, 3], that stays or goes up: never down, which is the way on above the turn."""
    return np.eye(3, dtype=np.float32)[rng.integers(1, 3, size=frames)]


task = Task(
    name="ladder",
    env_id="Ladder-v0",
    spaces=Spaces(Vector(1), Discrete(3)),
    max_frames=30,
    frames_per_second=10,
    solved=1.0,
    register="toys.ladder",
    explore=hesitate,
)
