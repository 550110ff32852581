"""Kinds of models of a test's own, found as "report.drifting" and "report.drifting_apart"."""

from typing import ClassVar

import torch

from wm_engine.models.base import Imagined, MemorySettings, WorldModel, WorldState


class Drifting(WorldModel):
    """Dreams that every latent grows by 1, that a step pays 2, and, at the third, that the episode ends. No h, no c."""

    Settings = MemorySettings
    SIZES: ClassVar[dict[str, type]] = {"latent": int, "action": int}
    hidden, blocks = 0, 1

    def __init__(self, latent, action):
        super().__init__()
        self.latent, self.action = latent, action
        self.register_buffer("weight", torch.zeros(1))

    @classmethod
    def build(cls, latent, spaces, settings):
        return cls(latent, spaces.actions.size)

    def initial(self, batch):
        return torch.zeros(batch, 0), torch.zeros(batch, 0)

    def observe(self, z, action, state):
        return state

    def imagine(self, state, action, words, temperature):
        z = state.z + 1.0
        ends = z[:, 0] - self.ends_at
        return Imagined(WorldState(z, state.h, state.c), torch.full((len(z),), 2.0), ends)

    ends_at = float("inf")

    def loss(self, batch, generator, settings):
        raise NotImplementedError("it does not learn")

    def predict(self, batch, z):
        raise NotImplementedError("it says nothing")


world_model = Drifting
