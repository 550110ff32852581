"""What a candidate is worth: its returns in the dream, or in the real environment.

Both fitnesses use common random numbers: within a generation all candidates meet the same starts, luck and tracks, so
that their order reflects the candidates; every generation draws fresh ones, so that none can be learnt by heart.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from wm_engine.dream.engine import DreamEngine
from wm_engine.dream.types import Starts
from wm_engine.evolve.protocol import derive_seed

CHOOSE, SCORE = "choose", "score"
"""The two streams of fresh noise after a training: one to choose among the finalists, one to score the choice with."""


class Fitness(Protocol):
    """Returns of a population. ``unit`` names what ``steps``, the work done so far, counts."""

    unit: str
    steps: int

    def __call__(self, params: Tensor, generation: int) -> Tensor:
        """Returns f32 [P, E] of ``params`` f32 [P, D] on the luck of ``generation``; NaN where an episode failed."""
        ...

    def fresh(self, params: Tensor, episodes: int, stream: str) -> Tensor:
        """Returns f32 [P, episodes] on luck that no generation and no other ``stream`` meets."""
        ...


class DreamFitness:
    """Returns in M's dream.

    engine : dreams; its controller gives D
    starts : states that episodes begin from; which of them a generation uses is drawn anew each generation
    episodes, max_steps, temperature, reward, done : as in :meth:`wm_engine.dream.engine.DreamEngine.rollout`
    seed : generation g dreams with ``derive_seed(seed, "dream", g)``
    """

    unit = "dream_steps"

    def __init__(
        self,
        engine: DreamEngine,
        starts: Starts,
        *,
        episodes: int = 16,
        max_steps: int = 1000,
        temperature: float = 1.0,
        reward: str = "predicted",
        done: str = "threshold",
        seed: int = 0,
    ) -> None:
        self._engine, self._starts = engine, starts
        self._episodes, self._max_steps, self._seed = episodes, max_steps, seed
        self._temperature, self._reward, self._done = temperature, reward, done
        self.steps = 0

    def __call__(self, params: Tensor, generation: int) -> Tensor:
        return self._dream(params, self._episodes, derive_seed(self._seed, "dream", generation))

    def fresh(self, params: Tensor, episodes: int, stream: str) -> Tensor:
        return self._dream(params, episodes, derive_seed(self._seed, "dream", stream))

    def _dream(self, params: Tensor, episodes: int, seed: int) -> Tensor:
        output = self._engine.rollout(
            params,
            self._starts_of(episodes, seed),
            episodes=episodes,
            max_steps=self._max_steps,
            temperature=self._temperature,
            seed=seed,
            reward=self._reward,
            done=self._done,
        )
        self.steps += int(output.lengths.sum())
        return output.returns.float().cpu()

    def _starts_of(self, episodes: int, seed: int) -> Starts:
        # Episode e takes starts[e mod N]: without a draw, every generation would see the first E states only.
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self._starts), generator=generator)[:episodes]

        def rows(state: Tensor | None) -> Tensor | None:
            return None if state is None else state[chosen.to(state.device)]

        return Starts(self._starts.z[chosen.to(self._starts.z.device)], rows(self._starts.h), rows(self._starts.c))
