"""A world model of one's own, found as "models.drift": it knows the rule of a small world exactly."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from wm_engine.models.base import Imagined, MemorySettings, WorldModel, WorldState
from wm_engine.rng import numbers
from wm_engine.spaces import Spaces


class DriftSettings(MemorySettings):
    """What a Drift is told."""

    kind: Literal["models.drift"] = "models.drift"
    memory: int = 0


class Drift(WorldModel):
    """Position moves by the first action: z' = z + a_0 (+ noise); the reward is ``price`` a_0 + ``bonus``, and the
    episode ends beyond ``wall``. With a memory, h counts steps and c sums first actions.
    """

    Settings = DriftSettings
    SIZES: ClassVar[dict[str, type]] = {"latent": int, "action": int, "hidden": int}

    def __init__(
        self,
        latent: int = 2,
        action: int = 1,
        hidden: int = 0,
        spread: float = 0.0,
        price: float = 1.0,
        bonus: float = 0.0,
        wall: float = 1e9,
    ) -> None:
        super().__init__()
        self.latent, self.action, self.hidden = latent, action, hidden
        self.blocks = 2 * -(-latent // 4) + 1
        names = ("spread", "price", "bonus", "wall")
        for name, value in zip(names, (spread, price, bonus, wall), strict=True):
            self.register_parameter(name, torch.nn.Parameter(torch.tensor(value)))

    @classmethod
    def build(cls, latent: int, spaces: Spaces, settings: Any) -> Drift:
        return cls(latent, spaces.actions.size, settings.memory)

    def initial(self, batch: int) -> tuple[Tensor, Tensor]:
        zeros = self.spread.new_zeros(batch, self.hidden)
        return zeros, zeros.clone()

    def observe(self, z: Tensor, action: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return state[0] + 1.0, state[1] + action[:, :1]

    def imagine(self, state: WorldState, action: Tensor, words: Tensor, temperature: float) -> Imagined:
        normals, _, _ = numbers(words, self.latent, "shared", state.z.dtype)
        z = state.z + action[:, :1] + self.spread * temperature**0.5 * normals
        h, c = self.observe(state.z, action, (state.h, state.c))
        return Imagined(WorldState(z, h, c), self._reward(action), self._done(z))

    def loss(self, batch: Any, generator: torch.Generator, settings: Any) -> tuple[Tensor, dict[str, Tensor]]:
        error = (self._reward(batch.actions) - batch.rewards).square().mean()
        return error, {"reward_error": error}

    def predict(self, batch: Any, z: Tensor) -> dict[str, Tensor]:
        after = z[:-1] + batch.actions[..., :1]
        error = (z[1:] - after).square().mean(-1)
        return {"nll": error, "reward": self._reward(batch.actions), "done": self._done(after)}

    def _reward(self, action: Tensor) -> Tensor:
        return self.price * action[..., 0] + self.bonus

    def _done(self, z: Tensor) -> Tensor:
        return z[..., 0] - self.wall


world_model = Drift
