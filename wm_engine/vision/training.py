"""Training of V: the evidence lower bound, frames streamed from the rollout store."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from wm_engine.records import Recorder
from wm_engine.rng import RNG_VERSION
from wm_engine.rollouts import RolloutStore
from wm_engine.runs import Checkpoints, tensors_fingerprint
from wm_engine.training import Loss, TrainingSettings, fit, keyed_generator
from wm_engine.vision.model import VAE

_HELD_OUT_FRAMES = 512
# A dimension that tells less than this about a frame is not in use.
_ACTIVE_NATS = 0.01


class VisionSettings(TrainingSettings):
    """What the training of V is told, beside what every training is."""

    latent: int = Field(32, ge=1, description="Z, dimensions of a latent")
    learning_rate: float = Field(1e-4, gt=0.0, description="Adam's, at the first step")
    clip: float = Field(0.0, ge=0.0, description="the largest norm of the gradient; 0: no bound")
    beta: float = Field(1.0, ge=0.0, description="weight of the KL divergence")
    free_bits: float = Field(
        0.0,
        ge=0.0,
        description="nats a latent dimension, Z times that a frame, below which the divergence costs nothing",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "bf16", description="of the convolutions; weights, loss and Adam's moments stay float32"
    )


def reconstruction_error(decoded: Tensor, frames: Tensor) -> Tensor:
    """Sum over pixels and channels of squared errors, pixels in [0, 1]: float and uint8 [B, 64, 64, 3] to [B]."""
    return (decoded - frames.to(decoded.dtype) / 255.0).square().flatten(1).sum(1)


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) of each dimension in nats: [B, Z] each, to [B, Z]."""
    return 0.5 * (mu.square() + logvar.exp() - 1.0 - logvar)


def train_vision(
    store: RolloutStore,
    settings: VisionSettings,
    seed: int,
    checkpoints: Checkpoints,
    recorder: Recorder,
    iteration: int = 0,
    init: VAE | None = None,
    device: str | torch.device = "cpu",
) -> VAE:
    """Train V on the training episodes of ``store``; resumes from ``checkpoints`` bit for bit.

    The loss of a frame is ``sum of squared pixel errors + beta * max(KL, free_bits * Z)``: the negative evidence lower
    bound under a Gaussian of variance 1/2 a pixel (Ha & Schmidhuber 2018, A.1, speak of an L2 distance; Kingma &
    Welling 2014). ``init``: weights to begin from, those of an earlier round.

    Raises ValueError where ``init`` has another latent size or the store under two episodes, and what
    :func:`wm_engine.training.fit` raises.
    """
    if init is not None and init.latent != settings.latent:
        raise ValueError(f"init must have vision.latent = {settings.latent} dimensions, but had {init.latent}")
    device = torch.device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = VAE(settings.latent)
    if init is not None:
        vae.load_state_dict(init.state_dict())
    vae.to(device)

    training, held_out = store.split(settings.holdout)
    if not held_out:
        raise ValueError(f"store must hold at least two episodes, one to measure on, but held {len(store)}")
    held_out_frames = torch.cat(
        [torch.from_numpy(frames) for frames in _first_frames(store, held_out, settings.batch_size)]
    )[:_HELD_OUT_FRAMES].to(device)

    def loss(step: int, frames: np.ndarray) -> Loss:
        batch = torch.from_numpy(frames).to(device)
        noise = torch.randn(len(batch), settings.latent, generator=keyed_generator(seed, step)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            mu, logvar = vae.encode(batch)
            decoded = vae.decode(mu + torch.exp(0.5 * logvar) * noise)
        error = reconstruction_error(decoded, batch).mean()
        divergence = kl_divergence(mu, logvar).sum(1)
        floor = settings.free_bits * settings.latent
        value = error + settings.beta * divergence.clamp(min=floor).mean()
        return value, {"reconstruction": error, "kl": divergence.mean()}

    fit(
        "vision",
        vae,
        settings,
        identity={
            "seed": seed,
            "rng_version": RNG_VERSION,
            "episodes": [asdict(store.info(index)) for index in range(len(store))],
            "init": None if init is None else tensors_fingerprint(init.state_dict()),
        },
        batches=lambda step: _frames_from(store, training, settings.batch_size, seed, step),
        loss=loss,
        units=len,
        unit="frames",
        evaluate=lambda: measure(vae, held_out_frames, settings.batch_size),
        checkpoints=checkpoints,
        recorder=recorder,
        iteration=iteration,
    )
    return vae


def measure(vae: VAE, frames: Tensor, batch_size: int = 100) -> dict[str, float]:
    """How well V compresses frames uint8 [N, 64, 64, 3], decoded from the posterior's mean.

    ``reconstruction``: squared error summed over pixels; ``pixel_rmse``: root of its mean a channel, of 255; ``kl``:
    nats a frame; ``active_dimensions``: how many latent dimensions carry over 0.01 nats.
    """
    errors, divergences = [], []
    for batch in frames.split(batch_size):
        mu, logvar = vae.encode(batch)
        errors.append(reconstruction_error(vae.decode(mu), batch))
        divergences.append(kl_divergence(mu, logvar))
    error = torch.cat(errors).double().mean().item()
    divergence = torch.cat(divergences).double().mean(0)
    return {
        "reconstruction": error,
        "pixel_rmse": 255.0 * math.sqrt(error / frames[0].numel()),
        "kl": divergence.sum().item(),
        "active_dimensions": float((divergence > _ACTIVE_NATS).sum()),
    }


def _first_frames(store: RolloutStore, episodes: Sequence[int], batch_size: int) -> Iterator[np.ndarray]:
    batches = store.frame_batches(episodes, batch_size, seed=0, epoch=0)
    return itertools.islice(batches, math.ceil(_HELD_OUT_FRAMES / batch_size))


def _frames_from(
    store: RolloutStore, episodes: Sequence[int], batch_size: int, seed: int, step: int
) -> Iterator[np.ndarray]:
    frames = sum(store.info(index).steps + 1 for index in episodes)
    epoch, skip = divmod(step, math.ceil(frames / batch_size))
    while True:
        yield from store.frame_batches(episodes, batch_size, seed=seed, epoch=epoch, skip=skip)
        epoch, skip = epoch + 1, 0
