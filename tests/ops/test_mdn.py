from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from checker import check
from oracle import Oracle

from wm_engine.ops.mdn import HeadLayout, mdn_nll, mdn_sample

SIZES = [(1, 1), (5, 3), (32, 5)]


def random_head(layout: HeadLayout, batch: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(batch, layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * scale


@pytest.mark.parametrize(("mixture", "size"), [("shared", 5 * (2 * 32 + 1) + 2), ("per_dim", 3 * 32 * 5 + 2)])
def test_head_size(mixture: str, size: int) -> None:
    assert HeadLayout(32, 5, mixture).size == size


def test_layout_of_the_rows() -> None:
    Z, K = 3, 2
    rows = torch.arange(HeadLayout(Z, K, "shared").size, dtype=torch.float64)
    head = HeadLayout(Z, K, "shared").split(rows)
    assert head.logits.tolist() == [[0, 1]]
    assert head.means.T.tolist() == [[2, 3, 4], [5, 6, 7]]
    assert head.log_stds.T.tolist() == [[8, 9, 10], [11, 12, 13]]
    assert (head.reward, head.done) == (14, 15)
    rows = torch.arange(HeadLayout(Z, K, "per_dim").size, dtype=torch.float64)
    head = HeadLayout(Z, K, "per_dim").split(rows)
    assert head.logits.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert head.means.tolist() == [[6, 7], [8, 9], [10, 11]]
    assert head.log_stds.tolist() == [[12, 13], [14, 15], [16, 17]]
    assert (head.reward, head.done) == (18, 19)


def naive_nll(mixture: str, logits: np.ndarray, means: np.ndarray, log_stds: np.ndarray, x: np.ndarray) -> float:
    """The mixture's density, formed in full: means and log_stds [Z, K], logits [C, K]."""
    s = np.exp(np.clip(log_stds, -7, 7))
    density = np.exp(-0.5 * ((x[:, None] - means) / s) ** 2) / (s * math.sqrt(2 * math.pi))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    if mixture == "shared":
        return -math.log((p[0] * density.prod(axis=0)).sum()) / len(x)
    return -np.log((p * density).sum(axis=-1)).mean()


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize(("latent", "mixtures"), SIZES)
def test_nll_is_that_of_the_density(mixture: str, latent: int, mixtures: int) -> None:
    layout = HeadLayout(latent, mixtures, mixture)
    head = layout.split(random_head(layout, 9))
    target = torch.randn(9, latent, dtype=torch.float64)
    got = mdn_nll(head.logits, head.means, head.log_stds, target)
    parts = (head.logits.numpy(), head.means.numpy(), head.log_stds.numpy(), target.numpy())
    want = np.array([naive_nll(mixture, *(part[i] for part in parts)) for i in range(9)])
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-11)


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_nll_survives_densities_beyond_float_range(mixture: str) -> None:
    layout = HeadLayout(32, 5, mixture)
    head = layout.split(random_head(layout, 4, scale=100.0).float())
    value = mdn_nll(head.logits, head.means, head.log_stds, torch.full((4, 32), 1e4))
    assert torch.isfinite(value).all()


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_nll_gradient(mixture: str) -> None:
    layout = HeadLayout(3, 2, mixture)
    raw = random_head(layout, 2).requires_grad_()
    target = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def loss(raw: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        head = layout.split(raw)
        return mdn_nll(head.logits, head.means, head.log_stds, target)

    assert torch.autograd.gradcheck(loss, (raw, target))


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize(("latent", "mixtures"), SIZES)
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.3])
def test_sample_is_the_oracles(mixture: str, latent: int, mixtures: int, temperature: float) -> None:
    layout = HeadLayout(latent, mixtures, mixture)
    oracle = Oracle({}, latent, 1, 1, mixtures, mixture, "z", "tanh")
    raw = random_head(layout, 50, scale=3.0)
    draws = [oracle.draws(5, step, 0, 0) for step in range(50)]
    normals, uniforms = (torch.from_numpy(np.stack([draw[i] for draw in draws])) for i in (0, 1))
    head = layout.split(raw)
    got = mdn_sample(head.logits, head.means, head.log_stds, uniforms, normals, temperature)
    want = np.stack([oracle.sample(raw[i].numpy(), draws[i][0], draws[i][1], temperature) for i in range(50)])
    check("z", got, want, precision="fp64")


@pytest.mark.parametrize("temperature", [1e-40, 1e-30, 1e-6])
def test_a_tiny_temperature_takes_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([[[-3.0, 2.0, 5.0, 4.0]]])
    means = torch.arange(4.0).expand(1, 1, 4)
    half = torch.full((1, 1), 0.5)
    assert mdn_sample(logits, means, torch.zeros_like(means), half, torch.zeros(1, 1), temperature).item() == 2.0


def test_ties_and_the_last_component() -> None:
    means = torch.arange(3.0).expand(1, 1, 3)
    tied = torch.zeros(1, 1, 3)
    zero = torch.zeros(1, 1)
    assert mdn_sample(tied, means, torch.zeros_like(means), zero, zero, 0.0).item() == 0.0
    below = torch.nextafter(torch.tensor([[1 / 3]]), torch.tensor(0.0))
    assert mdn_sample(tied, means, torch.zeros_like(means), below, zero, 1.0).item() == 0.0
    almost_one = torch.full((1, 1), 1 - 2.0**-24)
    assert mdn_sample(tied, means, torch.zeros_like(means), almost_one, zero, 1.0).item() == 2.0


def test_unknown_mixture_is_refused() -> None:
    with pytest.raises(ValueError, match="mixture must be one of 'shared', 'per_dim', but was 'both'"):
        HeadLayout(32, 5, "both")
