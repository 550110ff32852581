"""Who drives where nothing has been learnt yet, and how a learnt policy explores."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from toy_env import TOY, ToyEnv

from wm_engine.envs import EnvSettings, find_task, make_env
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.models.vae import VAE
from wm_engine.policies.controller import Controllers, ControllerSpec
from wm_engine.real.agent import Agent
from wm_engine.real.driving import drive
from wm_engine.real.exploration import NoisyAgent, OpenLoop, PlannedActions, UniformActions
from wm_engine.rng import episode_seeds
from wm_engine.spaces import Box, Discrete, Spaces, Vector

BOX = TOY.spaces.actions


def test_the_uniform_policy_is_a_box_sampled():
    space = gymnasium.spaces.Box(*BOX.bounds, dtype=np.float32)
    policy = UniformActions(BOX, [5, 6])
    for lane, seed in enumerate((5, 6)):
        space.seed(seed)
        expected = np.stack([space.sample() for _ in range(20)])
        drawn = np.concatenate([policy.act(None, np.array([lane])) for _ in range(20)])
        assert drawn.dtype == np.float32
        assert np.array_equal(drawn, expected)


def test_the_uniform_policy_is_a_choice_sampled():
    space = gymnasium.spaces.Discrete(5)
    policy = UniformActions(Discrete(5), [5, 6])
    for lane, seed in enumerate((5, 6)):
        space.seed(seed)
        expected = [int(space.sample()) for _ in range(40)]
        drawn = np.concatenate([policy.act(None, np.array([lane])) for _ in range(40)])
        assert (drawn.sum(axis=1) == 1.0).all()
        assert drawn.argmax(axis=1).tolist() == expected


def planned(task, seed, episodes, frames=60, repeat=1, stream=0):
    """The actions [episodes, steps, A] of plans."""
    policy, lanes = PlannedActions(task, repeat, seed, episodes, frames, stream), np.arange(len(episodes))
    return np.stack([policy.act(None, lanes) for _ in range(-(-frames // repeat))], axis=1)


TASKS = [TOY, find_task("car_racing"), find_task("envs.counter_task")]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_random_driving_follows_from_seed_stream_and_episode(task):
    three = planned(task, 1, [0, 1, 2])
    assert np.array_equal(planned(task, 1, [2, 0]), three[[2, 0]])
    assert not np.array_equal(three[0], three[1])
    assert not np.array_equal(planned(task, 2, [0]), three[:1])
    assert not np.array_equal(planned(task, 1, [0], stream=1), three[:1])
    low, high = task.spaces.actions.bounds
    assert (three >= low).all()
    assert (three <= high).all()
    if isinstance(task.spaces.actions, Discrete):
        assert (three.sum(axis=-1) == 1.0).all()


def test_a_plan_lasts_as_many_decisions_as_the_frames_need():
    car = find_task("car_racing")
    assert planned(car, 1, [0], frames=10, repeat=4).shape == (1, 3, 3)
    fine = planned(car, 1, [0], frames=12)
    assert np.array_equal(planned(car, 1, [0], frames=12, repeat=4)[0], fine[0, ::4])


def test_each_lane_follows_its_own_plan_whoever_stops():
    whole = planned(TOY, 1, [0, 1])
    policy = PlannedActions(TOY, 1, 1, [0, 1], 60, 0)
    policy.act(None, np.array([0, 1]))
    for step in range(1, 5):
        assert np.array_equal(policy.act(None, np.array([1]))[0], whole[1, step])
    assert np.array_equal(policy.act(None, np.array([0]))[0], whole[0, 1])


def test_a_blind_plan_is_made_for_frames_and_follows_from_the_seed():
    def count(rng, frames):
        return np.stack([np.arange(frames) / frames, np.full(frames, rng.random()), np.full(frames, 2.0)], axis=1)

    env = SimpleNamespace(spaces=TOY.spaces, max_frames=10, action_repeat=4)
    policy = OpenLoop(count, env, [7, 8])
    lanes = np.arange(2)
    seen = [policy.act(lanes, lanes), policy.act(lanes, lanes), policy.act(lanes[1:], lanes[1:])]
    assert [actions[-1, 0] for actions in seen] == np.array([0.0, 0.4, 0.8], np.float32).tolist()
    drawn = [np.random.default_rng(seed).random() for seed in (7, 8)]
    assert seen[0][:, 1].tolist() == np.array(drawn, np.float32).tolist()
    assert [len(actions) for actions in seen] == [2, 2, 1]
    assert max(actions.max() for actions in seen) == 1.0  # clipped to the space


def test_a_random_car_drives_smoothly_and_variously():
    actions = planned(find_task("car_racing"), 0, range(64), frames=500)
    jumps = np.abs(np.diff(actions, axis=1)).mean(axis=(0, 1))
    white = np.abs(np.diff(np.random.default_rng(0).uniform([-1, 0, 0], 1, (64, 500, 3)), axis=1)).mean(axis=(0, 1))
    assert (jumps < white / 4).all()
    assert abs(actions[..., 0].mean()) < 0.02  # no side is preferred
    assert actions[..., 1].mean() > actions[..., 2].mean() > 0.01  # more gas than brake, but some of it
    assert actions[..., 0].std(axis=1).max() > 2 * actions[..., 0].std(axis=1).min()  # episodes of different temper


def test_random_driving_leaves_the_start_on_real_tracks():
    with contextlib.closing(make_env(EnvSettings(), 12, 250)) as env:
        plans = PlannedActions(env.task, env.action_repeat, 0, range(12), 250, 0)
        driven = drive(env, plans, episode_seeds(0, 12))
        still = drive(env, UniformActions(env.spaces.actions, range(12)), episode_seeds(0, 12))
    # A tile pays more than the frames of a decision cost.
    tiles = np.array([(t.rewards > 0).sum() for t in driven])
    assert np.median(tiles) >= 5
    assert tiles.mean() > 1.5 * np.mean([(t.rewards > 0).sum() for t in still])
    late = [(t.rewards[15:] > 0).any() for t in driven]
    assert np.mean(late) > 0.5


class Listening:
    """An agent that would always do the same, and keeps what it was told to do instead."""

    def __init__(self, action):
        self.action, self.told = np.array(action, np.float32), []

    def act(self, observations, lanes, perturb):
        self.told.append(perturb(np.tile(self.action, (len(lanes), 1))))
        return self.told[-1]


def noisy(actions, action, noise, seed=1, episodes=(0, 1), steps=50, repeat=1, stream=0):
    """What is done [steps, lanes, A] in the place of one action."""
    agent, lanes = Listening(action), np.arange(len(episodes))
    driver = NoisyAgent(agent, actions, repeat, noise, seed, list(episodes), steps * repeat, stream)
    done = [driver.act(None, lanes) for _ in range(steps)]
    assert np.array_equal(np.stack(agent.told), np.stack(done))
    return np.stack(done)


def test_an_agent_is_told_of_its_noise():
    done = noisy(BOX, [0.5, 0.5, 0.5], 0.4)
    low, high = BOX.bounds
    assert done.dtype == np.float32
    assert (done >= low).all()
    assert (done <= high).all()
    assert not np.array_equal(done[:, 0], done[:, 1])
    assert (noisy(BOX, [0.5, 0.5, 0.5], 0.0) == 0.5).all()


def test_noise_follows_from_seed_stream_and_episode():
    three = noisy(BOX, [0.0, 0.5, 0.5], 0.2, episodes=(0, 1, 2))
    assert np.array_equal(noisy(BOX, [0.0, 0.5, 0.5], 0.2, episodes=(2, 0)), three[:, [2, 0]])
    assert not np.array_equal(noisy(BOX, [0.0, 0.5, 0.5], 0.2, seed=2, episodes=(0, 1, 2)), three)
    assert not np.array_equal(noisy(BOX, [0.0, 0.5, 0.5], 0.2, stream=1, episodes=(0, 1, 2)), three)


@pytest.mark.parametrize("repeat", [1, 5])
def test_noise_in_a_box_is_as_wide_as_told_and_smooth(repeat):
    """A memory of ten frames: from one decision to the next a share of exp(-repeat / 10) is left."""
    wide = Box((-100.0, -10.0), (100.0, 10.0))
    done = noisy(wide, [0.0, 0.0], 0.1, episodes=range(40), steps=400, repeat=repeat)
    spread = done.std(axis=(0, 1))
    assert np.all(np.abs(spread / [10.0, 1.0] - 1.0) < 0.1)
    left = (done[1:] * done[:-1]).mean(axis=(0, 1)) / np.square(done).mean(axis=(0, 1))
    assert np.all(np.abs(left - np.exp(-repeat / 10.0)) < 0.05)


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_of_discrete_actions_a_share_is_drawn_at_random(noise):
    done = noisy(Discrete(4), [0.0, 0.0, 1.0, 0.0], noise, episodes=range(20), steps=400)
    assert (done.sum(axis=-1) == 1.0).all()
    share = done.mean(axis=(0, 1))
    expected = np.full(4, noise / 4)
    expected[2] += 1.0 - noise
    # Five standard errors of a share of 8000 draws.
    assert np.all(np.abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / 8000))


def test_a_real_agent_explores(tmp_path):
    torch.manual_seed(0)
    spec = ControllerSpec(latent=4, hidden=8, features="zh")
    policy = Controllers(spec, torch.randn(1, spec.num_params), torch.zeros(2, dtype=torch.int64))
    agent = Agent(VAE(4), MDNRNN(latent=4, action=3, hidden=8), policy)

    def driven(noise):
        agent.begin(2)
        if noise is None:
            return drive(ToyEnv(2), agent, [4, 4])
        return drive(ToyEnv(2), NoisyAgent(agent, BOX, 1, noise, 1, [0, 1], 50, 0), [4, 4])

    plain, still, moved = driven(None), driven(0.0), driven(0.3)
    assert all(np.array_equal(one.actions, two.actions) for one, two in zip(plain, still, strict=True))
    assert not np.array_equal(moved[0].actions, moved[1].actions)
    assert not np.array_equal(moved[0].actions, plain[0].actions)


def test_a_discrete_agent_explores():
    """Whoever explores fully does what the uniform policy does, up to the draws."""
    spaces = Spaces(Vector(2), Discrete(3))
    done = noisy(spaces.actions, [1.0, 0.0, 0.0], 1.0, episodes=(7,), steps=30)
    rng = np.random.default_rng([1, 0, 7])
    rng.random(30)
    assert done[:, 0].argmax(axis=1).tolist() == rng.integers(3, size=30).tolist()
