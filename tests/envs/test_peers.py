"""Peers: what DQN is handed, what it makes, and what is said where it is not installed."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from wm_engine.envs import find_task
from wm_engine.envs.peers import DQN
from wm_engine.errors import MissingDependencyError


class FakeDQN:
    """Stands in for stable_baselines3.DQN: pushes the way the pole falls."""

    def __init__(self, policy, env, **settings):
        self.made, self.action_space = (policy, env, settings), types.SimpleNamespace(n=2)

    def learn(self, frames):
        self.learnt = frames

    def predict(self, observations, deterministic):
        assert deterministic
        return (observations[:, 2] > 0).astype(np.int64), None


def test_dqn_learns_from_so_many_frames_and_acts_greedily(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", types.SimpleNamespace(DQN=FakeDQN))
    baseline = DQN("CartPole-v1", {"gamma": 0.9})(1234, 2**32 + 7)
    assert baseline.model.made == ("MlpPolicy", "CartPole-v1", {"seed": 7, "device": "cpu", "gamma": 0.9})
    assert baseline.model.learnt == 1234
    seen = np.array([[0, 0, 0.1, 0], [0, 0, -0.1, 0]], np.float32)
    assert baseline([3, 4]).act(seen, np.arange(2)).tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'wm-engine\[peers\]'"):
        find_task("cartpole").peers["DQN"](100, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # other people's code
def test_the_real_one_acts():
    pytest.importorskip("stable_baselines3", reason="the extra peers is not installed")
    baseline = DQN("CartPole-v1", {"learning_starts": 10})(64, 0)
    acted = baseline([0]).act(np.zeros((3, 4), np.float32), np.arange(3))
    assert acted.sum(axis=1).tolist() == [1.0, 1.0, 1.0]
