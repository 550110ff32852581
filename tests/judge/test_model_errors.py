"""Measuring M: against models whose every prediction is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from checker import check
from models.drift import Drift
from recordings import PixelVision, encoded, known_world

from wm_engine.data.sequences import EncodedEpisode
from wm_engine.judge.model_errors import HORIZON, model_errors, one_step_errors
from wm_engine.models.mdn_rnn import MDNRNN

HELD_OUT = [1, 4, 7]


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """All episodes of the known world."""
    return encoded(PixelVision(logvar=-4.0), known_world(tmp_path_factory.mktemp("world")))


def measured(m, latents, seed=0):
    """What is measured of the held-out episodes; the baselines are fitted on the others."""
    others = [episode for index, episode in enumerate(latents) if index not in HELD_OUT]
    return model_errors(m, [latents[index] for index in HELD_OUT], others, seed)


def constant_model(mean=0.25, log_std=0.5, reward=0.1, done=-1.0):
    """An M that says the same of every step."""
    m = MDNRNN(2, 3, hidden=4, mixtures=2)
    with torch.no_grad():
        for parameter in m.parameters():
            parameter.zero_()
        parts = m.split(m.head.bias)
        parts.means.fill_(mean)
        parts.log_stds.fill_(log_std)
        parts.reward.fill_(reward)
        parts.done.fill_(done)
    return m


def joined(latents, name, episodes=HELD_OUT):
    return torch.cat([getattr(latents[episode], name) for episode in episodes]).double().numpy()


def test_likelihoods(latents):
    numbers = measured(constant_model(), latents)
    variance = math.exp(-4.0)

    def expected_nll(error, std):
        # Of a latent drawn with the posterior's variance around its mean, under a normal of deviation std.
        return (0.5 * (error**2 + variance) / std**2 + np.log(std) + 0.5 * math.log(2 * math.pi)).mean()

    targets = [latents[episode].mu[1:].double().numpy() for episode in HELD_OUT]
    assert numbers["steps"] == sum(map(len, targets))
    target = np.concatenate(targets)
    # The draws' own noise: about 100 steps of two dimensions each.
    assert numbers["nll_per_dimension"] == pytest.approx(expected_nll(target - 0.25, np.exp(0.5)), abs=0.03)

    others = [index for index in range(len(latents)) if index not in HELD_OUT]
    known = joined(latents, "mu", others)
    deviation = np.sqrt(known.var(0) + variance)
    assert numbers["nll_gaussian"] == pytest.approx(expected_nll(target - known.mean(0), deviation), abs=0.06)
    changes = np.concatenate([np.diff(latents[episode].mu.double().numpy(), axis=0) for episode in others])
    of_change = np.sqrt((changes**2).mean(0) + 2 * variance)
    change = np.concatenate([np.diff(latents[episode].mu.double().numpy(), axis=0) for episode in HELD_OUT])
    error = np.sqrt(change**2 + variance)
    assert numbers["nll_copy_last"] == pytest.approx(expected_nll(error, of_change), abs=0.06)


def test_a_constant_reward_explains_nothing(latents):
    numbers = measured(constant_model(reward=0.1), latents)
    rewards = joined(latents, "rewards")
    assert numbers["reward_r2"] == pytest.approx(1.0 - ((rewards - 0.1) ** 2).mean() / rewards.var(), rel=1e-5)
    assert math.isnan(numbers["reward_slope"])
    assert sum(numbers["reward_bins_count"]) == len(rewards)
    assert numbers["reward_bins_predicted"] == pytest.approx([0.1] * len(numbers["reward_bins_predicted"]))
    total = np.dot(numbers["reward_bins_realised"], numbers["reward_bins_count"])
    assert total == pytest.approx(rewards.sum(), rel=1e-5)


def test_a_reward_head_that_follows_the_action_is_measured(latents):
    """The world's reward is nearly the first action: an M that says so has a high R2 and a slope of one."""
    m = constant_model()
    with torch.no_grad():
        # Gates wide open, a cell input of a tenth of the action: h is nearly linear in it and forgets at once.
        m.lstm.weight_ih_l0[8, 2] = 0.1
        bias = m.lstm.bias_ih_l0.view(4, 4)
        bias[0], bias[1], bias[3] = 20.0, -20.0, 20.0
        m.head.weight[-2, 0] = 10.0
        m.head.bias[-2] = 2.0 / 16.0
    numbers = measured(m, latents)
    assert numbers["reward_r2"] > 0.95
    assert numbers["reward_slope"] == pytest.approx(1.0, abs=0.05)
    assert numbers["reward_bins_predicted"] == sorted(numbers["reward_bins_predicted"])
    np.testing.assert_allclose(numbers["reward_bins_predicted"], numbers["reward_bins_realised"], atol=0.1)


@pytest.mark.parametrize("done", [1.0, -1.0])
def test_ends(latents, done):
    numbers = measured(constant_model(done=done), latents)
    ends = sum(latents[episode].terminated for episode in HELD_OUT)
    assert numbers["ends"] == ends > 0
    if done > 0:
        assert numbers["ends_predicted"] == numbers["steps"]
        assert numbers["end_recall"] == 1.0
        assert numbers["end_precision"] == ends / numbers["steps"]
    else:
        assert numbers["ends_predicted"] == 0
        assert numbers["end_recall"] == 0.0
        assert math.isnan(numbers["end_precision"])


def test_open_loop_errors_of_a_constant_dream(latents):
    numbers = measured(constant_model(mean=0.25, log_std=-5.0), latents)
    horizons = numbers["open_loop_horizon"]
    assert horizons == list(range(1, max(latents[episode].steps for episode in HELD_OUT) + 1))
    # No episode is as long as the horizon, so dreams begin with the first step of each.
    assert numbers["open_loop_starts"] == len(HELD_OUT)
    assert max(latents[episode].steps for episode in HELD_OUT) < HORIZON
    for horizon in (1, 5, horizons[-1]):
        alive = [latents[episode].mu for episode in HELD_OUT if latents[episode].steps >= horizon]
        error = torch.stack([mu[horizon] - 0.25 for mu in alive]).square().mean().sqrt()
        assert numbers["open_loop_most_likely"][horizon - 1] == pytest.approx(float(error), rel=1e-4)
        assert numbers["open_loop_sampled"][horizon - 1] == pytest.approx(float(error), abs=0.03)
        copied = torch.stack([mu[horizon] - mu[0] for mu in alive]).square().mean().sqrt()
        # The dream begins from a latent drawn with the posterior's deviation, 0.14.
        assert numbers["open_loop_copy_last"][horizon - 1] == pytest.approx(float(copied), abs=0.4)


def test_the_same_seed_measures_the_same(latents):
    m = MDNRNN(2, 3, hidden=4, mixtures=2)
    assert repr(measured(m, latents, seed=3)) == repr(measured(m, latents, seed=3))
    one, other = (measured(m, latents, seed)["nll_per_dimension"] for seed in (3, 4))
    assert one != other


def test_the_record_of_a_training_agrees(latents):
    m = constant_model(done=1.0)
    numbers = measured(m, latents)
    brief = one_step_errors(m, [latents[index] for index in HELD_OUT])
    assert {name: numbers[name] for name in brief} == brief


def test_there_must_be_episodes_on_both_sides(latents):
    for episodes, others in (([], latents), (latents, [])):
        with pytest.raises(ValueError, match="episodes and others must be some each, but were"):
            model_errors(constant_model(), episodes, others)


def drifting(steps, latent=2, seed=0):
    """Episodes of a Drift's own world, seen without noise; steps of 64ths, whose sums are exact."""
    rng = np.random.default_rng(seed)
    episodes = []
    for count in steps:
        actions = torch.from_numpy((rng.integers(-64, 65, (count, 1)) / 64).astype(np.float32))
        mu = torch.cat([torch.zeros(1, latent), actions.cumsum(0).expand(-1, latent)])
        episodes.append(EncodedEpisode(mu, torch.full_like(mu, -300.0), actions, actions[:, 0].clone(), False))
    return episodes


def test_a_model_that_knows_the_rule_makes_no_errors():
    """Any kind of world model is measured; this one has no hidden state."""
    episodes = drifting([30, 20, 120, 130])
    numbers = model_errors(Drift(), episodes, drifting([50, 40], seed=1))
    assert numbers["steps"] == 300
    assert numbers["reward_r2"] == 1.0
    check("slope", np.array([numbers["reward_slope"], numbers["reward_intercept"]]), np.array([1.0, 0.0]))
    assert numbers["open_loop_most_likely"] == [0.0] * HORIZON
    assert numbers["open_loop_starts"] == 1 + 1 + (120 - HORIZON + 1) + (130 - HORIZON + 1)
    assert (np.array(numbers["open_loop_copy_last"][5:]) > 0.1).all()


def test_rewards_before_ends_are_told_apart():
    episodes = []
    for one in drifting([20, 30, 25]):
        rewards = one.rewards.clone()
        rewards[-1] -= 100.0
        episodes.append(EncodedEpisode(one.mu, one.logvar, one.actions, rewards, True))
    numbers = one_step_errors(Drift(), episodes)
    assert numbers["reward_r2_before_ends"] == 1.0
    assert numbers["reward_r2"] < 0.5
    assert numbers["end_recall"] == 0.0
