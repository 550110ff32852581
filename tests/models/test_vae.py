"""V: sizes, errors, files, the bound, and what it learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from checker import check
from recordings import same_weights, shades
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from wm_engine.errors import ConfigError, CorruptFileError
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.models.trainer import Trainer
from wm_engine.models.vae import VAE, VAESettings, kl_divergence, reconstruction_error
from wm_engine.rng import keyed_generator
from wm_engine.spaces import Codes, Pixels, Vector


def test_the_paper_s_size():
    # Ha & Schmidhuber 2018, table 2.
    assert sum(parameter.numel() for parameter in VAE(32).parameters()) == 4_348_547


@pytest.mark.parametrize(("batch", "latent"), [(1, 1), (3, 32), (5, 7)])
def test_shapes_and_ranges(batch, latent):
    vae = VAE(latent)
    frames = torch.randint(0, 256, (batch, 64, 64, 3), dtype=torch.uint8)
    mu, logvar = vae.encode(frames)
    assert (mu.shape, logvar.shape) == ((batch, latent), (batch, latent))
    assert mu.dtype == logvar.dtype == torch.float32
    decoded = vae.decode(100.0 * mu)
    assert decoded.shape == frames.shape
    assert decoded.dtype == torch.float32
    assert 0.0 <= decoded.min() <= decoded.max() <= 1.0


def test_a_frame_s_latent_does_not_depend_on_its_neighbours():
    vae = VAE(8).double()
    frames = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    alone = torch.cat([vae.encode(frame[None])[0] for frame in frames])
    check("latents", vae.encode(frames)[0], alone, precision="fp64")
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        (torch.zeros(2, 64, 64, 3), TypeError),
        ([[0]], TypeError),
        (torch.zeros(64, 64, 3, dtype=torch.uint8), ValueError),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), ValueError),
    ],
)
def test_frames_of_another_kind_are_refused(frames, error):
    with pytest.raises(error, match="frames must"):
        VAE(4).encode(frames)


def test_latents_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"z must have shape \[B, 4\]"):
        VAE(4).decode(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="latent must be at least 1"):
        VAE(0)


def test_files(tmp_path):
    vae = VAE(5)
    vae.save(tmp_path / "v.safetensors")
    again = VAE.load(tmp_path / "v.safetensors")
    frames = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    assert torch.equal(again.encode(frames)[0], vae.encode(frames)[0])
    MDNRNN(4, 2, 8, 2).save(tmp_path / "m.safetensors")
    with pytest.raises(CorruptFileError, match=r"m\.safetensors: not a VAE"):
        VAE.load(tmp_path / "m.safetensors")


def test_an_untrained_vae_neither_mutes_nor_inflates_what_passes_through():
    torch.manual_seed(0)
    vae = VAE(32)
    mu, logvar = vae.encode(torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8))
    assert 0.1 < mu.std() < 10.0
    assert logvar.abs().max() < 1.0
    pictures = vae.decode(torch.randn(8, 32))
    assert pictures.mean().item() == pytest.approx(0.5, abs=0.1)
    assert 0.01 < pictures.std() < 0.3


SETTINGS = VAESettings(latent=4, precision="fp32")


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Training frames and others, uint8 [N, 64, 64, 3]."""
    store = shades(tmp_path_factory.mktemp("shades"))
    pictures = np.concatenate([store.read(index).observations for index in range(len(store))])
    return torch.from_numpy(pictures[:52]), torch.from_numpy(pictures[52:])


def trained(frames, steps, learning_rate=1e-3, batch_size=8, seed=0, **changes):
    """A V that has learnt from the first of the frames, and how well it knows the others."""
    torch.manual_seed(seed)
    settings, trainer = SETTINGS.model_copy(update=changes), Trainer("vision", VAE(4))
    rng = np.random.default_rng(seed)
    for step in range(steps):
        batch = frames[0][rng.choice(len(frames[0]), batch_size, replace=False)]
        value, _ = trainer.model.loss(batch, keyed_generator(seed, step), settings)
        trainer.step(value, learning_rate, settings.clip)
    with torch.inference_mode():
        return trainer.model, trainer.model.measure(frames[1])


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


@pytest.mark.parametrize(("beta", "free_bits"), [(1.0, 0.0), (3.0, 0.0), (1.0, 0.2), (0.5, 100.0)])
def test_the_loss_is_the_error_and_the_weighed_divergence(beta, free_bits):
    torch.manual_seed(0)
    vae = VAE(4)
    settings = SETTINGS.model_copy(update={"beta": beta, "free_bits": free_bits})
    frames = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8)
    value, scalars = vae.loss(frames, torch.Generator().manual_seed(3), settings)
    noise = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))

    def reading(dtype):
        model = VAE(4).to(dtype)
        model.load_state_dict(vae.state_dict())
        mu, logvar = model.encode(frames)
        mu, logvar = mu.to(dtype), logvar.to(dtype)
        decoded = model.decode(mu + torch.exp(0.5 * logvar) * noise.to(dtype)).to(dtype)
        error = (decoded - frames.to(dtype) / 255.0).square().sum((1, 2, 3)).mean()
        divergence = (0.5 * (mu.square() + logvar.exp() - 1.0 - logvar)).sum(1)
        cost = torch.where(divergence > free_bits * 4, divergence, free_bits * 4)
        return torch.stack([error + beta * cost.mean(), error, divergence.mean()])

    with torch.no_grad():
        exact, peer = reading(torch.float64), reading(torch.float32)
    check("loss", torch.stack([value, scalars["reconstruction"], scalars["kl"]]), exact, peer)


def test_the_loss_follows_from_its_generator():
    vae, frames = VAE(4), torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        one, same, other = (vae.loss(frames, keyed_generator(1, step), SETTINGS)[0] for step in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_low_precision_is_near():
    torch.manual_seed(0)
    vae, frames = VAE(4), torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8)
    low = SETTINGS.model_copy(update={"precision": "bf16"})
    with torch.no_grad():
        exact, rounded = (vae.loss(frames, keyed_generator(0), settings)[0] for settings in (SETTINGS, low))
    assert not torch.equal(exact, rounded)
    check("loss in bf16", rounded, exact, precision="bf16")


def test_it_is_measured_by_its_posteriors_mean():
    torch.manual_seed(0)
    vae, frames = VAE(3), torch.randint(0, 256, (300, 64, 64, 3), dtype=torch.uint8)  # more than a call encodes at once
    with torch.no_grad():
        vae.logvar.bias[1] = -2.0  # two dimensions that tell something, and one that tells nothing
        vae.logvar.bias[2] = 0.0
        vae.logvar.weight[2] = 0.0
        vae.mu.weight[2] = 0.0
        numbers = vae.measure(frames)
        exact = VAE(3).double()
        exact.load_state_dict(vae.state_dict())
        mu, logvar = (part.double() for part in exact.encode(frames))
        error = (exact.decode(mu).double() - frames.double() / 255.0).square().sum((1, 2, 3)).mean()
        kl = (0.5 * (mu.square() + logvar.exp() - 1.0 - logvar)).mean(0)
    want = [error.item(), 255.0 * math.sqrt(error.item() / frames[0].numel()), kl.sum().item()]
    check("measured", np.array([numbers[name] for name in ("error", "pixel_rmse", "kl")]), np.array(want))
    assert (kl[:2] > 0.01).all()
    assert numbers["active_dimensions"] == 2


def test_it_learns_to_reconstruct_frames_it_has_not_seen(frames):
    _, before = trained(frames, 5)
    _, after = trained(frames, 80)
    assert after["error"] < 0.5 * before["error"]
    assert after["kl"] > 1.0
    assert 1 <= after["active_dimensions"] <= 4


def test_free_bits_leave_small_divergences_alone(frames):
    free, none, all_of_it = (trained(frames, 3, **changes)[0] for changes in ({"free_bits": 1e3}, {"beta": 0.0}, {}))
    assert same_weights(free, none)
    assert not same_weights(free, all_of_it)


def test_beta_weighs_the_divergence(frames):
    light, heavy = (trained(frames, 12, beta=beta)[1]["kl"] for beta in (0.0, 100.0))
    assert heavy < 0.1 * light


def test_it_is_built_for_pictures_of_one_size():
    assert VAE.build(Pixels(), SETTINGS).latent == 4
    for space in (Pixels((32, 32, 3)), Vector(5), Codes((2, 2), 4)):
        with pytest.raises(ConfigError, match=r'vision\.kind: a vae sees pictures .* Set vision\.kind = "identity"'):
            VAE.build(space, SETTINGS)
