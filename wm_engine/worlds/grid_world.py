"""``wm_engine/GridWorld-v0``: walk round obstacles to a goal, seen from above as a picture of 64 by 64 pixels."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium
import numpy as np

SIZE = 8
"""Cells a side; a cell is drawn as 8 by 8 pixels."""

MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
"""What the five actions do to (row, column): stay, up, down, left, right."""

_PIXELS = 64 // SIZE
FLOOR, WALL, GOAL, AGENT = (225, 225, 215), (70, 70, 80), (50, 170, 80), (200, 60, 60)
_GOAL_REWARD, _STEP_REWARD, _BUMP_REWARD = 1.0, -0.01, -0.05


class GridWorld(gymnasium.Env):
    """A grid of 8 by 8 cells with obstacles, an agent and a goal.

    A step costs 0.01, a step against an obstacle or the border 0.05; reaching the goal pays 1 and ends the episode. It
    is truncated after 100 steps where it is made by ``gymnasium.make``. ``reset(seed=...)`` draws where the agent
    and the goal stand; every free cell can be reached from every other.

    Parameters
    ----------
    layout : seed of the map of obstacles; None: ``reset`` draws another map for every episode
    obstacles : how many cells they take
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012 - as gymnasium has it
    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(len(MOVES))

    def __init__(self, render_mode: str | None = None, layout: int | None = 0, obstacles: int = 10) -> None:
        if not 0 <= obstacles <= SIZE * SIZE // 3:
            raise ValueError(f"obstacles must be from 0 to {SIZE * SIZE // 3}, but was {obstacles}")
        self.render_mode = render_mode
        self._obstacles, self._layout = obstacles, layout
        self.walls = np.zeros((SIZE, SIZE), bool)
        self.agent, self.goal = (0, 0), (0, 0)
        if layout is not None:
            self.walls = _draw_map(np.random.default_rng(layout), obstacles)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if self._layout is None:
            self.walls = _draw_map(self.np_random, self._obstacles)
        free = np.argwhere(~self.walls)
        agent, goal = free[self.np_random.choice(len(free), 2, replace=False)].tolist()
        self.agent, self.goal = tuple(agent), tuple(goal)
        return self._picture(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        moved = _moved(self.walls, self.agent, int(action))
        if moved is None:
            return self._picture(), _BUMP_REWARD, False, False, {}
        self.agent = moved
        there = self.agent == self.goal
        return self._picture(), _GOAL_REWARD if there else _STEP_REWARD, there, False, {}

    def render(self) -> np.ndarray:
        """Draw the picture large enough for people, uint8 [384, 384, 3]."""
        return self._picture().repeat(6, axis=0).repeat(6, axis=1)

    def _picture(self) -> np.ndarray:
        cells = np.where(self.walls[..., None], np.array(WALL, np.uint8), np.array(FLOOR, np.uint8))
        cells[self.goal] = GOAL
        picture = cells.repeat(_PIXELS, axis=0).repeat(_PIXELS, axis=1)
        top, left = (place * _PIXELS + 1 for place in self.agent)
        picture[top : top + _PIXELS - 2, left : left + _PIXELS - 2] = AGENT
        return picture


def _moved(walls: np.ndarray, agent: tuple[int, int], action: int) -> tuple[int, int] | None:
    """Where an action leads from a cell; None where an obstacle or the border is."""
    row, column = agent[0] + MOVES[action][0], agent[1] + MOVES[action][1]
    return (row, column) if 0 <= row < SIZE and 0 <= column < SIZE and not walls[row, column] else None


def shortest_action(kinds: np.ndarray) -> int:
    """Return the first action of a shortest path, from what each cell shows, int64 [8, 8] (:func:`kinds_of_cells`).

    Staying, 0, where there is no goal or no agent: the agent stands on the goal.
    """
    agents, goals = np.argwhere(kinds == 3).tolist(), np.argwhere(kinds == 2).tolist()
    if len(agents) != 1 or len(goals) != 1:
        return 0
    walls, agent, goal = kinds == 1, (agents[0][0], agents[0][1]), (goals[0][0], goals[0][1])
    far = distances(walls, goal)
    after = [far[there] if (there := _moved(walls, agent, action)) else SIZE**2 for action in range(5)]
    return int(np.argmin(after))


def distances(walls: np.ndarray, goal: tuple[int, int]) -> np.ndarray:
    """Count the steps from every cell to the goal round walls bool [8, 8]: int64 [8, 8], 64 where there is no way."""
    far = np.full(walls.shape, walls.size)
    far[goal] = 0
    queue = deque([goal])
    while queue:
        row, column = queue.popleft()
        for down, right in MOVES[1:]:
            there = (row + down, column + right)
            if min(there) >= 0 and max(there) < SIZE and not walls[there] and far[there] == walls.size:
                far[there] = far[row, column] + 1
                queue.append(there)
    return far


def _draw_map(rng: np.random.Generator, obstacles: int) -> np.ndarray:
    """Draw so many obstacles, bool [8, 8], that leave every free cell within reach of every other."""
    while True:
        walls = np.zeros((SIZE, SIZE), bool)
        walls.flat[rng.choice(SIZE * SIZE, obstacles, replace=False)] = True
        row, column = np.argwhere(~walls)[0].tolist()
        if (distances(walls, (row, column))[~walls] < SIZE * SIZE).all():
            return walls


def kinds_of_cells(picture: np.ndarray) -> np.ndarray:
    """Tell from a picture [64, 64, 3], levels 0 to 255, what each cell shows: int64 [8, 8], 0 floor, 1 wall, 2 goal, 3
    agent, by the nearest colour of the cell's middle four by four pixels."""
    cells = picture.astype(np.float64).reshape(SIZE, _PIXELS, SIZE, _PIXELS, 3)[:, 2:-2, :, 2:-2].mean((1, 3))
    colours = np.array([FLOOR, WALL, GOAL, AGENT], np.float64)
    return np.asarray(np.square(cells[:, :, None] - colours).sum(-1).argmin(-1))
