"""Training of V: the bound, what it learns, resuming."""

from __future__ import annotations

import pytest
import torch
from checker import check
from recordings import StopAfter, Stopped, same_weights, shades
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from wm_engine.errors import RunMismatchError
from wm_engine.records import Recorder, read_metrics
from wm_engine.rollouts import RolloutStore
from wm_engine.runs import Checkpoints
from wm_engine.vision import training as vision_training
from wm_engine.vision.model import VAE
from wm_engine.vision.training import VisionSettings, kl_divergence, reconstruction_error, train_vision

# 65 frames, 52 of them for training: batches of 16 make epochs of four steps, the last one short.
SETTINGS = VisionSettings(steps=5, batch_size=16, latent=4, holdout=0.2, precision="fp32")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return shades(tmp_path_factory.mktemp("shades") / "rollouts")


def train(store, folder, seed=0, checkpoints=None, init=None, **changes):
    with Recorder(folder / "metrics") as recorder:
        return train_vision(
            store,
            SETTINGS.model_copy(update=changes),
            seed,
            checkpoints or Checkpoints(folder / "checkpoints"),
            recorder,
            init=init,
        )


def test_reconstruction_error_is_the_sum_over_pixels():
    frames = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    decoded = torch.rand(3, 64, 64, 3)
    expected = (decoded.double() - frames.double() / 255.0).pow(2).sum(dim=(1, 2, 3))
    peer = torch.nn.functional.mse_loss(decoded, frames / 255.0, reduction="none").sum(dim=(1, 2, 3))
    check("error", reconstruction_error(decoded, frames), expected, peer)


def test_kl_divergence_is_that_of_two_normals():
    mu, logvar = torch.randn(5, 7), torch.randn(5, 7)

    def reference(mu, logvar):
        return torch_kl(Normal(mu, (0.5 * logvar).exp()), Normal(torch.zeros_like(mu), torch.ones_like(mu)))

    check("kl", kl_divergence(mu, logvar), reference(mu.double(), logvar.double()), reference(mu, logvar))


@pytest.mark.parametrize(("precision", "step"), [("fp32", 3), ("bf16", 4)])
def test_a_training_that_was_stopped_ends_as_one_that_was_not(store, tmp_path, precision, step):
    whole = train(store, tmp_path / "whole", precision=precision)
    with pytest.raises(Stopped):
        train(
            store,
            tmp_path / "cut",
            checkpoints=StopAfter(tmp_path / "cut" / "checkpoints", step),
            precision=precision,
            checkpoint_seconds=0.0,
        )
    assert same_weights(whole, train(store, tmp_path / "cut", precision=precision))


def test_it_learns_to_reconstruct_frames_it_has_not_seen(store, tmp_path):
    train(store, tmp_path, steps=80, batch_size=8, evaluate_every=5, learning_rate=1e-3)
    rows = read_metrics(tmp_path / "metrics" / "metrics.jsonl")
    errors = [row["held_out_reconstruction"] for row in rows if "held_out_reconstruction" in row]
    assert errors[-1] < 0.5 * errors[0]
    assert rows[-1]["held_out_kl"] > 1.0
    assert 1 <= rows[-1]["held_out_active_dimensions"] <= 4


def test_another_seed_gives_other_weights(store, tmp_path):
    one, other = (train(store, tmp_path / str(seed), seed=seed, steps=1) for seed in (0, 1))
    assert not same_weights(one, other)


def test_free_bits_leave_small_divergences_alone(store, tmp_path):
    free = train(store, tmp_path / "free", steps=3, free_bits=1000.0)
    assert same_weights(free, train(store, tmp_path / "none", steps=3, beta=0.0))
    assert not same_weights(free, train(store, tmp_path / "all", steps=3))


def test_beta_weighs_the_divergence(store, tmp_path):
    kl = {}
    for beta in (0.0, 100.0):
        train(store, tmp_path / str(beta), steps=12, learning_rate=1e-3, beta=beta)
        kl[beta] = read_metrics(tmp_path / str(beta) / "metrics" / "metrics.jsonl")[-1]["held_out_kl"]
    assert kl[100.0] < 0.1 * kl[0.0]


def test_it_goes_on_from_given_weights(store, tmp_path):
    init = VAE(4)
    trained = train(store, tmp_path / "on", steps=1, learning_rate=1e-12, init=init)
    for ours, theirs in zip(trained.parameters(), init.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert trained is not init
    with pytest.raises(ValueError, match=r"init must have vision\.latent = 4"):
        train(store, tmp_path / "other", init=VAE(5))
    with pytest.raises(RunMismatchError):
        train(store, tmp_path / "on", steps=1, learning_rate=1e-12, init=VAE(4))


def test_one_episode_is_not_enough(tmp_path):
    shades(tmp_path / "rollouts", episodes=1)
    with pytest.raises(ValueError, match="at least two episodes"):
        train(RolloutStore.open(tmp_path / "rollouts"), tmp_path)


def test_checkpoints_of_other_random_numbers_are_refused(store, tmp_path, monkeypatch):
    train(store, tmp_path)
    monkeypatch.setattr(vision_training, "RNG_VERSION", 2)
    with pytest.raises(RunMismatchError, match=r"belong to a vision training .* or with another version of the random"):
        train(store, tmp_path)
