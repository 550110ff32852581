"""V: sizes, errors, files."""

from __future__ import annotations

import pytest
import torch

from wm_engine.errors import CorruptFileError
from wm_engine.memory.model import MDNRNN
from wm_engine.vision.model import VAE


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
    torch.testing.assert_close(vae.encode(frames)[0], alone)
    assert not torch.allclose(alone[0], alone[1])


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
