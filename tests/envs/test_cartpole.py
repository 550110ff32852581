"""CartPole as a task: its spaces, its random pushes, and what ends an episode."""

from __future__ import annotations

import contextlib

import numpy as np

from wm_engine.envs import EnvSettings, find_task, make_env
from wm_engine.envs.worker_process import WorkerProcess, named_spaces

TASK = find_task("cartpole")


def test_its_spaces_are_the_environment_s_and_a_step_is_worth_its_survival():
    worker = WorkerProcess()
    with contextlib.closing(worker):
        answer = worker.ask("describe", TASK.env_id, "")
    assert named_spaces(answer[1]) == TASK.spaces
    assert (TASK.reward, TASK.max_frames, TASK.solved) == ("survival", 500, 475.0)


def test_random_pushes_are_drawn_for_every_frame():
    pushes = TASK.random_actions(np.random.default_rng(0), 4000)
    assert set(map(tuple, pushes)) == {(0.0, 1.0), (1.0, 0.0)}
    repeated = (pushes[1:] == pushes[:-1]).all(axis=1).mean()
    assert abs(repeated - 0.5) < 4 * 0.5 / np.sqrt(3999)  # four standard errors


def test_the_pole_falls_and_every_step_pays_one():
    with contextlib.closing(make_env(EnvSettings(task="cartpole"), 1)) as env:
        env.reset([3])
        paid = []
        while True:
            step = env.step(np.array([[0.0, 1.0]], np.float32))
            paid.append(float(step.rewards[0]))
            if step.ended[0]:
                break
    assert set(paid) == {1.0}
    assert bool(step.terminated[0])
    assert abs(step.observations[0, 2]) > np.deg2rad(12.0)
