"""V as ctallec/world-models has it: the VAE of the paper, with a ReLU after the decoder's dense layer too."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from wm_engine.models.vae import VAE, VAESettings


class ReluVAESettings(VAESettings):
    """Settings of this VAE: those of the paper's."""

    kind: Literal["vae_relu"] = "vae_relu"  # type: ignore[assignment]


class ReluVAE(VAE):
    """The paper's VAE whose decoder begins with ``ReLU(dense(z))``, where the paper's has no activation there."""

    Settings = ReluVAESettings  # type: ignore[assignment]

    def grown(self, z: Tensor) -> Tensor:
        return F.relu(super().grown(z))


vision = ReluVAE
