"""Scores: the field's statistics of real episodes, and films."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import numpy as np
import pytest
import torch
from checker import check
from fleets import PickledFleet
from imageio_ffmpeg import count_frames_and_secs
from pydantic import ValidationError
from toy_env import TOY, ToyEnv

from wm_engine.envs import EnvSettings
from wm_engine.errors import MissingDependencyError, StorageError
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.models.vae import VAE
from wm_engine.policies.base import OnLanes
from wm_engine.policies.controller import Controllers, ControllerSpec
from wm_engine.real import driving, scoring
from wm_engine.real.agent import Agent
from wm_engine.real.driving import Runners, Trajectory
from wm_engine.real.scoring import EvaluateSettings, Scores, record_film, score_baselines, score_policy, score_random

SPEC = ControllerSpec(latent=4, hidden=8)
ENV = EnvSettings(task="real.toy_task", num_envs=4, backend="envpool", max_frames=50)


@pytest.fixture(scope="module")
def agent():
    torch.manual_seed(0)
    return Agent(VAE(4), MDNRNN(latent=4, action=3, hidden=8))


def policy(number=0):
    params = 0.3 * torch.randn(2, SPEC.num_params, generator=torch.Generator().manual_seed(4))
    return Controllers(SPEC, params[number : number + 1], torch.zeros(1, dtype=torch.int64))


@pytest.fixture
def toy(monkeypatch):
    made = []

    def make(settings, lanes, max_frames):
        made.append((settings, ToyEnv(lanes, max_frames, settings.repeat)))
        return made[-1][1]

    for module in (scoring, driving):
        monkeypatch.setattr(module, "make_env", make)
    return made


def trajectory(seed, rewards, failed=False):
    rewards = np.array(rewards, dtype=np.float32)
    return Trajectory(seed, np.zeros((len(rewards), 3), np.float32), rewards, 4 * len(rewards), True, False, failed)


def test_scores_are_the_field_s_statistics():
    scores = Scores.of([trajectory(5, [1.0, 2.0]), trajectory(6, [7.0]), trajectory(9, [-4.0, 1.0, 1.0], failed=True)])
    assert scores.returns.tolist() == [3.0, 7.0, -2.0]
    assert scores.frames.tolist() == [8, 4, 12]
    assert scores.seeds.tolist() == [5, 6, 9]
    assert scores.failed.tolist() == [False, False, True]
    std = np.sqrt(((1 / 3) ** 2 + (13 / 3) ** 2 + (14 / 3) ** 2) / 2)
    found = np.array([scores.mean, scores.std, scores.standard_error])
    check("statistics", found, np.array([8 / 3, std, std / np.sqrt(3)]), precision="fp64")
    assert Scores.of([trajectory(0, [1.0])]).standard_error == 0.0
    plain = scores.plain()
    assert (plain["mean"], plain["episodes"], plain["failed"]) == (scores.mean, 3, 1)
    assert (plain["returns"], plain["frames"], plain["seeds"]) == ([3.0, 7.0, -2.0], [8, 4, 12], [5, 6, 9])


def test_returns_are_summed_in_float64():
    found = Scores.of([trajectory(0, [1e8] + [0.125] * 1000)]).returns[0]
    assert found == 1e8 + 125


def test_both_policies_drive_the_same_tracks_on_the_chosen_backend(toy, agent):
    settings, env = EvaluateSettings(episodes=10, seed=40), ENV.model_copy(update={"max_frames": 6})
    scores, uniform = score_policy(agent, policy(), env, settings), score_random(env, settings)
    for result in (scores, uniform):
        assert result.seeds.tolist() == list(range(40, 50))
        assert result.frames.tolist() == [min(6, ToyEnv.length(seed)) for seed in range(40, 50)]
    assert all(chosen.backend == "gymnasium" and made.closed for chosen, made in toy)
    assert scores.mean != uniform.mean


class Forward:
    """Do one thing for ever: a baseline."""

    def __init__(self, seeds, action=1.0):
        self.action = action

    def act(self, observations, lanes):
        return np.full((len(lanes), 3), self.action, np.float32)


def learns(frames, seed):
    """A peer that has learnt as much as it was given frames."""
    return functools.partial(Forward, action=frames / 100)


def is_missing(frames, seed):
    raise MissingDependencyError("pip install 'wm-engine[peers]'")


def test_a_task_s_baselines_and_peers_meet_the_same_episodes(toy, monkeypatch):
    task = dataclasses.replace(TOY, baselines={"forward": Forward}, peers={"apt": learns, "absent": is_missing})
    monkeypatch.setattr(EnvSettings, "found", lambda self: task)
    settings = EvaluateSettings(episodes=10, seed=40)
    found = score_baselines(ENV, settings, frames=50)
    steps = np.array([ToyEnv.length(seed) - 1 for seed in range(40, 50)])
    assert found["forward"]["seeds"] == found["apt"]["seeds"] == list(range(40, 50))
    assert found["forward"]["returns"] == (steps - 100).tolist()
    assert found["apt"]["returns"] == (0.5 * steps - 100).tolist()
    assert found["apt"]["learnt_from"] == 50
    assert found["absent"] == {"missing": "pip install 'wm-engine[peers]'"}
    assert list(score_baselines(ENV, settings)) == ["forward"]
    assert list(score_baselines(ENV, settings.model_copy(update={"peers": False}), frames=50)) == ["forward"]


def test_a_score_can_be_repeated(toy, agent):
    settings = EvaluateSettings(episodes=6, seed=7)
    one, two = (score_policy(agent, policy(), ENV, settings).returns for _ in range(2))
    assert (one == two).all()
    assert (score_random(ENV, settings).returns == score_random(ENV, settings).returns).all()
    other = EvaluateSettings(episodes=6, seed=8)
    assert (score_random(ENV, settings).returns != score_random(ENV, other).returns).any()


def test_an_episode_is_worth_the_same_however_many_are_driven_at_once(toy, agent):
    settings = EvaluateSettings(episodes=5, seed=7)
    all_at_once = score_random(ENV.model_copy(update={"num_envs": 5}), settings)
    assert (score_random(ENV.model_copy(update={"num_envs": 2}), settings).returns == all_at_once.returns).all()


def test_policies_are_told_apart(toy, agent):
    settings = EvaluateSettings(episodes=4)
    one, two = (score_policy(agent, policy(number), ENV, settings) for number in (0, 1))
    assert (one.returns != two.returns).all()


def test_the_first_lanes_policy_drives_every_lane():
    both = Controllers(SPEC, torch.stack([policy(number).params[0] for number in (0, 1)]), torch.arange(2))
    features = torch.randn(1, SPEC.num_features).expand(3, -1)
    acted = OnLanes.everywhere(both, 6).act(features, torch.tensor([0, 1, 5]))
    assert torch.equal(acted, policy().act(features[:1], torch.tensor([0])).expand(3, -1))
    assert OnLanes.everywhere(both, 6).features == "zh"


def test_no_exploration_noise_is_in_a_score(toy, agent):
    """Two lanes of one seed, were there such a thing, would do the same: so does one seed scored twice."""
    one = score_policy(agent, policy(), ENV, EvaluateSettings(episodes=1, seed=3))
    alone = agent.with_policy(policy())
    alone.begin(1)
    (driven,) = driving.drive(ToyEnv(1), alone, [3])
    assert one.returns[0] == driven.total_reward


@pytest.mark.parametrize("workers", [1, 3])
def test_a_fleet_gives_the_same_scores(toy, agent, workers):
    settings = EvaluateSettings(episodes=10, seed=3)
    alone = score_policy(agent, policy(), ENV, settings), score_random(ENV, settings)
    fleet = PickledFleet(workers)
    shared = score_policy(agent, policy(), ENV, settings, fleet), score_random(ENV, settings, fleet)
    assert fleet.tasks == [3, 3]
    for ours, theirs in zip(shared, alone, strict=True):
        assert ours.returns.tolist() == theirs.returns.tolist()
        assert ours.frames.tolist() == theirs.frames.tolist()


def test_runners_that_are_there_drive_in_place_of_new_ones(toy, agent):
    settings = EvaluateSettings(episodes=6, seed=7)
    want = score_policy(agent, policy(), ENV, settings)
    toy.clear()
    with contextlib.closing(Runners(ENV)) as runners:
        for _ in range(2):
            assert (score_policy(agent, policy(), ENV, settings, runners=runners).returns == want.returns).all()
        assert len(toy) == 1
        assert not toy[0][1].closed


def test_settings_are_bounded():
    for wrong in ({"episodes": 0}, {"seed": -1}, {"seed": 2**30}, {"backend": "mujoco"}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            EvaluateSettings(**wrong)


@pytest.mark.parametrize(("repeat", "pictures"), [(1, 7), (3, 3)])
def test_a_film_has_a_picture_a_decision_at_the_environments_speed(toy, agent, tmp_path, repeat, pictures):
    path = tmp_path / "deep" / "drive.mp4"
    env = ENV.model_copy(update={"action_repeat": repeat})
    driven = record_film(agent, policy(), env, 3, path)
    assert driven.frames == ToyEnv.length(3) == 7
    assert driven.steps == pictures
    frames, seconds = count_frames_and_secs(str(path))
    assert frames == pictures
    rate = round(50 / repeat)
    assert abs(seconds - pictures / rate) < 2 / rate  # the container rounds to a frame or so
    assert [file.name for file in path.parent.iterdir()] == ["drive.mp4"]
    assert all(chosen.backend == "gymnasium" and made.closed for chosen, made in toy)


def test_a_film_that_cannot_be_written_is_a_storage_error(toy, agent, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"drive\.mp4"):
        record_film(agent, policy(), ENV, 3, tmp_path / "file" / "drive.mp4")
    monkeypatch.setattr("imageio_ffmpeg.count_frames_and_secs", lambda path: (3, 0.1))
    with pytest.raises(StorageError, match="not written whole"):
        record_film(agent, policy(), ENV, 3, tmp_path / "drive.mp4")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_the_real_thing(agent, tmp_path):
    settings = EvaluateSettings(episodes=2)
    env = EnvSettings(num_envs=2, max_frames=8)
    scores, uniform = score_policy(agent, policy(), env, settings), score_random(env, settings)
    assert scores.frames.tolist() == uniform.frames.tolist() == [8, 8]
    assert (scores.returns > 5).all()  # the first tile, less eight frames
    path = tmp_path / "drive.mp4"
    driven = record_film(agent, policy(), EnvSettings(max_frames=8), 1, path)
    assert (driven.frames, driven.steps) == (8, 2)
    assert count_frames_and_secs(str(path))[0] == 2
