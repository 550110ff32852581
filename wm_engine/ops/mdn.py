"""The mixture density head (Bishop 1994; Ha & Schmidhuber 2018, section A.2): layout, loss and sampling.

Two mixtures of K diagonal Gaussians over the next latent z [Z]:

- ``shared``: one component choice for the whole vector, ``p(z) = sum_k pi_k prod_d N(z_d; mu_kd, sigma_kd)``;
- ``per_dim``: the paper's, a choice for every dimension, ``p(z) = prod_d sum_k pi_dk N(z_d; mu_dk, sigma_dk)``.

Below, C stands for the choices: 1 where ``shared``, Z where ``per_dim``. The references take any float dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wm_engine.checks import check_choice, check_int

MIXTURES = ("shared", "per_dim")
LOG_STD_LIMIT = 7.0
"""Log standard deviations are clamped to [-7, 7], in training and in sampling alike."""


@dataclass(frozen=True)
class MixtureHead:
    """A head taken apart: logits [..., C, K], means and log_stds [..., Z, K], reward [...], done logit [...]."""

    logits: Tensor
    means: Tensor
    log_stds: Tensor
    reward: Tensor
    done: Tensor


@dataclass(frozen=True)
class HeadLayout:
    """The meaning of each of the head's N outputs.

    ``shared``: K logits, K·Z means (component-major), K·Z log stds, reward, done logit; N = K(2Z+1)+2.
    ``per_dim``: Z·K logits (dimension-major), Z·K means, Z·K log stds, reward, done logit; N = 3ZK+2.
    """

    latent: int
    mixtures: int
    mixture: str

    def __post_init__(self) -> None:
        check_int("latent", self.latent, least=1)
        check_int("mixtures", self.mixtures, least=1)
        check_choice("mixture", self.mixture, MIXTURES)

    @property
    def choices(self) -> int:
        """C: how many components are chosen a step."""
        return 1 if self.mixture == "shared" else self.latent

    @property
    def size(self) -> int:
        """N, the number of the head's outputs."""
        return self.mixtures * (self.choices + 2 * self.latent) + 2

    @property
    def reward_row(self) -> int:
        """The place of the reward among the head's outputs."""
        return self.size - 2

    def split(self, head: Tensor) -> MixtureHead:
        """Take ``head [..., N]`` apart; views, no copies."""
        latent, mixtures = self.latent, self.mixtures
        sizes = [self.choices * mixtures, latent * mixtures, latent * mixtures, 1, 1]
        logits, means, log_stds, reward, done = head.split(sizes, dim=-1)

        def by_dimension(part: Tensor) -> Tensor:
            if self.mixture == "shared":
                return part.unflatten(-1, (mixtures, latent)).transpose(-1, -2)
            return part.unflatten(-1, (latent, mixtures))

        return MixtureHead(
            logits.unflatten(-1, (self.choices, mixtures)),
            by_dimension(means),
            by_dimension(log_stds),
            reward.squeeze(-1),
            done.squeeze(-1),
        )


def mdn_nll(logits: Tensor, means: Tensor, log_stds: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of ``target`` under the mixture, in nats per latent dimension.

    ``-log p(target) / Z`` with ``log p`` from log-softmax and logsumexp, so that no density is ever formed.

    Parameters
    ----------
    logits : [..., C, K]
    means, log_stds : [..., Z, K]; log_stds are clamped to ±LOG_STD_LIMIT
    target : [..., Z]

    Returns
    -------
    [...]
    """
    log_stds = log_stds.clamp(-LOG_STD_LIMIT, LOG_STD_LIMIT)
    standard = (target.unsqueeze(-1) - means) * torch.exp(-log_stds)
    log_density = -0.5 * standard * standard - log_stds - 0.5 * math.log(2.0 * math.pi)
    if logits.shape[-2] != means.shape[-2]:
        log_density = log_density.sum(dim=-2, keepdim=True)
    log_likelihood = torch.logsumexp(torch.log_softmax(logits, dim=-1) + log_density, dim=-1)
    return -log_likelihood.sum(dim=-1) / means.shape[-2]


def mdn_sample(
    logits: Tensor, means: Tensor, log_stds: Tensor, uniforms: Tensor, normals: Tensor, temperature: float
) -> Tensor:
    """A latent drawn from the mixture at a temperature, from given random numbers.

    The component is the smallest k with ``cumsum(softmax(logits / tau))_k >= u`` (K-1 if rounding leaves none), and
    ``z = mu_k + sigma_k * sqrt(tau) * normal``. At tau = 0: the most likely component's mean, the first of equals.

    Parameters
    ----------
    logits : [..., C, K]
    means, log_stds : [..., Z, K]; log_stds are clamped to ±LOG_STD_LIMIT
    uniforms : [..., C] in (0, 1)
    normals : [..., Z]
    temperature : tau >= 0

    Returns
    -------
    z : [..., Z]
    """
    if temperature == 0.0:
        chosen = logits.argmax(dim=-1)
    else:
        # The largest is taken off before the division, not in softmax: logits / tau overflows for a tiny tau.
        tempered = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
        cumulative = torch.softmax(tempered, dim=-1).cumsum(dim=-1)
        chosen = (cumulative < uniforms.unsqueeze(-1)).sum(dim=-1).clamp(max=logits.shape[-1] - 1)
    index = chosen.unsqueeze(-1).expand(*means.shape[:-1], 1)
    mean = means.gather(-1, index).squeeze(-1)
    if temperature == 0.0:
        return mean
    log_std = log_stds.gather(-1, index).squeeze(-1).clamp(-LOG_STD_LIMIT, LOG_STD_LIMIT)
    return mean + torch.exp(log_std) * math.sqrt(temperature) * normals
