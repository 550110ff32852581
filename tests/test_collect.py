import contextlib

import gymnasium
import numpy as np
import pytest
import torch
from toy_env import ToyEnv

from wm_engine import waves
from wm_engine.agent import Agent
from wm_engine.collect import (
    BrownianPolicy,
    CollectSettings,
    NoisyAgent,
    UniformPolicy,
    collect,
    track_seeds,
)
from wm_engine.controller import ControllerSpec
from wm_engine.envs import EnvSettings, make_env
from wm_engine.memory.model import MDNRNN
from wm_engine.records import Recorder, read_metrics
from wm_engine.rollouts import RolloutStore
from wm_engine.vision.model import VAE
from wm_engine.waves import drive


class Constant:
    """Gives every lane the same action, and remembers whom it was asked for."""

    def __init__(self, action):
        self.action, self.asked = np.array(action, dtype=np.float32), []

    def act(self, frames, lanes):
        self.asked.append((frames.copy(), lanes.copy()))
        return np.tile(self.action, (len(lanes), 1))


@pytest.fixture(scope="module")
def agent():
    torch.manual_seed(0)
    spec = ControllerSpec(latent=4, hidden=8, features="zh")
    return Agent(VAE(4), MDNRNN(latent=4, action=3, hidden=8), spec, torch.randn(1, spec.num_params))


# The loop


def test_lanes_drive_to_their_own_ends():
    env, policy, seen = ToyEnv(4), Constant([0.5, 0.1, 0.0]), []
    trajectories = drive(env, policy, [10, 13, 11], lambda *step: seen.append(step))
    assert [t.seed for t in trajectories] == [10, 13, 11]
    assert [t.steps for t in trajectories] == [4, 7, 5]
    for t in trajectories:
        assert t.terminated
        assert not t.truncated
        assert not t.failed
        assert t.rewards.tolist() == [0.5] * (t.steps - 1) + [-100.0]  # the fatal step, with its own reward
        assert t.total_reward == 0.5 * (t.steps - 1) - 100.0
        assert t.actions.shape == (t.steps, 3)
        assert (t.actions.dtype, t.rewards.dtype) == (np.float32, np.float32)
    assert [lanes.tolist() for _, lanes in policy.asked] == [[0, 1, 2]] * 4 + [[1, 2]] + [[1]] * 2
    # What a policy and an observer see of a step are the frames before it; the step holds those after.
    for (lanes, frames, _, step), (shown, asked) in zip(seen, policy.asked, strict=True):
        assert (lanes == asked).all()
        assert (frames == shown).all()
        assert (frames[:, 0, 0, 0] == np.array([10, 13, 11])[lanes]).all()
        assert (step.frames[:, 0, 0, 1] == frames[:, 0, 0, 1] + 7).all()


def test_a_step_limit_truncates():
    (t,) = drive(ToyEnv(1, max_steps=2), Constant([0.0, 0.0, 0.0]), [3])
    assert (t.steps, t.terminated, t.truncated) == (2, False, True)


def test_actions_are_recorded_as_the_environment_took_them():
    (t,) = drive(ToyEnv(1), Constant([-9.0, 9.0, 0.25]), [0])
    assert t.actions.tolist() == [[-1.0, 1.0, 0.25]] * 4


def test_lost_patience_truncates():
    class Late:
        step = 0

        def act(self, frames, lanes):
            self.step += 1
            return np.full((len(lanes), 3), 1.0 if self.step in (1, 4) else 0.0, dtype=np.float32)

    (t,) = drive(ToyEnv(1), Late(), [4], patience=3)  # rewards 1 0 0 1 0 0 0 0
    assert (t.steps, t.terminated, t.truncated) == (7, False, True)
    (t,) = drive(ToyEnv(1), Late(), [4])
    assert (t.steps, t.terminated, t.truncated) == (8, True, False)


def test_a_non_finite_action_fails_its_lane_and_no_other():
    class Sick:
        def act(self, frames, lanes):
            actions = np.full((len(lanes), 3), 0.5, dtype=np.float32)
            actions[lanes == 1, 2] = np.nan
            return actions

    well, sick = drive(ToyEnv(2), Sick(), [3, 4])
    assert (well.failed, sick.failed) == (False, True)
    assert sick.steps == 8
    assert (sick.actions == 0).all()
    (alone,) = drive(ToyEnv(1), Constant([0.5, 0.5, 0.5]), [3])
    assert (well.actions == alone.actions).all()


# Seeds and policies


def test_seeds_differ_and_follow_from_their_arguments():
    seeds = track_seeds(7, 5000, 2)
    assert len(set(seeds)) == 5000
    assert seeds == track_seeds(7, 6000, 2)[:5000]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert not set(seeds) & set(track_seeds(7, 5000, 3))
    assert not set(seeds) & set(track_seeds(8, 5000, 2))
    assert len(set(track_seeds(2**62 + 11, 10))) == 10  # of any size, as the pipeline derives them


def test_the_uniform_policy_is_the_action_space_sampled():
    space = gymnasium.spaces.Box(np.array([-1, 0, 0], np.float32), np.array([1, 1, 1], np.float32), dtype=np.float32)
    policy = UniformPolicy(ToyEnv(2), [5, 6])
    for lane, seed in enumerate((5, 6)):
        space.seed(seed)
        expected = np.stack([space.sample() for _ in range(20)])
        drawn = np.concatenate([policy.act(None, np.array([lane])) for _ in range(20)])
        assert np.array_equal(drawn, expected)


@pytest.mark.parametrize("env_id", ["CarRacing-v3", "Toy-v0"])
def test_random_driving_follows_from_seed_and_episode(env_id):
    env = ToyEnv(3)

    def actions(seed, episodes):
        policy, lanes = BrownianPolicy(env_id, env, seed, episodes, 300), np.arange(len(episodes))
        return np.stack([policy.act(None, lanes) for _ in range(300)], axis=1)

    three = actions(1, [0, 1, 2])
    assert np.array_equal(actions(1, [2, 0]), three[[2, 0]])
    assert not np.array_equal(three[0], three[1])
    assert not np.array_equal(actions(2, [0]), three[:1])
    assert (three >= env.action_low).all()
    assert (three <= env.action_high).all()


def test_random_driving_is_smooth_and_varied():
    policy, lanes = BrownianPolicy("CarRacing-v3", ToyEnv(1), 0, range(64), 500), np.arange(64)
    actions = np.stack([policy.act(None, lanes) for _ in range(500)], axis=1)
    jumps = np.abs(np.diff(actions, axis=1)).mean(axis=(0, 1))
    white = np.abs(np.diff(np.random.default_rng(0).uniform([-1, 0, 0], 1, (64, 500, 3)), axis=1)).mean(axis=(0, 1))
    assert (jumps < white / 4).all()
    assert abs(actions[..., 0].mean()) < 0.02  # no side is preferred
    assert actions[..., 1].mean() > actions[..., 2].mean() > 0.01  # more gas than brake, but some of it
    assert actions[..., 0].std(axis=1).max() > 2 * actions[..., 0].std(axis=1).min()  # episodes of different temper


def test_random_driving_leaves_the_start_on_real_tracks():
    with contextlib.closing(make_env(EnvSettings(), 12, 250)) as env:
        driven = drive(env, BrownianPolicy("CarRacing-v3", env, 0, range(12), 250), track_seeds(0, 12))
        still = drive(env, UniformPolicy(env, range(12)), track_seeds(0, 12))
    tiles = np.array([(t.rewards > 0).sum() for t in driven])
    assert np.median(tiles) >= 5
    assert tiles.mean() > 1.5 * np.mean([(t.rewards > 0).sum() for t in still])
    late = [(t.rewards[60:] > 0).any() for t in driven]
    assert np.mean(late) > 0.5


def test_an_agent_is_told_of_its_noise(agent):
    env, told = ToyEnv(2), []

    class Listening:
        def act(self, frames, lanes, perturb):
            told.append(perturb(np.full((len(lanes), 3), 0.5, dtype=np.float32)))
            return told[-1]

    drive(env, NoisyAgent(Listening(), env, 0.4, 1, [0, 1], 50), [4, 4])
    noise = np.stack(told) - 0.5
    assert noise.std() > 0.05
    assert (np.stack(told) >= env.action_low).all()
    assert (np.stack(told) <= env.action_high).all()
    assert not np.allclose(noise[:, 0], noise[:, 1])
    told.clear()
    drive(env, NoisyAgent(Listening(), env, 0.0, 1, [0, 1], 50), [4, 4])
    assert (np.stack(told) == 0.5).all()


# Collection


@pytest.fixture
def toy(monkeypatch):
    """Collect from toy environments; ``toy.bomb = n`` makes them fail at their n-th step."""

    class Toys:
        bomb, made = None, []

    def make(settings, lanes, max_steps):
        Toys.made.append(ToyEnv(lanes, max_steps, Toys.bomb))
        return Toys.made[-1]

    Toys.made = []
    monkeypatch.setattr(waves, "make_env", make)
    return Toys


ENV = EnvSettings(id="Toy-v0", num_envs=4)


def contents(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_every_episode_is_as_it_was_driven(tmp_path, toy):
    store = RolloutStore.open(tmp_path, chunk_steps=3)
    collect(store, ENV, CollectSettings(episodes=10, max_steps=6), seed=5)
    assert len(store) == 10
    seeds = track_seeds(5, 10)
    for index in range(10):
        episode, info = store.read(index), store.info(index)
        assert (info.seed, info.policy, info.iteration) == (seeds[index], "brownian", 0)
        assert info.steps == min(6, ToyEnv.length(seeds[index]))
        assert (info.terminated, info.truncated) == (ToyEnv.length(seeds[index]) <= 6, ToyEnv.length(seeds[index]) > 6)
        # Frame t shows the sum of the actions before it: frames, actions and rewards stand at the right steps.
        sums = np.concatenate([[0.0], np.cumsum(episode.actions.sum(axis=1), dtype=np.float64)])
        shown = episode.frames[:, 0, 0].astype(int)
        assert (shown[:, 0] == seeds[index] % 251).all()
        assert (shown[:, 1] == np.arange(info.steps + 1) * 7).all()
        assert (np.abs(shown[:, 2] - np.abs(sums * 50) % 256) <= 1).all()
        if info.terminated:
            assert episode.rewards[-1] == -100.0
    assert all(env.closed for env in toy.made)


@pytest.mark.parametrize(("policy", "bomb"), [("random", 3), ("random", 9), ("random", 14), ("agent", 10)])
def test_an_interrupted_collection_ends_with_the_same_store(tmp_path, toy, agent, policy, bomb):
    settings, driver = CollectSettings(policy=policy, episodes=10), agent if policy == "agent" else None
    collect(RolloutStore.open(tmp_path / "whole", chunk_steps=3), ENV, settings, 5, agent=driver)
    toy.bomb = bomb
    store = RolloutStore.open(tmp_path / "cut", chunk_steps=3)
    with pytest.raises(KeyboardInterrupt):
        collect(store, ENV, settings, 5, agent=driver)
    cut = len(store)
    assert cut < 10
    toy.bomb = None
    collect(store, ENV, settings, 5, agent=driver)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    steps = sum(env.calls for env in toy.made)
    collect(store, ENV, settings, 5, agent=driver)  # nothing is left to do
    assert sum(env.calls for env in toy.made) == steps


def test_rounds_add_to_each_other(tmp_path, toy, agent):
    store = RolloutStore.open(tmp_path)
    collect(store, ENV, CollectSettings(episodes=5), 1, iteration=0)
    collect(store, ENV, CollectSettings(policy="agent", episodes=6), 1, iteration=1, agent=agent)
    assert [(store.info(i).iteration, store.info(i).policy) for i in range(11)] == [(0, "brownian")] * 5 + [
        (1, "agent")
    ] * 6
    assert len({store.info(i).seed for i in range(11)}) == 11


def test_more_episodes_continue_a_finished_round(tmp_path, toy):
    store = RolloutStore.open(tmp_path)
    collect(store, ENV, CollectSettings(episodes=5), 1)
    collect(store, ENV, CollectSettings(episodes=12), 1)
    assert [store.info(i).seed for i in range(12)] == track_seeds(1, 12)


def test_collection_is_recorded(tmp_path, toy):
    with Recorder(tmp_path / "metrics") as recorder:
        collect(RolloutStore.open(tmp_path / "r"), ENV, CollectSettings(episodes=6), 1, iteration=2, recorder=recorder)
    rows = read_metrics(tmp_path / "metrics" / "metrics.jsonl")
    assert [(row["stage"], row["iteration"], row["step"]) for row in rows] == [("collect", 2, 4), ("collect", 2, 6)]
    assert all(row["frames_per_second"] > 0 and 4 <= row["steps_mean"] <= 8 for row in rows)


def test_policy_and_agent_must_fit(tmp_path, toy, agent):
    store = RolloutStore.open(tmp_path)
    for policy, driver in (("agent", None), ("random", agent), ("evolve", None)):
        with pytest.raises(ValueError, match="policy"):
            collect(store, ENV, CollectSettings(policy=policy), 0, agent=driver)


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_real_frames_come_back_bit_for_bit(tmp_path, backend):
    if backend == "envpool":
        pytest.importorskip("envpool")
    settings, env = CollectSettings(episodes=2, max_steps=12), EnvSettings(num_envs=2, backend=backend)
    store = RolloutStore.open(tmp_path, chunk_steps=5)
    collect(store, env, settings, 3)
    with contextlib.closing(make_env(env, 1, 12)) as again:
        for index in range(2):
            episode = store.read(index)
            frames = [again.reset([episode.seed])[0]]
            for action, reward in zip(episode.actions, episode.rewards, strict=True):
                step = again.step(action[None])
                frames.append(step.frames[0])
                assert step.rewards[0] == reward
            assert np.array_equal(np.stack(frames), episode.frames)
            assert (episode.truncated, episode.terminated) == (True, False)
