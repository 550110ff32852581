"""A dream that is played: one step after the other, by whoever is at the wheel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wm_engine.dream.imagination import world_state
from wm_engine.dream.types import Starts
from wm_engine.models.base import Vision, WorldModel
from wm_engine.policies.base import Policy
from wm_engine.report.pictures import as_seen
from wm_engine.rng import StepWords
from wm_engine.spaces import Pixels, Spaces


@dataclass(frozen=True)
class DreamtStep:
    """What came of a step.

    action : float32 [A], as it was taken
    observations : [n, ...], what V decodes on the way to the next state: n - 1 points of the straight line between the
        two latents, and the state itself; uint8 pictures, or vectors
    reward : of the step; end : probability of the episode's end after it
    ended : M ends the episode (its logit is over 0); failed : a number was not finite, which ends it too
    """

    action: np.ndarray
    observations: np.ndarray
    reward: float
    end: float
    ended: bool
    failed: bool


class PlayedDream:
    """One dream in a finished world model, equal to lane 0 of :func:`wm_engine.dream.imagination.imagine`.

    Parameters
    ----------
    start : one state; seed : of the random-number contract
    survival : every step is worth 1, whatever M predicts
    """

    def __init__(
        self, vision: Vision, world: WorldModel, spaces: Spaces, start: Starts, seed: int, survival: bool = False
    ) -> None:
        self._vision, self._world, self._spaces, self._survival = vision, world, spaces, survival
        self._state = world_state(world, start)
        zero = torch.zeros(1, dtype=torch.int64)
        self._words = StepWords(seed, zero, zero, world.blocks)
        self.steps = 0

    @torch.inference_mode()
    def observation(self) -> np.ndarray:
        """Return what V decodes of the present state: [...]."""
        return self._decode(self._world.decode(self._state))[0]

    @torch.inference_mode()
    def chosen_by(self, policy: Policy) -> np.ndarray:
        """Return the action float32 [A] that a policy's lane 0 takes here."""
        features = self._world.features(self._state, policy.features)
        return policy.act(features, torch.zeros(1, dtype=torch.int64)).numpy()[0]

    @torch.inference_mode()
    def step(self, action: np.ndarray, temperature: float, pictures: int = 1) -> DreamtStep:
        """Dream a step under an action float32 [A]; ``pictures``: how many observations to decode on the way."""
        before = self._world.decode(self._state)
        row = torch.from_numpy(np.asarray(action, np.float32))[None]
        imagined = self._world.imagine(self._state, row, self._words.at(self.steps)[0], temperature)
        self._state = imagined.state
        self.steps += 1
        after = self._world.decode(self._state)
        on_the_way = torch.arange(1, pictures + 1)[:, None] / pictures
        reward = 1.0 if self._survival else float(imagined.reward)
        numbers = torch.cat([row.flatten(), after.flatten(), imagined.reward, imagined.done])
        return DreamtStep(
            action=row[0].numpy(),
            observations=self._decode(torch.lerp(before, after, on_the_way)),
            reward=reward,
            end=float(torch.sigmoid(imagined.done)),
            ended=bool(imagined.done > 0),
            failed=not bool(torch.isfinite(numbers).all()),
        )

    def _decode(self, seen: Tensor) -> np.ndarray:
        return as_seen(self._vision.decode(seen), isinstance(self._spaces.observations, Pixels))
