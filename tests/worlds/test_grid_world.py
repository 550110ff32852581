"""GridWorld-v0: gymnasium's own checks, its rules one by one, and paths that are the shortest there are."""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import wm_engine  # noqa: F401 - registers it
from wm_engine.worlds import grid_world
from wm_engine.worlds.grid_world import (
    AGENT,
    FLOOR,
    GOAL,
    MOVES,
    SIZE,
    WALL,
    GridWorld,
    distances,
    kinds_of_cells,
    shortest_action,
)


@pytest.fixture
def env():
    made = GridWorld()
    made.reset(seed=3)
    return made


def placed(env, agent, goal):
    env.walls[:] = False
    env.walls[2, 3] = True
    env.agent, env.goal = agent, goal
    return env


def test_gymnasium_finds_no_fault_with_it():
    check_env(gymnasium.make("wm_engine/GridWorld-v0", render_mode="rgb_array").unwrapped)


def test_equal_seeds_give_equal_episodes():
    pictures = []
    for _ in range(2):
        env = GridWorld(layout=None)
        first, _ = env.reset(seed=11)
        pictures.append(np.stack([first, *(env.step(action)[0] for action in (1, 2, 3, 4, 0))]))
    np.testing.assert_array_equal(*pictures)


def test_the_map_stays_and_the_places_change_unless_told_otherwise():
    kept, drawn = GridWorld(), GridWorld(layout=None)
    maps, places = [], set()
    for seed in range(5):
        kept.reset(seed=seed)
        drawn.reset(seed=seed)
        np.testing.assert_array_equal(kept.walls, GridWorld().walls)
        maps.append(drawn.walls.tobytes())
        places.add((kept.agent, kept.goal))
    assert len(set(maps)) == len(places) == 5


@pytest.mark.parametrize(
    ("agent", "action", "there", "reward", "ended"),
    [
        ((2, 2), 0, (2, 2), -0.01, False),
        ((2, 2), 1, (1, 2), -0.01, False),
        ((2, 2), 4, (2, 2), -0.05, False),  # an obstacle
        ((0, 0), 3, (0, 0), -0.05, False),  # the border
        ((6, 7), 2, (7, 7), 1.0, True),  # the goal
    ],
)
def test_a_step(env, agent, action, there, reward, ended):
    placed(env, agent, (7, 7))
    picture, paid, terminated, truncated, _ = env.step(action)
    assert (env.agent, paid, terminated, truncated) == (there, reward, ended, False)
    assert env.observation_space.contains(picture)


def test_the_picture_shows_every_cell(env):
    placed(env, (5, 5), (7, 7))
    picture = env.step(0)[0]
    kinds = kinds_of_cells(picture)
    wanted = np.full((SIZE, SIZE), 0)
    wanted[2, 3], wanted[7, 7], wanted[5, 5] = 1, 2, 3
    np.testing.assert_array_equal(kinds, wanted)
    assert len({FLOOR, WALL, GOAL, AGENT}) == 4


def test_an_agent_of_shortest_paths_takes_as_many_steps_as_there_are(env):
    for seed in range(20):
        env.reset(seed=seed)
        steps = int(distances(env.walls, env.goal)[env.agent])
        for step in range(1, steps + 1):
            terminated = env.step(shortest_action(kinds_of_cells(env.step(0)[0])))[2]
            assert terminated == (step == steps)


def test_distances_go_round_walls():
    walls = np.zeros((SIZE, SIZE), bool)
    walls[0, 1] = walls[1, 1] = True
    far = distances(walls, (0, 2))
    assert (far[0, 2], far[2, 1], far[0, 0]) == (0, 3, 6)


def test_a_hundred_steps_and_it_is_cut():
    env = gymnasium.make("wm_engine/GridWorld-v0")
    env.reset(seed=0)
    cuts = [env.step(0)[3] for _ in range(100)]
    assert cuts == [False] * 99 + [True]


def test_more_obstacles_than_leave_room_are_refused():
    with pytest.raises(ValueError, match="obstacles must be from 0 to 21, but was 40"):
        GridWorld(obstacles=40)


def test_five_actions_one_of_which_stays():
    assert len(set(MOVES)) == 5
    assert MOVES[0] == (0, 0)


def test_a_worker_imports_it_without_torch():
    code = f"import wm_engine, {grid_world.__name__}, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
