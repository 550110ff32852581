"""SimpleCarRacing: drive round a ring-shaped track that is seen whole, with steering and gas."""

from __future__ import annotations

from wm_engine.envs.task import Task
from wm_engine.spaces import Box, Pixels, Spaces

task = Task(
    name="simple_car_racing",
    env_id="wm_engine/SimpleCarRacing-v0",
    spaces=Spaces(Pixels(), Box(low=(-1.0, 0.0), high=(1.0, 1.0))),
    max_frames=200,
    frames_per_second=20,
    register="wm_engine",
)
