import numpy as np
import pytest
import torch
from imageio_ffmpeg import count_frames_and_secs
from pydantic import ValidationError
from toy_env import ToyEnv

import wm_engine.evaluate as evaluation
from wm_engine import waves
from wm_engine.agent import Agent
from wm_engine.controller import ControllerSpec
from wm_engine.envs import EnvSettings
from wm_engine.errors import StorageError
from wm_engine.evaluate import EvaluateSettings, Scores, evaluate_agent, evaluate_random, record_video
from wm_engine.memory.model import MDNRNN
from wm_engine.vision.model import VAE
from wm_engine.waves import Trajectory


@pytest.fixture(scope="module")
def agent():
    torch.manual_seed(0)
    spec = ControllerSpec(latent=4, hidden=8)
    return Agent(VAE(4), MDNRNN(latent=4, action=3, hidden=8), spec, 0.3 * torch.randn(2, spec.num_params))


@pytest.fixture
def toy(monkeypatch):
    made = []

    def make(settings, lanes, max_steps):
        made.append((settings, ToyEnv(lanes, max_steps)))
        return made[-1][1]

    for module in (evaluation, waves):
        monkeypatch.setattr(module, "make_env", make)
    return made


ENV = EnvSettings(id="Toy-v0", num_envs=4, backend="envpool")


def trajectory(seed, rewards, failed=False):
    rewards = np.array(rewards, dtype=np.float32)
    return Trajectory(seed, np.zeros((len(rewards), 3), np.float32), rewards, True, False, failed)


def test_scores_are_the_field_s_statistics():
    scores = Scores.of([trajectory(5, [1.0, 2.0]), trajectory(6, [7.0]), trajectory(9, [-4.0, 1.0, 1.0], failed=True)])
    assert scores.returns.tolist() == [3.0, 7.0, -2.0]
    assert scores.lengths.tolist() == [2, 1, 3]
    assert scores.seeds.tolist() == [5, 6, 9]
    assert scores.failed.tolist() == [False, False, True]
    assert scores.mean == pytest.approx(8 / 3)
    assert scores.std == pytest.approx(np.sqrt(((1 / 3) ** 2 + (13 / 3) ** 2 + (14 / 3) ** 2) / 2))
    assert scores.standard_error == pytest.approx(scores.std / np.sqrt(3))
    assert Scores.of([trajectory(0, [1.0])]).standard_error == 0.0


def test_returns_are_summed_in_float64():
    assert Scores.of([trajectory(0, [1e8] + [0.1] * 1000)]).returns[0] == pytest.approx(1e8 + 100, abs=1e-3)


def test_both_policies_drive_the_same_tracks_on_the_chosen_backend(toy, agent):
    settings = EvaluateSettings(episodes=10, max_steps=6, seed=40)
    scores, uniform = evaluate_agent(agent, ENV, settings), evaluate_random(ENV, settings)
    brownian = evaluate_random(ENV, settings, "brownian")
    for result in (scores, uniform, brownian):
        assert result.seeds.tolist() == list(range(40, 50))
        assert result.lengths.tolist() == [min(6, ToyEnv.length(seed)) for seed in range(40, 50)]
    assert all(chosen.backend == "gymnasium" and env.closed for chosen, env in toy)
    assert len({scores.mean, uniform.mean, brownian.mean}) == 3


def test_an_evaluation_can_be_repeated(toy, agent):
    settings = EvaluateSettings(episodes=6, max_steps=50, seed=7)
    assert (evaluate_agent(agent, ENV, settings).returns == evaluate_agent(agent, ENV, settings).returns).all()
    assert (evaluate_random(ENV, settings).returns == evaluate_random(ENV, settings).returns).all()
    other = EvaluateSettings(episodes=6, max_steps=50, seed=8)
    assert (evaluate_random(ENV, settings).returns != evaluate_random(ENV, other).returns).any()


def test_candidates_are_told_apart(toy, agent):
    settings = EvaluateSettings(episodes=4)
    one, two = (evaluate_agent(agent, ENV, settings, candidate) for candidate in (0, 1))
    assert (one.returns != two.returns).all()


def test_settings_are_bounded():
    for wrong in ({"episodes": 0}, {"max_steps": 0}, {"seed": -1}, {"backend": "mujoco"}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            EvaluateSettings(**wrong)


def test_a_video_has_a_picture_a_step(toy, agent, tmp_path):
    path = tmp_path / "deep" / "drive.mp4"
    driven = record_video(agent, ENV, 3, path)
    assert driven.steps == ToyEnv.length(3) == 7
    frames, seconds = count_frames_and_secs(str(path))
    assert frames == 7
    assert seconds == pytest.approx(7 / 50, abs=0.03)
    assert [file.name for file in path.parent.iterdir()] == ["drive.mp4"]


def test_a_video_that_cannot_be_written_is_a_storage_error(toy, agent, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"drive\.mp4"):
        record_video(agent, ENV, 3, tmp_path / "file" / "drive.mp4")
    monkeypatch.setattr("imageio_ffmpeg.count_frames_and_secs", lambda path: (3, 0.1))
    with pytest.raises(StorageError, match="not written whole"):
        record_video(agent, ENV, 3, tmp_path / "drive.mp4")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_the_real_thing(agent, tmp_path):
    settings = EvaluateSettings(episodes=2, max_steps=8)
    scores = evaluate_agent(agent, EnvSettings(num_envs=2), settings)
    uniform = evaluate_random(EnvSettings(num_envs=2), settings)
    assert scores.lengths.tolist() == uniform.lengths.tolist() == [8, 8]
    assert (scores.returns > 5).all()  # the first tile, less eight steps
    path = tmp_path / "drive.mp4"
    assert record_video(agent, EnvSettings(), 1, path, max_steps=8).steps == 8
    assert count_frames_and_secs(str(path))[0] == 8
