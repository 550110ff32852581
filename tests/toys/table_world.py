"""A toy world model that knows what it has met and nothing else: a table over places and actions, for Z = 1."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_engine.data.sequences import SequenceBatch
from wm_engine.models.base import Imagined, MemorySettings, WorldModel, WorldState
from wm_engine.spaces import Spaces

_PLACES, _WIDTH, _LEAST = 64, 0.5, -4.0
_FEARED = -0.2


class TableSettings(MemorySettings):
    """What the toy is told: which kind it is."""

    kind: Literal["toys.table_world"] = "toys.table_world"


class TableWorld(WorldModel):
    """z' = z + change[place, action]; reward and end stand in the table too. What it never met it fears a little."""

    Settings = TableSettings
    SIZES: ClassVar[dict[str, type]] = {"latent": int, "action": int}

    def __init__(self, latent: int, action: int) -> None:
        super().__init__()
        self.latent, self.action, self.hidden, self.blocks = latent, action, 0, 1
        self.table = nn.Parameter(torch.tensor([0.0, _FEARED, 0.0]).repeat(_PLACES * action, 1))

    @classmethod
    def build(cls, latent: int, spaces: Spaces, settings: Any) -> TableWorld:
        return cls(latent, spaces.actions.size)

    def initial(self, batch: int) -> tuple[Tensor, Tensor]:
        return self.table.new_zeros(batch, 0), self.table.new_zeros(batch, 0)

    def observe(self, z: Tensor, action: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return state

    def _step(self, z: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        place = ((z[..., 0] - _LEAST) / _WIDTH).long().clamp(0, _PLACES - 1)
        change, reward, done = self.table[place * self.action + action.argmax(-1)].unbind(-1)
        return z + change.unsqueeze(-1), reward, done

    def imagine(self, state: WorldState, action: Tensor, words: Tensor, temperature: float) -> Imagined:
        z, reward, done = self._step(state.z, action)
        return Imagined(WorldState(z, state.h, state.c, state.episode), reward, done)

    def predict(self, batch: SequenceBatch, z: Tensor) -> dict[str, Tensor]:
        after, reward, done = self._step(z[:-1], batch.actions)
        return {"nll": 0.5 * (after - z[1:]).square().mean(-1), "reward": reward, "done": done}

    def loss(self, batch: SequenceBatch, generator: torch.Generator, settings: Any) -> tuple[Tensor, dict[str, Tensor]]:
        said, live = self.predict(batch, batch.mu), batch.live
        end = F.binary_cross_entropy_with_logits(said["done"][live], batch.ends[live])
        error = (said["reward"] - batch.rewards)[live].square().mean()
        return said["nll"][live].mean() + error + end, {"reward_error": error, "end_loss": end}


world_model = TableWorld
