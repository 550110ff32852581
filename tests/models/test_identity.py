"""V where observations are vectors: standardised, and back."""

from __future__ import annotations

import pytest
import torch
from checker import check

from wm_engine.errors import ConfigError
from wm_engine.models.identity import Identity, IdentitySettings
from wm_engine.spaces import Codes, Pixels, Vector


@pytest.fixture
def data():
    return torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.01, 1.0, 500.0]) + 7.0


@pytest.fixture
def fitted(data):
    vision = Identity(3)
    vision.fit(data)
    return vision


def test_what_it_was_fitted_to_has_mean_0_and_deviation_1(fitted, data):
    exact, peer = data.double(), (data - data.mean(0)) / data.std(0, correction=0)
    mu, _ = fitted.encode(data)
    check("latents", mu, (exact - exact.mean(0)) / exact.std(0, correction=0), peer)
    check("mean", mu.double().mean(0), torch.zeros(3), peer.double().mean(0))


def test_decoding_is_encoding_backwards(fitted, data):
    mu, _ = fitted.encode(data)
    check("vectors", fitted.decode(mu), data.double(), (data - fitted.mean) + fitted.mean)


def test_a_dimension_that_never_varies_blows_up_no_rounding_error():
    vision = Identity(2)
    constant = torch.full((50, 2), 3.0)
    vision.fit(constant)
    mu, logvar = vision.encode(torch.nextafter(constant, torch.tensor(4.0)))
    assert torch.isfinite(mu).all()
    assert mu.abs().max() < 1.0
    assert torch.isfinite(logvar).all()


def test_latents_have_a_width_for_ms_likelihood(fitted, data):
    mu, logvar = fitted.encode(data)
    assert mu.shape == logvar.shape
    assert len(logvar.unique()) == 1
    assert 0.0 < float(torch.exp(0.5 * logvar[0, 0])) < 0.1


def test_it_has_nothing_to_learn_and_loses_nothing(fitted, data):
    assert list(fitted.parameters()) == []
    assert not Identity.learns
    assert fitted.measure(data) == {"error": 0.0}
    with pytest.raises(NotImplementedError, match="Identity has nothing to learn"):
        fitted.loss(data, torch.Generator(), IdentitySettings())


def test_it_is_built_for_vectors_alone():
    assert Identity.build(Vector(5), IdentitySettings()).latent == 5
    for space in (Pixels(), Codes((2, 2), 4)):
        with pytest.raises(ConfigError, match=r'vision\.kind: identity takes vectors.* Set vision\.kind = "vae"'):
            Identity.build(space, IdentitySettings())


def test_a_size_of_nothing_is_refused():
    with pytest.raises(ValueError, match="latent must be at least 1"):
        Identity(0)
