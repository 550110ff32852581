"""The policy gradient: it learns a toy, its advantages are the formula's, and a kill changes no bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checker import check
from toys.task import task
from toys.world_model import LinearWorld

from wm_engine.dream.types import Starts
from wm_engine.envs import Task
from wm_engine.errors import ConfigError, CorruptFileError
from wm_engine.files import save_tensors
from wm_engine.learn.base import Problem
from wm_engine.learn.policy_gradient import PolicyGradient, PolicyGradientSettings, _Dreamt
from wm_engine.spaces import Box, Spaces, Vector

SETTINGS = PolicyGradientSettings(hidden_units=8, updates=12, dreams=64, dream_steps=6, learning_rate=0.03)


def corridor():
    """A world in which z[0] moves by the action, and its place is the reward."""
    world = LinearWorld(2, 3)
    with torch.no_grad():
        world.change.weight[0, 2:] = torch.tensor([-0.2, 0.0, 0.2])
        world.outcome.weight[0, 0] = 1.0
        world.outcome.bias[1] = -1.0
    return world


def problem(world):
    z = torch.rand(64, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    return Problem(0, 7, world, Starts(z), dreamer=lambda spec: None)


def made(settings=SETTINGS, world=None):
    return PolicyGradient.build(settings, task, world or corridor(), 3, torch.device("cpu"))


def test_it_learns_to_go_where_the_dream_pays():
    learner, world = made(), corridor()
    numbers = list(learner.learn(problem(world), 0))
    assert len(numbers) == learner.units(0) == 12
    assert numbers[-1]["mean"] > numbers[0]["mean"]
    action = learner.policy().act(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    assert action.tolist() == [[0.0, 0.0, 1.0]]


def test_a_learner_that_was_killed_goes_on_with_the_same_bits():
    whole, cut, world = made(), made(), corridor()
    list(whole.learn(problem(world), 0))
    for unit, _ in enumerate(cut.learn(problem(world), 0)):
        if unit == 4:
            break
    resumed = made()
    tensors, values = cut.state()
    resumed.load_state({name: value.clone() for name, value in tensors.items()}, values)
    list(resumed.learn(problem(world), 5))
    for name, value in whole.state()[0].items():
        assert torch.equal(value, resumed.state()[0][name]), name


def test_advantages_are_the_sums_that_the_formula_says():
    learner = made()
    generator = torch.Generator().manual_seed(1)
    features, rewards = torch.randn(4, 2, 2, generator=generator), torch.randn(3, 2, generator=generator)
    live = torch.tensor([[True, True], [True, True], [True, False], [True, False]])
    chosen = torch.zeros(3, 2, dtype=torch.int64)
    advantages, targets = learner._advantages(_Dreamt(features, chosen, rewards, rewards, live))
    values = learner._trainer.model.value(features).squeeze(-1).detach()

    def reference(v, r):
        found = torch.zeros_like(r)
        for lane, steps in ((0, 3), (1, 2)):
            for t in range(steps):
                for k in range(t, steps):
                    following = v[k + 1, lane] if live[k + 1, lane] else 0.0
                    delta = r[k, lane] + 0.97 * following - v[k, lane]
                    found[t, lane] += (0.97 * 0.95) ** (k - t) * delta
        return found

    on = live[:-1]
    exact, peer = reference(values.double(), rewards.double()), reference(values, rewards)
    check("targets", targets[on], (exact + values[:-1].double())[on], (peer + values[:-1])[on])

    def standard(x):
        return ((x - x[on].mean()) / (x[on].std() + 1e-8))[on]

    check("advantages", advantages[on], standard(exact), standard(peer))


def test_a_policy_is_a_file(tmp_path):
    learner = made()
    learner.save_policy(tmp_path / "c.safetensors", learner.policy())
    read, seen = PolicyGradient.load_policy(tmp_path / "c.safetensors"), torch.randn(5, 2)
    lanes = torch.arange(5)
    assert torch.equal(read.act(seen, lanes), learner.policy().act(seen, lanes))
    assert read.features == "z"
    save_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(CorruptFileError, match="not a policy of a policy gradient"):
        PolicyGradient.load_policy(tmp_path / "other.safetensors")


def test_a_lane_whose_features_are_not_finite_fails_alone():
    seen = torch.zeros(2, 2)
    seen[1, 0] = torch.nan
    actions = made().policy().act(seen, torch.arange(2)).numpy()
    np.testing.assert_array_equal(np.isfinite(actions).all(1), [True, False])


def test_continuous_actions_and_missing_states_are_refused():
    steering = Task("car", "Car-v0", Spaces(Vector(2), Box((-1.0,), (1.0,))))
    with pytest.raises(ConfigError, match="policy_gradient chooses among discrete actions, but the task takes Box"):
        PolicyGradient.build(SETTINGS, steering, corridor(), 0, torch.device("cpu"))
    with pytest.raises(ConfigError, match="'zh' sees a hidden state, but this world model has none"):
        made(SETTINGS.model_copy(update={"features": "zh"}))
