"""Rewards are learnt alike whatever their unit, their offset and their rare giants."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checker import check

from wm_engine.data.replay import Replay
from wm_engine.data.sequences import EncodedEpisode, stack_windows
from wm_engine.data.store import Episode, RolloutStore
from wm_engine.models.mdn_rnn import MDNRNN, MDNRNNSettings
from wm_engine.models.trainer import Trainer
from wm_engine.rng import keyed_generator
from wm_engine.run.steps import _reward_units
from wm_engine.spaces import Box, Spaces, Vector

Z, A, T, EPISODES = 2, 2, 25, 60
NOISE = 0.1
HOLDOUT = 0.2
SETTINGS = MDNRNNSettings(hidden=16, mixtures=2, mixture="shared", batch_size=16)
STEPS = 600


def small_world():
    """Latents that drift under actions, with the noise that no model can know, and rewards that follow from both."""
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(EPISODES):
        actions = rng.uniform(-1.0, 1.0, (T, A))
        z, noise = np.zeros((T + 1, Z)), NOISE * rng.standard_normal((T, Z))
        z[0] = rng.standard_normal(Z)
        for step in range(T):
            z[step + 1] = 0.8 * z[step] + 0.3 * actions[step] + noise[step]
        episodes.append((z, actions, actions[:, 0] + 0.5 * z[:-1, 1], noise))
    return episodes


WORLD = small_world()


class Priced:
    """The small world with other rewards, in a store and encoded: what the rule of a run reads."""

    def __init__(self, folder, price):
        self.store = RolloutStore.open(folder, Spaces(Vector(Z), Box((-1.0,) * A, (1.0,) * A)))
        rewards = [np.asarray(price(one[2], number), dtype=np.float32) for number, one in enumerate(WORLD)]
        for number, (z, actions, _, _) in enumerate(WORLD):
            seen, acted = z.astype(np.float32), actions.astype(np.float32)
            self.store.append(Episode(seen, acted, rewards[number], False, True, number, "test"))
        self.episodes = [
            EncodedEpisode(
                torch.from_numpy(z).float(),
                torch.full((T + 1, Z), -300.0),
                torch.from_numpy(actions).float(),
                torch.from_numpy(paid),
                False,
            )
            for (z, actions, _, _), paid in zip(WORLD, rewards, strict=True)
        ]

    def replay(self):
        return Replay(self.store, 0, HOLDOUT)

    def units(self):
        config = SimpleNamespace(memory=SETTINGS)
        return _reward_units(SimpleNamespace(replay=self.replay, store=self.store, config=config))

    def learnt(self, steps=STEPS):
        """An M that has learnt this as a run's step does."""
        torch.manual_seed(0)
        m = MDNRNN.build(Z, self.store.spaces, SETTINGS)
        trainer, replay = Trainer("memory", m), self.replay()
        m.scale_rewards(*self.units())
        for step in range(steps):
            chosen = replay.draw(np.random.default_rng([0, step]), SETTINGS.batch_size, 0.5, 64)
            batch = stack_windows([self.episodes[index] for index in chosen])
            value, _ = m.loss(batch, keyed_generator(0, step), SETTINGS)
            trainer.step(value, 1e-2 if step < steps // 2 else 2e-3, SETTINGS.clip)
        return m.finished()

    def held_out(self, m):
        """Predicted and real rewards, float64 [N], and the nats a dimension beyond those of the world's own noise."""
        chosen = self.replay().held_out
        batch = stack_windows([self.episodes[index] for index in chosen])
        with torch.no_grad():
            said = m.predict(batch, batch.mu)
        noise = np.concatenate([WORLD[index][3] for index in chosen]) / NOISE
        own = 0.5 * np.square(noise).mean() + math.log(NOISE) + 0.5 * math.log(2.0 * math.pi)
        excess = said["nll"].double().mean().item() - own
        return said["reward"].double().T.flatten().numpy(), batch.rewards.double().T.flatten().numpy(), excess


def unexplained(predicted, paid):
    """1 - R²: the share of the rewards' variance that a prediction leaves unexplained."""
    return np.square(predicted - paid).mean() / paid.var()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    world = Priced(tmp_path_factory.mktemp("plain"), lambda rewards, number: rewards)
    predicted, paid, excess = world.held_out(world.learnt())
    return unexplained(predicted, paid), excess


def test_the_plain_rewards_are_learnt(plain):
    """What the others are held to means something."""
    share, excess = plain
    assert share < 0.02
    assert excess < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "shift"), [(0.001, 0.0), (30.0, 0.0), (1000.0, 0.0), (1.0, 100.0), (0.001, -1.0)])
def test_neither_unit_nor_offset_of_the_rewards_changes_what_is_learnt(tmp_path, plain, scale, shift):
    world = Priced(tmp_path, lambda rewards, number: scale * rewards + shift)
    predicted, paid, excess = world.held_out(world.learnt())
    check("unexplained variance of the rewards", np.array(unexplained(predicted, paid)), np.zeros(()), plain[0])
    check("nats beyond the world's own", np.array(excess), np.zeros(()), plain[1])


@pytest.mark.slow
def test_a_rare_giant_does_not_drown_the_others(tmp_path, plain):
    giants = np.random.default_rng(5).random((EPISODES, T)) < 1 / 500
    world = Priced(tmp_path, lambda rewards, number: np.where(giants[number], -100.0, rewards))
    held = giants[world.replay().held_out].flatten()
    assert giants[world.replay().training].any()
    predicted, paid, excess = world.held_out(world.learnt())
    common = paid > -50.0
    assert np.array_equal(common, ~held)
    assert unexplained(predicted[common], paid[common]) < 0.1
    check("nats beyond the world's own", np.array(excess), np.zeros(()), plain[1])


@pytest.mark.slow
def test_a_constant_that_rounding_moves_now_and_then_stays_finite(tmp_path, plain):
    below = np.nextafter(np.float32(1.0), np.float32(0.0))
    assert below == np.float32(1.0 - 6e-8)
    world = Priced(tmp_path, lambda rewards, number: np.where(rewards > 0.9, below, np.float32(1.0)))
    _, scale = world.units()
    m = world.learnt()
    predicted, paid, excess = world.held_out(m)
    assert len(np.unique(paid)) == 2
    assert all(torch.isfinite(value).all() for value in m.state_dict().values())
    assert np.abs(predicted - paid).max() < scale
    check("nats beyond the world's own", np.array(excess), np.zeros(()), plain[1])


def units_of(tmp_path, price):
    return Priced(tmp_path, price).units()


def test_units_are_mean_and_deviation_of_the_common_rewards(tmp_path):
    world = Priced(tmp_path, lambda rewards, number: rewards)
    rewards = np.concatenate([world.episodes[index].rewards.numpy() for index in world.replay().training])
    common = np.clip(rewards.astype(np.float64), *np.quantile(rewards.astype(np.float64), [0.005, 0.995]))
    center, scale = world.units()
    check("center", np.array(center), np.array(common.mean()), precision="fp64")
    check("scale", np.array(scale), np.array(common.std()), precision="fp64")


def test_what_is_held_out_does_not_count(tmp_path):
    held = Priced(tmp_path / "plain", lambda rewards, number: rewards).replay().held_out
    plain = units_of(tmp_path / "again", lambda rewards, number: rewards)
    assert units_of(tmp_path / "dear", lambda rewards, number: rewards * (1e6 if number in held else 1.0)) == plain


def first_steps(rewards, number, giant):
    """The rewards, but for two giants among all of them."""
    return np.where((np.arange(T) == number) & (number in (0, 2)), giant, rewards)


def test_a_giant_hardly_widens_the_scale(tmp_path):
    plain = units_of(tmp_path / "plain", lambda rewards, number: rewards)
    rare = units_of(tmp_path / "rare", lambda rewards, number: first_steps(rewards, number, -100.0))
    giant = units_of(tmp_path / "giant", lambda rewards, number: first_steps(rewards, number, -1e9))
    assert rare[1] < 2.0 * plain[1]
    assert giant[0] == rare[0]


@pytest.mark.parametrize("constant", [0.0, 1.0, -100.0])
def test_constant_rewards_have_a_scale(tmp_path, constant):
    center, scale = units_of(tmp_path, lambda rewards, number: np.full(T, constant))
    assert center == constant
    assert scale == (1e-4 * abs(constant) if constant else 1.0)


def test_rewards_so_rare_that_they_lie_beyond_the_quantiles_count_all(tmp_path):
    center, scale = units_of(tmp_path, lambda rewards, number: np.where(np.arange(T) == 0, float(number == 0), 0.0))
    count = len(Replay(RolloutStore.open(tmp_path), 0, HOLDOUT).training) * T
    chance = 1 / count
    check("center", np.array(center), np.array(chance), precision="fp64")
    check("scale", np.array(scale), np.array(math.sqrt(chance * (1 - chance))), precision="fp64")


def one_episode(latent, action):
    """A batch of one random episode."""
    mu, logvar, actions = torch.randn(8, latent), torch.zeros(8, latent), torch.randn(7, action)
    return stack_windows([EncodedEpisode(mu, logvar, actions, torch.zeros(7), True)])


def random_world(mixture):
    m, generator = MDNRNN(3, 2, 6, 2, mixture), torch.Generator().manual_seed(0)
    for value in m.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=generator))
    return m


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize("units", [[(0.0, 1.0)], [(3.0, 0.25)], [(-100.0, 1e-3), (7.0, 50.0), (0.5, 2.0)]])
def test_new_units_keep_what_was_learnt(mixture, units):
    """Predictions in the task's units are as they were, and so is everything but the reward's row."""
    m, before = random_world(mixture), random_world(mixture)
    batch = stack_windows(
        [EncodedEpisode(torch.randn(8, 3), torch.zeros(8, 3), torch.randn(7, 2), torch.zeros(7), True)]
    )
    exact = random_world(mixture).double()
    for center, scale in units:
        m.scale_rewards(center, scale)
        assert m.reward_units() == (center, scale)
        exact.scale_rewards(center, scale)
    with torch.no_grad():
        want = before.double().predict(batch_in(batch, torch.float64), batch.mu.double())
        said, double = m.predict(batch, batch.mu), exact.predict(batch_in(batch, torch.float64), batch.mu.double())
    check("reward in float64", double["reward"], want["reward"], precision="fp64")
    # Folded as a plain affine map, in float32: the row's offset is of the size of the largest center over its scale.
    row = m.layout.reward_row
    with torch.no_grad():
        heads = m.sequence(torch.cat([batch.mu[:-1], batch.actions], -1))[0][..., row]
        folded = heads * units[-1][1] + units[-1][0]
    check("reward", said["reward"], want["reward"], folded)
    for name, value in m.state_dict().items():
        others = torch.arange(len(value)) != row if name.startswith("head") else slice(None)
        assert torch.equal(value[others].double(), before.state_dict()[name][others])


def batch_in(batch, dtype):
    return replace(batch, actions=batch.actions.to(dtype), mu=batch.mu.to(dtype))


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_before_anything_is_learnt_the_center_is_predicted(mixture):
    """A random row would be hundreds of scales off, where rewards are small or lie far from zero."""
    settings = SETTINGS.model_copy(update={"mixture": mixture})
    m = MDNRNN.build(Z, Spaces(Vector(Z), Box((-1.0,) * A, (1.0,) * A)), settings)
    for center, scale in ((100.0, 1e-3), (-7.0, 30.0)):
        m.scale_rewards(center, scale)
        assert m.reward_units() == (center, scale)
        batch = stack_windows(
            [EncodedEpisode(torch.randn(8, Z), torch.zeros(8, Z), torch.randn(7, A), torch.zeros(7), True)]
        )
        for model in (m, m.finished()):
            with torch.no_grad():
                assert (model.predict(batch, batch.mu)["reward"] == center).all()


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize(("center", "scale"), [(0.0, 1.0), (3.0, 0.25), (-100.0, 16.0)])
def test_a_finished_model_has_center_and_scale_in_its_weights(mixture, center, scale):
    m = random_world(mixture)
    m.set_reward_units(center, scale)
    finished, row = m.train().finished(), m.layout.reward_row
    assert finished.reward_units() == (0.0, 1.0)
    assert m.reward_units() == (center, scale), "the learner's own goes on in its units"
    assert not finished.training
    head = m.head
    # Powers of two: exact.
    assert torch.equal(finished.head.weight[row], head.weight[row] * scale)
    assert torch.equal(finished.head.bias[row], head.bias[row] * scale + center)
    assert torch.equal(finished.head.weight[:row], head.weight[:row])
    assert torch.equal(finished.finished().head.weight, finished.head.weight)
