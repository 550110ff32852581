"""A task of one's own, found as "envs.counter_task"."""

from wm_engine.envs import Task
from wm_engine.spaces import Discrete, Spaces, Vector

task = Task(
    name="counter_task",
    env_id="Counter-v0",
    spaces=Spaces(Vector(3), Discrete(3)),
    action_repeat=3,
    max_frames=20,
    reward="survival",
    register="envs.counters",
)
