"""V: the convolutional variational autoencoder of Ha & Schmidhuber 2018, appendix A.1."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from wm_engine.checks import check_int, check_tensor
from wm_engine.envs.frames import FRAME_SHAPE
from wm_engine.errors import ConfigError
from wm_engine.machine import choose_precision
from wm_engine.models.base import Scalars, Vision, VisionSettings
from wm_engine.spaces import Observations, Pixels

# 64x64 shrinks to 2x2 in four convolutions, and grows from 1x1 to 64x64 in four transposed ones.
_ENCODER_CHANNELS = (3, 32, 64, 128, 256)
_DECODER_CHANNELS = (1024, 128, 64, 32, 3)
_DECODER_KERNELS = (5, 5, 6, 6)
_ENCODED = 256 * 2 * 2


# A dimension that tells less than this about a frame is not in use.
_ACTIVE_NATS = 0.01
_MEASURED_AT_ONCE = 256


class VAESettings(VisionSettings):
    """Settings of the VAE, beside those of every kind of V."""

    kind: Literal["vae"] = "vae"
    latent: int = Field(32, ge=1, description="Z, dimensions of a latent")
    clip: float = Field(0.0, ge=0.0, description="the largest norm of the gradient; 0: no bound")
    beta: float = Field(1.0, ge=0.0, description="weight of the KL divergence")
    free_bits: float = Field(
        0.0,
        ge=0.0,
        description="nats a latent dimension, Z times that a frame, below which the divergence costs nothing",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="of the convolutions; weights, loss and Adam's moments stay float32; auto takes bf16 where the "
        "processor or the GPU has instructions for it",
    )

    def encoding_precision(self) -> str:
        return self.precision


class VAE(Vision):
    """Frames to latents and back.

    Encoder: four convolutions, kernel 4, stride 2, with 32, 64, 128 and 256 channels and ReLU, then two dense layers to
    mu and logvar. Decoder: dense to 1024, transposed convolutions of stride 2 with kernels 5, 5, 6, 6 and 128, 64, 32,
    3 channels, ReLU between them, and a sigmoid.

    Parameters
    ----------
    latent : Z
    """

    Settings = VAESettings
    SIZES: ClassVar[dict[str, type]] = {"latent": int}

    def __init__(self, latent: int = 32) -> None:
        super().__init__()
        self.latent = check_int("latent", latent, least=1)
        self.encoder = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2) for before, after in pairwise(_ENCODER_CHANNELS)
        )
        self.mu = nn.Linear(_ENCODED, latent)
        self.logvar = nn.Linear(_ENCODED, latent)
        self.expand = nn.Linear(latent, _DECODER_CHANNELS[0])
        self.decoder = nn.ModuleList(
            nn.ConvTranspose2d(before, after, kernel, stride=2)
            for (before, after), kernel in zip(pairwise(_DECODER_CHANNELS), _DECODER_KERNELS, strict=True)
        )
        self._initialise()
        # 511 -> 650 training frames/s on 2 cores: frames arrive as NHWC, and oneDNN's kernels like it so.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _initialise(self) -> None:
        """Weights that keep the variance of what passes through them (He et al. 2015), so that learning begins at once.

        Posteriors begin near unit variance and pictures near mid-grey. An output pixel of a transposed convolution of
        stride 2 meets a quarter of its kernel.
        """
        gains = {self.mu: 1.0, self.logvar: 0.1, self.decoder[-1]: 0.5}
        for layer in self.modules():
            if isinstance(layer, nn.ConvTranspose2d):
                fan_in = layer.weight[:, 0].numel() / 4
            elif isinstance(layer, (nn.Conv2d, nn.Linear)):
                fan_in = layer.weight[0].numel()
            else:
                continue
            nn.init.normal_(layer.weight, std=gains.get(layer, math.sqrt(2.0)) / math.sqrt(fan_in))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior of each frame: uint8 [B, 64, 64, 3] to mean and log variance, float32 [B, Z] each."""
        if not isinstance(frames, Tensor) or frames.dtype != torch.uint8:
            kind = frames.dtype if isinstance(frames, Tensor) else type(frames).__name__
            raise TypeError(f"frames must be a uint8 tensor of shape [B, 64, 64, 3], but was {kind}")
        if frames.dim() != 4 or tuple(frames.shape[1:]) != FRAME_SHAPE:
            raise ValueError(f"frames must have shape [B, 64, 64, 3], but had {list(frames.shape)}")
        # The NHWC frames, seen as NCHW, already are channels_last: nothing is moved.
        hidden = frames.permute(0, 3, 1, 2).to(self.mu.weight.dtype) / 255.0
        for layer in self.encoder:
            hidden = F.relu(layer(hidden))
        flat = hidden.flatten(1)
        return self.mu(flat).float(), self.logvar(flat).float()

    def decode(self, z: Tensor) -> Tensor:
        """Latents float [B, Z] to frames float32 [B, 64, 64, 3] in [0, 1]."""
        check_tensor("z", z, ["B", self.latent], finite=False)
        hidden = self.grown(z).unflatten(1, (-1, 1, 1)).contiguous(memory_format=torch.channels_last)
        *inner, last = self.decoder
        for layer in inner:
            hidden = F.relu(layer(hidden))
        return torch.sigmoid(last(hidden).float()).permute(0, 2, 3, 1)

    def grown(self, z: Tensor) -> Tensor:
        """Return what the transposed convolutions begin from, [B, 1024], of latents [B, Z]."""
        grown: Tensor = self.expand(z)
        return grown

    @classmethod
    def build(cls, observations: Observations, settings: Any) -> VAE:
        if observations != Pixels(FRAME_SHAPE):
            raise ConfigError(
                f"vision.kind: a vae sees pictures {list(FRAME_SHAPE)}, but the task shows {observations}. "
                'Set vision.kind = "identity" for vectors.'
            )
        return cls(settings.latent)

    def loss(self, observations: Tensor, generator: torch.Generator, settings: Any) -> tuple[Tensor, Scalars]:
        """Return the negative evidence lower bound of frames, a batch's mean, and its two parts.

        ``sum of squared pixel errors + beta * max(KL, free_bits * Z)``: a Gaussian of variance 1/2 a pixel (Ha &
        Schmidhuber 2018, A.1, speak of an L2 distance; Kingma & Welling 2014).
        """
        device = observations.device
        noise = torch.randn(len(observations), self.latent, generator=generator).to(device)
        low = choose_precision("vision.precision", settings.precision, device) == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            mu, logvar = self.encode(observations)
            decoded = self.decode(mu + torch.exp(0.5 * logvar) * noise)
        error = reconstruction_error(decoded, observations).mean()
        divergence = kl_divergence(mu, logvar).sum(1)
        value = error + settings.beta * divergence.clamp(min=settings.free_bits * self.latent).mean()
        return value, {"reconstruction": error, "kl": divergence.mean()}

    def measure(self, observations: Tensor) -> dict[str, float]:
        """Say how well frames uint8 [N, 64, 64, 3] are compressed, decoded from the posterior's mean.

        ``error``: squared error summed over pixels; ``pixel_rmse``: root of its mean a channel, of 255; ``kl``: nats a
        frame; ``active_dimensions``: how many latent dimensions carry over 0.01 nats.
        """
        errors, divergences = [], []
        for batch in observations.split(_MEASURED_AT_ONCE):
            mu, logvar = self.encode(batch)
            errors.append(reconstruction_error(self.decode(mu), batch))
            divergences.append(kl_divergence(mu, logvar))
        error = torch.cat(errors).double().mean().item()
        divergence = torch.cat(divergences).double().mean(0)
        return {
            "error": error,
            "pixel_rmse": 255.0 * math.sqrt(error / observations[0].numel()),
            "kl": divergence.sum().item(),
            "active_dimensions": float((divergence > _ACTIVE_NATS).sum()),
        }


def reconstruction_error(decoded: Tensor, frames: Tensor) -> Tensor:
    """Sum squared errors over pixels and channels, pixels in [0, 1]: float and uint8 [B, 64, 64, 3] to [B]."""
    return (decoded - frames.to(decoded.dtype) / 255.0).square().flatten(1).sum(1)


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return KL(N(mu, exp(logvar)) || N(0, 1)) of each dimension in nats: [B, Z] each, to [B, Z]."""
    return 0.5 * (mu.square() + logvar.exp() - 1.0 - logvar)


vision = VAE
