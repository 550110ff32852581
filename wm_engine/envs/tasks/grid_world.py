"""GridWorld: walk round obstacles to a goal that stands elsewhere in every episode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wm_engine.envs.exploration import held_spans
from wm_engine.envs.task import Task
from wm_engine.spaces import Discrete, Pixels, Spaces
from wm_engine.worlds.grid_world import kinds_of_cells, shortest_action

_ACTIONS = Discrete(5)


def walk_at_random(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Walk two steps a direction on average, float32 [frames, 5]: that crosses the grid, and meets its obstacles."""
    spans = held_spans(rng, frames, mean_span=2.0)
    return _ACTIONS.from_stored(rng.integers(5, size=int(spans[-1]) + 1)[spans])


class ShortestPath:
    """Walks a shortest path to the goal, which it reads off the picture: no policy does better."""

    def __init__(self, seeds: Sequence[int]) -> None:
        pass

    def act(self, observations: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """See :class:`wm_engine.envs.task.Driver`."""
        return _ACTIONS.from_stored(np.array([shortest_action(kinds_of_cells(seen)) for seen in observations]))


task = Task(
    name="grid_world",
    env_id="wm_engine/GridWorld-v0",
    spaces=Spaces(Pixels(), _ACTIONS),
    max_frames=100,
    frames_per_second=8,
    register="wm_engine",
    explore=walk_at_random,
    baselines={"shortest path": ShortestPath},
)
