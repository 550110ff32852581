"""M over a grid of codes: of every cell, which code comes next, as one choice among them all.

For the VQ-VAE without a projection (``vision.projection = 0``), whose latents are the numbers of 64 codes. The step is
made of convolutions over the grid, so that what is learnt of one cell holds for all; there is no hidden state, so what
one picture does not show (a speed) this M cannot know. Dreamt in torch.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from wm_engine.checks import check_int
from wm_engine.data.sequences import SequenceBatch
from wm_engine.errors import ConfigError, WMEngineError
from wm_engine.models.base import Imagined, MemorySettings, Scalars, WorldModel, WorldState
from wm_engine.spaces import Spaces


class CategoricalSettings(MemorySettings):
    """Settings of the categorical M, beside those of every kind of world model."""

    kind: Literal["categorical"] = "categorical"
    codes: int = Field(512, ge=2, description="as many as vision.codes")
    width: int = Field(32, ge=1, description="channels of the convolutions")
    latent_weight: float = Field(1.0, ge=0.0, description="of the codes' cross entropy, in nats a cell")
    reward_weight: float = Field(1.0, ge=0.0, description="of the reward's squared error; 0.1 in other people's models")
    end_weight: float = Field(1.0, ge=0.0, description="of the end's cross entropy; 0.1 in other people's models")


class CategoricalWorld(WorldModel):
    """Predicts every cell's next code, the reward and the end from (codes, action).

    Parameters
    ----------
    latent : Z, cells of a square grid, whose latents are the codes' numbers; action : A
    codes : how many there are; width : channels

    Features: "z" is one learned number a cell [B, Z], the code's, not the code's arbitrary place in the book.
    """

    Settings = CategoricalSettings
    SIZES: ClassVar[dict[str, type]] = {"latent": int, "action": int, "codes": int, "width": int}

    def __init__(self, latent: int, action: int, codes: int = 512, width: int = 32) -> None:
        super().__init__()
        self.latent, self.action = check_int("latent", latent, least=1), check_int("action", action, least=1)
        self.codes, self.width = check_int("codes", codes, least=2), check_int("width", width, least=1)
        self.side = math.isqrt(latent)
        if self.side**2 != latent:
            raise ValueError(f"latent must be the cells of a square grid, but was {latent}")
        self.hidden, self.blocks = 0, math.ceil(latent / 4)
        self.embed = nn.Embedding(codes, width)
        self.summary = nn.Linear(width, 1)
        self.mix = nn.Conv2d(width + 1 + action, width, 3, padding=1)
        self.refine = nn.Conv2d(width, width, 3, padding=1)
        self.next_code = nn.Linear(width, codes)
        self.outcome = nn.Linear(2 * width, 2)
        self._reward_center, self._reward_scale = 0.0, 1.0
        with torch.no_grad():  # zeros say the center, in whatever units rewards will be learnt
            self.outcome.weight[0] = 0.0
            self.outcome.bias[0] = 0.0

    @classmethod
    def build(cls, latent: int, spaces: Spaces, settings: Any) -> CategoricalWorld:
        try:
            return cls(latent, spaces.actions.size, settings.codes, settings.width)
        except ValueError as error:
            raise ConfigError(
                f"memory.kind: a categorical M takes a grid of codes ({error}). Set vision.projection = 0."
            ) from None

    def initial(self, batch: int) -> tuple[Tensor, Tensor]:
        return self.outcome.bias.new_zeros(batch, 0), self.outcome.bias.new_zeros(batch, 0)

    def observe(self, z: Tensor, action: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return state

    def tokens(self, z: Tensor) -> Tensor:
        """Latents [..., Z] as the numbers of codes, int64; WMEngineError for more codes than this M knows."""
        tokens = z.round().long()
        if bool((tokens < 0).any() | (tokens >= self.codes).any()):
            raise WMEngineError(
                f"memory.codes: V gives latents from {float(z.min()):g} to {float(z.max()):g}, but this M knows codes "
                f"0 to {self.codes - 1}. Set memory.codes to vision.codes, and vision.projection to 0."
            )
        return tokens

    def step(self, z: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From latents [B, Z] and actions [B, A]: logits of the next codes [B, Z, codes], the reward in the units in
        which it is learnt [B], the end's logit [B]."""
        words = self.embed(self.tokens(z))
        seen = torch.cat([words, self.summary(words)], dim=-1).transpose(1, 2).unflatten(2, (self.side, self.side))
        done = action[:, :, None, None].expand(-1, -1, self.side, self.side)
        hidden = F.relu(self.mix(torch.cat([seen, done], dim=1)))
        hidden = F.relu(self.refine(hidden)).flatten(2)
        reward, end = self.outcome(torch.cat([hidden.amax(-1), hidden.mean(-1)], dim=-1)).unbind(-1)
        return self.next_code(hidden.transpose(1, 2)), reward, end

    def features(self, state: WorldState, names: str) -> Tensor:
        if names != "z":
            raise ConfigError(f"controller.features: a categorical M has no hidden state, but {names!r} was asked for")
        return self.summary(self.embed(self.tokens(state.z))).squeeze(-1)

    def imagine(self, state: WorldState, action: Tensor, words: Tensor, temperature: float) -> Imagined:
        """Dream a step: cell d takes the code that word d mod 4 of block d // 4 chooses, the smallest k with
        cumsum(softmax(logits / temperature))_k >= u; the most likely one at temperature 0."""
        logits, reward, end = self.step(state.z, action)
        if temperature == 0.0:
            chosen = logits.argmax(-1)
        else:
            u = ((words >> 9).to(logits.dtype) + 0.5) * 2.0**-23
            u = u.flatten(-2)[:, : self.latent].unsqueeze(-1)
            below = (torch.softmax(logits / temperature, -1).cumsum(-1) < u).sum(-1)
            chosen = below.clamp(max=self.codes - 1)
        return Imagined(WorldState(chosen.to(state.z.dtype), state.h, state.c), self._in_units(reward), end)

    def predict(self, batch: SequenceBatch, z: Tensor) -> dict[str, Tensor]:
        nll, reward, end = self._said(batch, z)
        return {"nll": nll, "reward": self._in_units(reward), "done": end}

    def _said(self, batch: SequenceBatch, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Nats a cell of the next codes, the reward in its learnt units and the end's logit, [T, B] each."""
        steps, lanes = batch.rewards.shape
        # What stands beyond a window's end is no code at all.
        nothing = torch.zeros_like(batch.live[:1])
        recorded = torch.cat([batch.live, nothing]) | torch.cat([nothing, batch.live])
        z = z.where(recorded.unsqueeze(-1), 0.0)
        logits, reward, end = self.step(z[:-1].flatten(0, 1), batch.actions.flatten(0, 1))
        nll = F.cross_entropy(logits.transpose(1, 2), self.tokens(z[1:]).flatten(0, 1), reduction="none").mean(-1)
        return nll.view(steps, lanes), reward.view(steps, lanes), end.view(steps, lanes)

    def loss(self, batch: SequenceBatch, generator: torch.Generator, settings: Any) -> tuple[Tensor, Scalars]:
        """Return the weighted sum of the three losses over live steps, and each by itself."""
        nll, reward, end = self._said(batch, batch.sample(generator))
        live, target = batch.live, (batch.rewards - self._reward_center) / self._reward_scale
        codes = nll[live].mean()
        error = (reward - target)[live].square().mean()
        ends = F.binary_cross_entropy_with_logits(end[live], batch.ends[live])
        value = settings.latent_weight * codes + settings.reward_weight * error + settings.end_weight * ends
        return value, {"nll_per_dimension": codes, "reward_error": error, "end_loss": ends}

    def _in_units(self, reward: Tensor) -> Tensor:
        return reward * self._reward_scale + self._reward_center

    @torch.no_grad()
    def scale_rewards(self, center: float, scale: float) -> None:
        """See :meth:`WorldModel.scale_rewards`; a row of zeros has learnt nothing yet, and says the new center."""
        weight, bias = self.outcome.weight, self.outcome.bias
        if bool(weight[0].any()) or bool(bias[0]):
            weight[0] *= self._reward_scale / scale
            bias[0] = (bias[0] * self._reward_scale + self._reward_center - center) / scale
        self._reward_center, self._reward_scale = center, scale

    def reward_units(self) -> tuple[float, float]:
        return self._reward_center, self._reward_scale

    def set_reward_units(self, center: float, scale: float) -> None:
        self._reward_center, self._reward_scale = center, scale

    def finished(self) -> WorldModel:
        """Return a copy whose rewards are in the task's units."""
        copied = super().finished()
        assert isinstance(copied, CategoricalWorld)
        with torch.no_grad():
            copied.outcome.weight[0] *= self._reward_scale
            copied.outcome.bias[0] = copied.outcome.bias[0] * self._reward_scale + self._reward_center
        copied.set_reward_units(0.0, 1.0)
        return copied


world_model = CategoricalWorld
