"""Training of M: the losses, what it learns, resuming."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from checker import check
from recordings import PixelVision, StopAfter, Stopped, known_world, same_weights
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal

from wm_engine.errors import RunMismatchError
from wm_engine.memory import training as memory_training
from wm_engine.memory.fidelity import memory_fidelity
from wm_engine.memory.model import MDNRNN
from wm_engine.memory.sequences import SequenceBatch
from wm_engine.memory.training import MemorySettings, losses, reward_scale, train_memory
from wm_engine.ops.mdn import MixtureHead
from wm_engine.records import Recorder, read_metrics
from wm_engine.runs import Checkpoints
from wm_engine.vision.latents import encode_store

SETTINGS = MemorySettings(
    steps=7, batch_size=4, sequence_length=8, hidden=16, mixtures=2, holdout=0.25, checkpoint_seconds=0.0
)


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return encode_store(PixelVision(), known_world(folder / "rollouts", episodes=24), folder / "latents")


def train(latents, folder, seed=0, checkpoints=None, init=None, **changes):
    with Recorder(folder / "metrics") as recorder:
        return train_memory(
            latents,
            SETTINGS.model_copy(update=changes),
            seed,
            checkpoints or Checkpoints(folder / "checkpoints"),
            recorder,
            init=init,
        )


@pytest.mark.parametrize("shared", [True, False])
def test_losses_are_those_of_the_distributions_over_live_steps(shared):
    T, B, Z, K, end_weight, scale = 5, 3, 4, 2, 10.0, 2.5
    live = torch.rand(T, B) < 0.6
    batch = SequenceBatch(
        mu=torch.zeros(T + 1, B, Z),
        logvar=torch.zeros(T + 1, B, Z),
        actions=torch.zeros(T, B, 3),
        rewards=torch.randn(T, B),
        ends=(torch.rand(T, B) < 0.5).float(),
        live=live,
        fresh=torch.ones(B, dtype=torch.bool),
    )
    parts = MixtureHead(
        torch.randn(T, B, 1 if shared else Z, K),
        torch.randn(T, B, Z, K),
        torch.randn(T, B, Z, K),
        torch.randn(T, B),
        torch.randn(T, B),
    )
    target = torch.randn(T, B, Z)
    # What stands at padded steps must not matter.
    batch.rewards[~live] = math.nan
    target[~live] = math.nan

    def reference(dtype):
        logits, means, log_stds = (value[live].to(dtype) for value in (parts.logits, parts.means, parts.log_stds))
        if shared:
            components = Independent(Normal(means.mT, log_stds.mT.exp()), 1)
            log_likelihood = MixtureSameFamily(Categorical(logits=logits[:, 0]), components).log_prob(
                target[live].to(dtype)
            )
        else:
            mixture = MixtureSameFamily(Categorical(logits=logits), Normal(means, log_stds.exp()))
            log_likelihood = mixture.log_prob(target[live].to(dtype)).sum(-1)
        reward = (parts.reward[live].to(dtype) - batch.rewards[live].to(dtype)).square() / scale**2
        ends = batch.ends[live].to(dtype)
        end = -Bernoulli(logits=parts.done[live].to(dtype)).log_prob(ends) * torch.where(ends > 0, end_weight, 1.0)
        return torch.stack([-log_likelihood.mean() / Z, reward.mean(), end.mean()])

    ours = torch.stack(losses(parts, target, batch, scale, end_weight))
    check("losses", ours, reference(torch.float64), reference(torch.float32))


def test_the_reward_s_scale_is_its_standard_deviation(latents):
    rewards = torch.cat([latents.read(episode).rewards for episode in (1, 5)])
    assert reward_scale(latents, [1, 5]) == pytest.approx(float(rewards.double().std(correction=0)))


@pytest.mark.parametrize(("mixture", "step"), [("shared", 2), ("per_dim", 5)])
def test_a_training_that_was_stopped_ends_as_one_that_was_not(latents, tmp_path, mixture, step):
    whole = train(latents, tmp_path / "whole", mixture=mixture)
    with pytest.raises(Stopped):
        train(latents, tmp_path / "cut", checkpoints=StopAfter(tmp_path / "cut" / "checkpoints", step), mixture=mixture)
    assert same_weights(whole, train(latents, tmp_path / "cut", mixture=mixture))


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_it_learns_the_known_world(latents, tmp_path, mixture):
    m = train(
        latents,
        tmp_path,
        mixture=mixture,
        hidden=32,
        steps=500,
        batch_size=8,
        learning_rate=1e-2,
        final_learning_rate=1e-3,
        sequence_length=16,
        checkpoint_seconds=60.0,
    )
    _, held_out = latents.split(SETTINGS.holdout)
    numbers = memory_fidelity(m, latents, held_out)
    assert numbers["nll_per_dimension"] < numbers["nll_copy_last"] - 0.5
    assert numbers["nll_copy_last"] < numbers["nll_gaussian"]
    assert numbers["reward_r2"] > 0.9
    assert numbers["end_recall"] > 0.5
    assert numbers["open_loop_most_likely"][4] < 0.5 * numbers["open_loop_copy_last"][4]
    last = read_metrics(tmp_path / "metrics" / "metrics.jsonl")[-1]
    assert last["held_out_nll_per_dimension"] == pytest.approx(numbers["nll_per_dimension"], rel=0.2)
    assert last["held_out_reward_r2"] > 0.9


def test_the_hidden_state_is_carried_through_an_episode(latents, tmp_path, monkeypatch):
    states, sequence = [], MDNRNN.sequence

    def watched(self, inputs, state=None):
        head, after = sequence(self, inputs, state)
        if self.training and state is not None:
            states.append((state, after))
        return head, after

    monkeypatch.setattr(MDNRNN, "sequence", watched)
    train(latents, tmp_path, batch_size=1, steps=20)
    carried = [torch.equal(before, after) for (_, (after, _)), ((before, _), _) in itertools.pairwise(states)]
    begun = [not before.any() for (before, _), _ in states[1:]]
    assert all(kept != fresh for kept, fresh in zip(carried, begun, strict=True))
    assert any(carried)
    assert any(begun)


def test_ends_weigh_more(latents, tmp_path):
    predicted = {}
    _, held_out = latents.split(SETTINGS.holdout)
    for weight in (0.1, 100.0):
        m = train(latents, tmp_path / str(weight), steps=60, learning_rate=1e-2, end_weight=weight)
        predicted[weight] = memory_fidelity(m, latents, held_out)["ends_predicted"]
    assert predicted[0.1] < predicted[100.0]


def test_it_goes_on_from_given_weights(latents, tmp_path):
    init = MDNRNN(2, 3, 16, 2)
    trained = train(latents, tmp_path / "on", steps=1, learning_rate=1e-12, init=init)
    for ours, theirs in zip(trained.parameters(), init.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    for other in (MDNRNN(2, 3, 17, 2), MDNRNN(2, 3, 16, 3), MDNRNN(2, 3, 16, 2, "shared"), MDNRNN(2, 2, 16, 2)):
        with pytest.raises(ValueError, match="init must have"):
            train(latents, tmp_path / "other", init=other)


def test_one_episode_is_not_enough(tmp_path):
    store = known_world(tmp_path / "rollouts", episodes=1)
    latents = encode_store(PixelVision(), store, tmp_path / "latents")
    with pytest.raises(ValueError, match="at least two episodes"):
        train(latents, tmp_path)


def test_checkpoints_of_other_random_numbers_are_refused(latents, tmp_path, monkeypatch):
    train(latents, tmp_path)
    monkeypatch.setattr(memory_training, "RNG_VERSION", 2)
    with pytest.raises(RunMismatchError, match=r"belong to a memory training .* or with another version of the random"):
        train(latents, tmp_path)
