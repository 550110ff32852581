"""V: the convolutional variational autoencoder of Ha & Schmidhuber 2018, appendix A.1."""

from __future__ import annotations

import math
import os
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_engine.checks import check_int, check_tensor
from wm_engine.envs.frames import FRAME_SHAPE
from wm_engine.errors import CorruptFileError
from wm_engine.runs import load_tensors, save_tensors

# 64x64 shrinks to 2x2 in four convolutions, and grows from 1x1 to 64x64 in four transposed ones.
_ENCODER_CHANNELS = (3, 32, 64, 128, 256)
_DECODER_CHANNELS = (1024, 128, 64, 32, 3)
_DECODER_KERNELS = (5, 5, 6, 6)
_ENCODED = 256 * 2 * 2


class VAE(nn.Module):
    """Frames to latents and back.

    Encoder: four convolutions, kernel 4, stride 2, with 32, 64, 128 and 256 channels and ReLU, then two dense layers to
    mu and logvar. Decoder: dense to 1024, transposed convolutions of stride 2 with kernels 5, 5, 6, 6 and 128, 64, 32,
    3 channels, ReLU between them, and a sigmoid.

    Parameters
    ----------
    latent : Z
    """

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
        hidden = self.expand(z).unflatten(1, (-1, 1, 1)).contiguous(memory_format=torch.channels_last)
        *inner, last = self.decoder
        for layer in inner:
            hidden = F.relu(layer(hidden))
        return torch.sigmoid(last(hidden).float()).permute(0, 2, 3, 1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and size as safetensors, atomically."""
        save_tensors(path, self.state_dict(), {"kind": "VAE", "latent": str(self.latent)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> VAE:
        """Read back what :meth:`save` wrote. CorruptFileError where the file holds something else."""
        tensors, metadata = load_tensors(path)
        try:
            model = cls(int(metadata["latent"]))
            model.load_state_dict(tensors)
        except (KeyError, ValueError, RuntimeError) as error:
            raise CorruptFileError(f"{path}: not a VAE of this project ({error}).") from error
        return model
