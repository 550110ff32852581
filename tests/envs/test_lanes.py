"""What LaneEnv does whoever simulates: repeated actions, ends in their middle, the limit of frames."""

import numpy as np
import pytest
from toy_env import ToyEnv

from wm_engine.envs import LaneEnv, Task
from wm_engine.spaces import Discrete, Spaces, Vector

SEEDS = [0, 1, 2, 3, 4, 7]  # episodes of 4, 5, 6, 7, 8 and 6 frames


def drive(env, seeds, actions):
    """Each lane's (observation, reward, terminated, truncated, frames) of every step until it ends."""
    lanes, rows = np.arange(len(seeds)), [[] for _ in seeds]
    first = env.reset(seeds)
    for decision in range(len(actions)):
        step = env.step(np.ascontiguousarray(actions[decision, lanes]), lanes)
        for place, lane in enumerate(lanes):
            rows[lane].append(
                (
                    step.observations[place],
                    step.rewards[place],
                    step.terminated[place],
                    step.truncated[place],
                    step.frames[place],
                )
            )
        lanes = lanes[~step.ended]
        if not len(lanes):
            break
    return first, rows


@pytest.mark.parametrize("repeat", [2, 3, 4, 9])
@pytest.mark.parametrize("limit", [1, 5, 6, 1000])
def test_a_repeated_environment_is_the_plain_one_stepped_so_often(repeat, limit):
    rng = np.random.default_rng(repeat)
    decisions = rng.random((9, len(SEEDS), 3), dtype=np.float32)
    first, repeated = drive(ToyEnv(len(SEEDS), limit, repeat), SEEDS, decisions)
    same, plain = drive(ToyEnv(len(SEEDS), limit), SEEDS, np.repeat(decisions, repeat, axis=0))
    assert (first == same).all()
    for seed, fast, slow in zip(SEEDS, repeated, plain, strict=True):
        length = min(ToyEnv.length(seed), limit)
        assert len(slow) == sum(row[4] for row in fast) == length
        for decision, (observation, reward, terminated, truncated, frames) in enumerate(fast):
            singles = slow[decision * repeat : (decision + 1) * repeat]
            assert frames == len(singles)
            assert (observation == singles[-1][0]).all()
            assert reward == np.float32(np.sum([row[1] for row in singles], dtype=np.float64))
            assert (terminated, truncated) == singles[-1][2:4]
        assert fast[-1][2] == (ToyEnv.length(seed) <= limit)
        assert fast[-1][3] == (ToyEnv.length(seed) > limit)


def test_lanes_that_ended_in_a_repeat_are_not_simulated_further():
    env = ToyEnv(3, action_repeat=8)
    env.reset([0, 1, 4])
    step = env.step(np.zeros((3, 3), np.float32))
    assert step.frames.tolist() == [4, 5, 8]
    assert env.times.tolist() == [4, 5, 8]
    assert step.terminated.all()
    with pytest.raises(ValueError, match=r"lanes \[1\] have ended"):
        env.step(np.zeros((1, 3), np.float32), [1])


def test_rewards_are_summed_in_double_precision():
    env = ToyEnv(1, action_repeat=3)
    env.reset([4])
    action = np.float32(0.1)
    reward = env.step(np.array([[action, 0, 0]], np.float32)).rewards[0]
    assert reward == np.float32(3 * np.float64(action))
    assert reward.dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((0,), "num_lanes must be at least 1"), ((1, 0), "max_frames must be"), ((1, 9, 0), "action_repeat must be")],
)
def test_impossible_numbers_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        ToyEnv(*arguments)


class Echo(LaneEnv):
    """Shows the action it was given."""

    backend = "echo"

    def _reset(self, seeds):
        return np.zeros((len(seeds), 2))

    def _step(self, actions, lanes):
        self.given = actions
        shown = np.stack([actions, lanes], axis=1).astype(np.float64)
        return shown, np.zeros(len(lanes)), np.zeros(len(lanes), bool), np.zeros(len(lanes), bool)


def test_a_discrete_action_is_the_largest_entry():
    env = Echo(Task("echo", "Echo-v0", Spaces(Vector(2), Discrete(3))), 3, 10)
    assert env.reset([1, 2, 3]).dtype == np.float32
    step = env.step(np.array([[0, 0, 1], [0.2, -0.1, 0.1], [0.5, 0.5, 0]], np.float32))
    assert (env.given.tolist(), env.given.dtype) == ([2, 0, 0], np.int32)
    assert step.observations.tolist() == [[2, 0], [0, 1], [0, 2]]
    assert step.observations.dtype == np.float32
    with pytest.raises(ValueError, match=r"actions must have shape \[3, 3\], but had \[3\]"):
        env.step(np.zeros(3, np.float32))
