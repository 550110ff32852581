"""The toy world model: the next latent, the reward and the end are linear in (z, action); it has no hidden state."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_engine.data.sequences import SequenceBatch
from wm_engine.models.base import Imagined, MemorySettings, WorldModel, WorldState
from wm_engine.spaces import Spaces


class LinearSettings(MemorySettings):
    """What the toy is told: which kind it is."""

    kind: Literal["toys.world_model"] = "toys.world_model"


class LinearWorld(WorldModel):
    """z' = z + W·[z, a, 1] with noise of a fixed width; reward and end are linear in [z', a]."""

    Settings = LinearSettings
    SIZES: ClassVar[dict[str, type]] = {"latent": int, "action": int}

    def __init__(self, latent: int, action: int) -> None:
        super().__init__()
        self.latent, self.action, self.hidden, self.blocks = latent, action, 0, 1
        self.change = nn.Linear(latent + action, latent)
        self.outcome = nn.Linear(latent + action, 2)
        for layer in (self.change, self.outcome):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @classmethod
    def build(cls, latent: int, spaces: Spaces, settings: Any) -> LinearWorld:
        return cls(latent, spaces.actions.size)

    def initial(self, batch: int) -> tuple[Tensor, Tensor]:
        return self.change.weight.new_zeros(batch, 0), self.change.weight.new_zeros(batch, 0)

    def observe(self, z: Tensor, action: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return state

    def _step(self, z: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        after = z + self.change(torch.cat([z, action], dim=-1))
        reward, done = self.outcome(torch.cat([after, action], dim=-1)).unbind(-1)
        return after, reward, done

    def imagine(self, state: WorldState, action: Tensor, words: Tensor, temperature: float) -> Imagined:
        after, reward, done = self._step(state.z, action)
        # One word makes the noise of all dimensions: a toy.
        noise = ((words[:, 0, :1] >> 9).to(after) + 0.5) * 2.0**-23 - 0.5
        return Imagined(WorldState(after + 0.01 * temperature * noise, state.h, state.c), reward, done)

    def predict(self, batch: SequenceBatch, z: Tensor) -> dict[str, Tensor]:
        after, reward, done = self._step(z[:-1], batch.actions)
        return {"nll": 0.5 * (after - z[1:]).square().mean(-1), "reward": reward, "done": done}

    def loss(self, batch: SequenceBatch, generator: torch.Generator, settings: Any) -> tuple[Tensor, dict[str, Tensor]]:
        said = self.predict(batch, batch.sample(generator))
        live = batch.live
        end = F.binary_cross_entropy_with_logits(said["done"][live], batch.ends[live])
        error = (said["reward"] - batch.rewards)[live].square().mean()
        return said["nll"][live].mean() + error + end, {"reward_error": error, "end_loss": end}


world_model = LinearWorld
