"""V as a VQ-VAE: pictures as an 8 by 8 grid of code words (van den Oord, Vinyals & Kavukcuoglu 2017).

    64x64x3 ── encoder ──► 8x8x32 ── nearest of 512 codes ──► 8x8 numbers ── decoder ──► 64x64x3
                                              │
                                              └── projection ──► z, at most 64 numbers ──► codes again

M dreams in z. With ``projection`` it is a learned linear map of the code words, so that an MDN-RNN dreams it at full
speed; a small network reads the codes back from it. Without, z is the 64 numbers of the codes themselves, for a
categorical M.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from wm_engine.checks import check_int, check_tensor
from wm_engine.envs.frames import FRAME_SHAPE
from wm_engine.errors import ConfigError, WMEngineError
from wm_engine.models.base import Scalars, Vision, VisionSettings
from wm_engine.spaces import Observations, Pixels

GRID = 8
"""Cells a side of the grid of codes."""
CELLS = GRID * GRID

_DIMENSIONS = 32  # of a code word
_HIDDEN = 256  # of the network that reads codes back from a projection
_LEAST_COUNT = 1e-5
# Numbers of codes are exact in M's hands: their posterior has next to no width.
_EXACT = -30.0
# After so many steps, a book of which one code alone is used is not going to come to life.
_DEAD_AFTER = 200
# A squared distance of 1 from a standardised word, in each of its dimensions, costs a code so many nats.
_SHARPNESS = 8.0 / _DIMENSIONS


class VQVAESettings(VisionSettings):
    """Settings of the VQ-VAE, beside those of every kind of V."""

    kind: Literal["vqvae"] = "vqvae"
    codes: int = Field(512, ge=2, description="code words in the book")
    width: int = Field(64, ge=4, description="channels of the convolutions")
    codec_steps: int = Field(
        300,
        ge=1,
        description="the codes learn in so many first steps and stay as they are from then on; the projection learns "
        "in those that follow, and in no others: what z means must hold still",
    )
    projection: int = Field(
        64, ge=0, le=64, description="Z, numbers that the codes are projected to; 0: the codes' own numbers, 64 of them"
    )
    projection_noise: float = Field(
        0.1, gt=0.0, description="standard deviation of V's posterior around a projection, whose entries are about 1"
    )
    commitment: float = Field(0.25, ge=0.0, description="beta, the weight of the encoder's distance from its code")
    decay: float = Field(0.99, gt=0.0, lt=1.0, description="of the moving averages that the code words are")
    least_usage: float = Field(
        0.5, ge=0.0, description="a code used less often a batch moves to where the book is coarse; 0: none does"
    )
    coarse: float = Field(
        0.05, ge=0.0, description="the book is coarse where a word is so many times the variance away from its vector"
    )


class VQVAE(Vision):
    """Frames to codes and back.

    Encoder: convolutions of kernel and stride 4, then 2, a residual block, and 32 channels. Every code sees the 8 by 8
    pixels of its own cell and no others: were a code to see its neighbours, each neighbourhood would want codes of its
    own (80 to 400 in place of 5 in GridWorld). Decoder: the same backwards, its residual block of kernel 3.

    Parameters
    ----------
    codes : how many code words; width : channels; projection : Z, or 0 for the codes' own numbers
    noise : standard deviation of the posterior around a projection

    State dict, beside the networks': ``book [codes, 32]``, the code words; ``usage [codes]`` and ``sums [codes, 32]``,
    moving averages of how often a batch used each and of what it was used for; ``steps``, batches learnt so far.
    """

    Settings = VQVAESettings
    SIZES: ClassVar[dict[str, type]] = {"codes": int, "width": int, "projection": int, "noise": float}
    book: Tensor
    usage: Tensor
    sums: Tensor
    steps: Tensor

    def __init__(self, codes: int = 512, width: int = 64, projection: int = 64, noise: float = 0.1) -> None:
        super().__init__()
        self.codes, self.width = check_int("codes", codes, least=2), check_int("width", width, least=4)
        self.projection, self.noise = check_int("projection", projection, least=0), noise
        self.latent = projection or CELLS
        half = width // 2
        self.encoder = nn.Sequential(
            nn.Conv2d(3, half, 4, stride=4), nn.ReLU(), nn.Conv2d(half, width, 2, stride=2), _Residual(width, 1),
            nn.ReLU(), nn.Conv2d(width, _DIMENSIONS, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(_DIMENSIONS, width, 1), _Residual(width, 3), nn.ReLU(),
            nn.ConvTranspose2d(width, half, 2, stride=2), nn.ReLU(), nn.ConvTranspose2d(half, 3, 4, stride=4),
        )  # fmt: skip
        if projection:
            self.project = nn.Linear(CELLS * _DIMENSIONS, projection)
            self.read = nn.Sequential(
                nn.Linear(projection, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, CELLS * _DIMENSIONS)
            )
        self.register_buffer("book", torch.randn(codes, _DIMENSIONS) / math.sqrt(_DIMENSIONS))
        self.register_buffer("usage", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, _DIMENSIONS))
        self.register_buffer("steps", torch.zeros(1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def build(cls, observations: Observations, settings: Any) -> VQVAE:
        if observations != Pixels(FRAME_SHAPE):
            raise ConfigError(
                f"vision.kind: a vqvae sees pictures {list(FRAME_SHAPE)}, but the task shows {observations}. "
                'Set vision.kind = "identity" for vectors.'
            )
        return cls(settings.codes, settings.width, settings.projection, settings.projection_noise)

    def embed(self, frames: Tensor) -> Tensor:
        """Encode uint8 [B, 64, 64, 3] to vectors float32 [B, 64, 32], one a cell, before they are quantised."""
        check_frames(frames)
        hidden = self.encoder(frames.permute(0, 3, 1, 2).to(self.book.dtype) / 255.0)
        return hidden.permute(0, 2, 3, 1).flatten(1, 2)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the number of each vector's nearest code, the first of equals: [..., 32] to int64 [...]."""
        return (self.book.square().sum(1) - 2.0 * (vectors @ self.book.T)).argmin(-1)

    def tokens(self, frames: Tensor) -> Tensor:
        """Encode frames to the codes' numbers, int64 [B, 64], row by row."""
        return self.nearest(self.embed(frames))

    def encode(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Vision.encode`: a projection with ``noise`` around it, or the codes' numbers."""
        tokens = self.tokens(observations)
        if not self.projection:
            return tokens.float(), torch.full(tokens.shape, _EXACT, device=tokens.device)
        z = self._projected(self._standard_book()[tokens])
        return z, torch.full_like(z, 2.0 * math.log(self.noise))

    def _standard_book(self) -> Tensor:
        """The code words, of mean 0 and variance 1 over what they are used for, whatever scale V has chosen."""
        weights = (self.usage / self.usage.sum().clamp(min=_LEAST_COUNT)).unsqueeze(1)
        centred = self.book - (weights * self.book).sum(0)
        return centred / (weights * centred.square()).sum(0).mean().sqrt().clamp(min=_LEAST_COUNT)

    def _projected(self, words: Tensor) -> Tensor:
        """Project standardised code words [B, 64, 32] to z [B, Z]: of mean 0 and variance 1 over its entries, so that
        M's likelihoods and the noise mean the same whatever V has learnt."""
        return F.layer_norm(self.project(words.flatten(1)), (self.projection,))

    def tokens_of(self, z: Tensor) -> Tensor:
        """Read the codes' numbers int64 [B, 64] back from latents [B, Z]."""
        check_tensor("z", z, ["B", self.latent], finite=False)
        if not self.projection:
            return z.round().long().clamp(0, self.codes - 1)
        return self._logits(z, self._standard_book()).argmax(-1)

    def _logits(self, z: Tensor, book: Tensor) -> Tensor:
        """Weigh which code stands in each cell: z [B, Z] to logits [B, 64, codes], less the greater the distance."""
        found = self.read(z).unflatten(1, (CELLS, _DIMENSIONS))
        # -|found - word|^2 / 2, less what all words share.
        return _SHARPNESS * (found @ book.T - 0.5 * book.square().sum(1))

    def decode(self, z: Tensor) -> Tensor:
        return self.paint(self.book[self.tokens_of(z)])

    def paint(self, words: Tensor) -> Tensor:
        """Decode code words [B, 64, 32] to frames float32 [B, 64, 64, 3] in [0, 1]."""
        grid = words.unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)
        return torch.sigmoid(self.decoder(grid)).permute(0, 2, 3, 1)

    def loss(self, observations: Tensor, generator: torch.Generator, settings: Any) -> tuple[Tensor, Scalars]:
        """Return the loss of frames, and named parts of it: of the codes at first, later of the projection alone.

        The codes': the mean squared error over the pictures' variance, and ``commitment`` times the encoder's squared
        distance from its codes (van den Oord et al. 2017, eq. 3). Gradients pass the codes straight through. The code
        words are moving averages of what they stand for (appendix A.1), so they have no term here; in training they
        are brought up to date as well. The projection's: the cross entropy, in nats a cell, of the codes read back from
        z with the posterior's noise.
        """
        learns_codes = bool(self.steps < settings.codec_steps) or not self.projection
        value, scalars = (self._codes_loss if learns_codes else self._projection_loss)(
            observations, generator, settings
        )
        if self.training:
            self.steps += 1
            self._check_alive(scalars["perplexity"])
        return value, scalars

    def _codes_loss(self, observations: Tensor, generator: torch.Generator, settings: Any) -> tuple[Tensor, Scalars]:
        vectors = self.embed(observations)
        tokens = self.nearest(vectors.detach())
        words = self.book[tokens]
        frames = observations.to(self.book.dtype) / 255.0
        painted = self.paint(vectors + (words - vectors).detach())
        error = (painted - frames).square().mean()
        commitment = (vectors - words).square().mean()
        value = error / frames.var().clamp(min=1e-4) + settings.commitment * commitment
        if self.training and bool(self.steps < settings.codec_steps):
            self.learn_book(vectors.detach().flatten(0, 1), tokens.flatten(), generator, settings)
        return value, {"mse": error, "commitment": commitment, "perplexity": perplexity(self._counts(tokens))}

    def _projection_loss(
        self, observations: Tensor, generator: torch.Generator, settings: Any
    ) -> tuple[Tensor, Scalars]:
        with torch.no_grad():
            tokens, book = self.tokens(observations), self._standard_book()
        z = self._projected(book[tokens])
        noise = torch.randn(z.shape, generator=generator).to(z.device)
        nats = F.cross_entropy(self._logits(z + self.noise * noise, book).flatten(0, 1), tokens.flatten())
        return nats, {"code_nats": nats, "perplexity": perplexity(self._counts(tokens))}

    @torch.no_grad()
    def learn_book(self, vectors: Tensor, tokens: Tensor, generator: torch.Generator, settings: Any) -> None:
        """Move the code words towards the vectors [N, 32] that they stand for, and bring dead ones back.

        A word is the moving average of its vectors over that of how often it is used. One that is used less than
        ``least_usage`` times a batch takes the place of a vector of this batch, drawn by squared distance from its
        present word, as k-means++ seeds its centres (Arthur & Vassilvitskii 2007), among those that are at least
        ``coarse`` times the vectors' variance away: so it goes where the book is coarse, and splits nothing that one
        word tells well, which would give one thing several names.
        """
        counts = self._counts(tokens)
        sums = torch.zeros_like(self.sums).index_add_(0, tokens, vectors)
        self.usage.lerp_(counts, 1.0 - settings.decay)
        self.sums.lerp_(sums, 1.0 - settings.decay)
        # Laplace smoothing, as in the peers: a code that is hardly used does not blow up.
        total = self.usage.sum()
        smoothed = (self.usage + _LEAST_COUNT) / (total + self.codes * _LEAST_COUNT) * total
        self.book.copy_(self.sums / smoothed.unsqueeze(1))
        dead = torch.nonzero(self.usage < settings.least_usage).squeeze(1)
        far = (vectors - self.book[tokens]).square().sum(1).double()
        far = far.where(far > settings.coarse * vectors.double().var(0).sum(), 0.0).cpu()
        if len(dead) and float(far.sum()) > 0.0:
            there = torch.multinomial(far, len(dead), replacement=True, generator=generator).to(vectors.device)
            self.book[dead] = vectors[there]
            self.usage[dead] = max(1.0, settings.least_usage)
            self.sums[dead] = self.book[dead] * self.usage[dead].unsqueeze(1)

    def _counts(self, tokens: Tensor) -> Tensor:
        return torch.bincount(tokens.flatten(), minlength=self.codes).to(self.usage.dtype)

    def _check_alive(self, perplexity: Tensor) -> None:
        if float(self.steps) >= _DEAD_AFTER and float(perplexity) < 1.0 + 1e-3:
            raise WMEngineError(
                f"vision: the code book is dead: after {int(self.steps)} steps one code of {self.codes} stands for "
                "every cell of every picture. Lower vision.learning_rate or vision.commitment, raise "
                "vision.least_usage, and begin again."
            )

    def measure(self, observations: Tensor) -> dict[str, float]:
        """Return of frames [B, 64, 64, 3], as M's dreams are decoded (through z, without noise):

        ``error``, the squared error of a frame; ``mse``, that of a pixel and channel in [0, 1]; ``codes_right``, the
        share of cells whose code z still tells; ``codes_used`` and ``perplexity``, how many codes are used, all alike
        or weighed by how often: the exponential of their entropy.
        """
        tokens = torch.cat([self.tokens(part) for part in observations.split(256)])
        read, errors = [], []
        for part in observations.split(256):
            z, _ = self.encode(part)
            read.append(self.tokens_of(z))
            errors.append((self.decode(z) - part.float() / 255.0).square().flatten(1).sum(1))
        error = torch.cat(errors).double().mean().item()
        counts = self._counts(tokens)
        return {
            "error": error,
            "mse": error / math.prod(FRAME_SHAPE),
            "codes_right": (torch.cat(read) == tokens).double().mean().item(),
            "codes_used": float((counts > 0).sum()),
            "perplexity": perplexity(counts).item(),
        }


class _Residual(nn.Module):
    """x + what two convolutions make of it, the first of the given kernel, over half the channels."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width // 2, kernel, padding=kernel // 2), nn.ReLU(),
            nn.Conv2d(width // 2, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.layers(x)
        return added


def perplexity(counts: Tensor) -> Tensor:
    """Return the exponential of the entropy of counts [codes]: how many codes, were all used alike; 1 for one."""
    shares = counts / counts.sum()
    return torch.exp(-torch.xlogy(shares, shares).sum())


def check_frames(frames: Tensor) -> None:
    """TypeError or ValueError for anything but uint8 [B, 64, 64, 3]."""
    if not isinstance(frames, Tensor) or frames.dtype != torch.uint8:
        kind = frames.dtype if isinstance(frames, Tensor) else type(frames).__name__
        raise TypeError(f"frames must be a uint8 tensor of shape [B, 64, 64, 3], but was {kind}")
    if frames.dim() != 4 or tuple(frames.shape[1:]) != FRAME_SHAPE:
        raise ValueError(f"frames must have shape [B, 64, 64, 3], but had {list(frames.shape)}")


vision = VQVAE
