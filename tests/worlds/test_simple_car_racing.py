"""SimpleCarRacing-v0: gymnasium's own checks, and its rules."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env

import wm_engine  # noqa: F401 - registers it
from wm_engine.worlds.simple_car_racing import SimpleCarRacing


def drive(seed, act, steps=200):
    """Rewards and ends of an episode driven by a function of the environment."""
    env = SimpleCarRacing()
    env.reset(seed=seed)
    rewards = []
    for _ in range(steps):
        _, reward, terminated, _, _ = env.step(act(env))
        rewards.append(reward)
        if terminated:
            break
    return rewards, terminated


def follow(env):
    """Steer towards the road's middle a little ahead."""
    aim = env._at(env._angle() + 0.25) - env._place
    turn = (np.arctan2(aim[0], aim[1]) - env._heading + np.pi) % (2.0 * np.pi) - np.pi
    return np.float32([np.clip(3.0 * turn, -1.0, 1.0), 0.4])


def test_gymnasium_finds_no_fault_with_it():
    check_env(gymnasium.make("wm_engine/SimpleCarRacing-v0", render_mode="rgb_array").unwrapped)


def test_equal_seeds_give_equal_episodes():
    assert drive(5, follow) == drive(5, follow)
    assert drive(5, follow) != drive(6, follow)


def test_a_lap_pays_a_hundred_less_the_time_it_takes():
    for seed in range(3):
        rewards, terminated = drive(seed, follow)
        assert terminated
        assert 100.0 <= sum(rewards) + 0.05 * len(rewards) < 103.0


def test_straight_on_leaves_the_road_and_costs_five():
    rewards, terminated = drive(0, lambda env: np.float32([0.0, 1.0]))
    assert terminated
    assert rewards[-1] < -2.0


def test_who_stands_still_pays_for_the_time():
    rewards, terminated = drive(0, lambda env: np.float32([1.0, 0.0]), steps=10)
    assert not terminated
    assert set(rewards) == {-0.05}
