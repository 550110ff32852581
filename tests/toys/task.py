"""The toy task: a vector is seen, one of three actions is taken."""

from wm_engine.envs import Task
from wm_engine.spaces import Discrete, Spaces, Vector

task = Task(
    name="corridor",
    env_id="Corridor-v0",
    spaces=Spaces(Vector(2), Discrete(3)),
    max_frames=30,
    frames_per_second=10,
    solved=0.9,
    register="toys.corridor",
)
