"""V where observations are vectors: nothing is compressed, each dimension is standardised."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from wm_engine.checks import check_int
from wm_engine.errors import ConfigError
from wm_engine.models.base import Vision, VisionSettings
from wm_engine.spaces import Observations, Vector

# A dimension that hardly varies, beside its own size, is left as wide as this share of it: standardised, only rounding
# errors would be seen of it.
_LEAST_SHARE = 1e-4
_LEAST_STD = 1e-6
# M's likelihood needs latents with some width: this is the posterior's standard deviation, in standard units.
_LOG_VARIANCE = -9.0


class IdentitySettings(VisionSettings):
    """Settings of the identity: none of its own."""

    kind: Literal["identity"] = "identity"


class Identity(Vision):
    """Vectors, standardised dimension by dimension: z = (x - mean) / std. ``fit`` sets both from data.

    Parameters
    ----------
    latent : the vectors' length
    """

    Settings = IdentitySettings
    SIZES: ClassVar[dict[str, type]] = {"latent": int}
    learns = False
    mean: Tensor
    std: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = check_int("latent", latent, least=1)
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("std", torch.ones(latent))

    @classmethod
    def build(cls, observations: Observations, settings: Any) -> Identity:
        if not isinstance(observations, Vector):
            raise ConfigError(
                f"vision.kind: identity takes vectors, but the task shows {observations}. "
                'Set vision.kind = "vae" for pictures.'
            )
        return cls(observations.size)

    def fit(self, observations: Tensor) -> None:
        """Set mean and standard deviation to those of vectors [N, size]."""
        exact = observations.double()
        floor = (_LEAST_SHARE * exact.abs().amax(0)).clamp(min=_LEAST_STD)
        self.mean.copy_(exact.mean(0))
        self.std.copy_(torch.maximum(exact.std(0, correction=0), floor))

    def encode(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        z = (observations.float() - self.mean) / self.std
        return z, torch.full_like(z, _LOG_VARIANCE)

    def decode(self, z: Tensor) -> Tensor:
        return z * self.std + self.mean

    def measure(self, observations: Tensor) -> dict[str, float]:
        """Return ``error``: nothing is lost."""
        return {"error": 0.0}


vision = Identity
