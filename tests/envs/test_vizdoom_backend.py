"""VizDoom behind the protocol, on the real TakeCover."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from wm_engine.envs import EnvSettings, Scenario, VizDoomEnv, backends, find_task, make_env
from wm_engine.errors import ConfigError, MissingDependencyError

TASK = find_task("takecover")
LEFT, STAY, RIGHT = -1.0, 0.0, 1.0
needs_doom = pytest.mark.skipif(
    importlib.util.find_spec("vizdoom") is None, reason="VizDoom is not installed: pip install 'wm-engine[doom]'"
)


@pytest.fixture
def make():
    opened = []

    def factory(lanes, max_frames=2100, action_repeat=1, threads=1):
        settings = EnvSettings(task="takecover", action_repeat=action_repeat, num_threads=threads)
        opened.append(make_env(settings, lanes, max_frames))
        return opened[-1]

    yield factory
    for env in opened:
        env.close()


def act(env, move, lanes=None):
    count = env.num_lanes if lanes is None else len(lanes)
    return env.step(np.full((count, 1), move, np.float32), lanes)


def play(env, seeds, moves):
    """Pictures and rewards of the lanes under the same moves."""
    pictures: list[np.ndarray] = [env.reset(seeds)]
    rewards: list[np.ndarray] = []
    for move in moves:
        step = act(env, move)
        pictures.append(step.observations)
        rewards.append(step.rewards)
    return np.stack(pictures), np.stack(rewards)


@needs_doom
def test_what_is_seen_is_the_scenarios_own_in_red_green_and_blue(make):
    env = make(2)
    assert (env.backend, env.action_repeat, env.max_frames) == ("vizdoom", 1, 2100)
    first = env.reset([1, 2])
    assert (first.shape, first.dtype) == ((2, 64, 64, 3), np.uint8)
    wall = first[:, 28:36].reshape(-1, 3).mean(axis=0)
    assert wall[0] > wall[1] > wall[2]  # brown, where blue and red swapped would make it blue
    step = act(env, RIGHT)
    assert (step.rewards.tolist(), step.frames.tolist()) == ([1.0, 1.0], [1, 1])
    assert not step.ended.any()
    assert env.render(0).shape == (120, 160, 3)


@needs_doom
def test_an_episode_depends_on_its_seed_alone(make):
    moves = [LEFT] * 20 + [STAY] * 5 + [RIGHT] * 20
    together = play(make(3, threads=2), [11, 12, 13], moves)
    env = make(1)
    play(env, [99], [RIGHT] * 7)  # what was played before leaves no trace
    for lane, seed in ((2, 13), (0, 11)):
        for one, two in zip(together, play(env, [seed], moves), strict=True):
            assert np.array_equal(one[:, lane], two[:, 0])
    assert not np.array_equal(together[0][:, 0], together[0][:, 1])


@needs_doom
def test_left_and_right_are_opposite_and_stay_stays(make):
    env = make(1, action_repeat=20)
    moved = {}
    for move in (LEFT, STAY, RIGHT):
        pictures, _ = play(env, [3], [move])
        moved[move] = pictures[1, 0].astype(int)
    before = env.reset([3])[0].astype(int)

    def shifted(picture):
        """By how many columns the far wall has moved to the right."""
        wall = slice(28, 36)
        errors = [
            np.abs(np.roll(picture, -by, axis=1)[wall, 10:-10] - before[wall, 10:-10]).mean() for by in range(-8, 9)
        ]
        return int(np.argmin(errors)) - 8

    assert shifted(moved[STAY]) == 0
    assert shifted(moved[LEFT]) > 0 > shifted(moved[RIGHT])


@needs_doom
def test_a_held_action_is_as_many_single_ones(make):
    moves = np.random.default_rng(0).uniform(-1.0, 1.0, 20)
    held, held_rewards = play(make(1, action_repeat=4), [4], moves)
    single, rewards = play(make(1), [4], np.repeat(moves, 4))
    assert np.array_equal(held, single[::4])
    assert np.array_equal(held_rewards, rewards.reshape(20, 4, 1).sum(axis=1))


@needs_doom
def test_the_fatal_step_is_kept_and_ends_the_lane(make):
    env = make(2, action_repeat=4)
    pictures, lanes, frames = env.reset([1, 2]), np.arange(2), np.zeros(2, dtype=int)
    paid = np.zeros(2)
    ended = {}
    while len(lanes):  # who stands still is dead within some hundred tics
        step = act(env, STAY, lanes)
        frames[lanes] += step.frames
        paid[lanes] += step.rewards
        for row in np.flatnonzero(step.ended):
            ended[int(lanes[row])] = bool(step.terminated[row]), np.array_equal(step.observations[row], pictures[row])
        pictures, lanes = step.observations[~step.ended], lanes[~step.ended]
    # The picture before it stands for one that the game does not draw; every tic was paid, the last ones too.
    assert ended == {0: (True, True), 1: (True, True)}
    assert frames.tolist() == paid.tolist()
    assert frames.max() < 2100
    with pytest.raises(ValueError, match="have ended; only a reset starts them again"):
        act(env, STAY)


@needs_doom
def test_the_limit_cuts_a_held_action_short(make):
    env = make(1, max_frames=6, action_repeat=4)
    env.reset([5])
    assert act(env, LEFT).frames.tolist() == [4]
    last = act(env, LEFT)
    assert (last.frames.tolist(), last.rewards.tolist()) == ([2], [2.0])
    assert last.truncated.all()
    assert not last.terminated.any()


@needs_doom
def test_no_game_outlives_its_user_and_none_leaves_files(tmp_path):
    code = (
        "import time; from wm_engine.envs import EnvSettings, make_env\n"
        "env = make_env(EnvSettings(task='takecover', num_threads=1), 2); env.reset([1, 2])\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20.0
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(process.pid)
    assert list(tmp_path.iterdir()) == []


def alive(group):
    try:
        os.killpg(group, signal.SIG_DFL)
    except ProcessLookupError:
        return False
    return True


@needs_doom
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"env_id": "no_cover.cfg"}, "takecover: this environment cannot be used: VizDoom has no scenario 'no_cover"),
        (
            {"scenario": Scenario(4, lambda actions: np.zeros((len(actions), 3), int))},
            "takecover: the task presses 3 buttons, but take_cover.cfg has 2",
        ),
    ],
)
def test_a_scenario_that_does_not_fit_is_named(fields, words):
    with pytest.raises(ConfigError, match=words):
        VizDoomEnv(replace(TASK, **fields), 1, 10, 1)


def test_without_vizdoom_the_extra_is_named(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "vizdoom" else find_spec(name))
    assert backends("takecover")["gymnasium"] == "takecover does not run on gymnasium"
    with pytest.raises(ConfigError, match=r"pip install 'wm-engine\[doom\]'"):
        make_env(EnvSettings(task="takecover"), 1)
    with pytest.raises(MissingDependencyError, match=r"pip install 'wm-engine\[doom\]'"):
        VizDoomEnv(TASK, 1, 10, 1)


def test_other_tasks_do_not_run_on_vizdoom():
    with pytest.raises(ConfigError, match=r"car_racing runs on envpool, gymnasium only, but env.backend was 'vizdoom'"):
        make_env(EnvSettings(backend="vizdoom"), 1)


def test_actions_are_told_apart_by_thirds():
    actions = np.array([[-1.0], [-0.34], [-0.33], [0.0], [0.33], [0.34], [1.0]], np.float32)
    assert TASK.scenario is not None
    pressed = TASK.scenario.press(actions).tolist()
    assert pressed == [[1, 0], [1, 0], [0, 0], [0, 0], [0, 0], [0, 1], [0, 1]]


def test_random_plans_run_about():
    plan = TASK.random_actions(np.random.default_rng(1), 500, 4)
    assert (plan.shape, plan.dtype) == ((500, 1), np.float32)
    assert plan.min() >= -1.0
    assert plan.max() <= 1.0
    assert len(np.unique(plan)) > 5
