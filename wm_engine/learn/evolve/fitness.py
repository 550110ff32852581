"""What a candidate is worth: its returns in the dream, or in the real environment.

Both fitnesses use common random numbers: within a generation all candidates meet the same starts, draws and tracks, so
that their order reflects the candidates; every generation draws fresh ones, so that none can be learnt by heart.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from wm_engine.checks import check_int
from wm_engine.dream.types import DreamOutput, Starts
from wm_engine.learn.base import Dreamer, Problem, RealWorld
from wm_engine.learn.evolve.racing import Race, race_rounds
from wm_engine.policies.controller import Controllers, ControllerSpec
from wm_engine.rng import derive_seed, episode_seeds


class Fitness(Protocol):
    """Returns of a population.

    ``unit`` names what ``steps``, the work done so far, counts. ``backend`` computes the returns; another one gives
    other bits. Candidates that are on ``device`` already travel least. A fitness that fills in some returns may have
    ``dreamt``: which of the latest call's it did not, bool [P, E], or None where it filled in none.
    """

    unit: str

    @property
    def steps(self) -> int: ...

    @property
    def backend(self) -> str: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(self, params: Tensor, generation: int) -> Tensor:
        """Return the returns f32 [P, E] of ``params`` f32 [P, D] with the draws of ``generation``; NaN: it failed."""
        ...


class DreamFitness:
    """Returns in M's dream.

    engine : dreams
    starts : states that episodes begin from; which of them a generation uses is drawn anew each generation
    episodes, max_steps, temperature, reward, done : as in :meth:`wm_engine.dream.engine.DreamEngine.rollout`
    seed : generation g dreams with ``derive_seed(seed, "dream", g)``
    race : episodes that all candidates dream before those whose place is clear stop
        (:mod:`wm_engine.learn.evolve.racing`); what they did not dream is filled in. Round r dreams with
        ``derive_seed(seed, "dream", g, "round", r)``. At least 2 and less than ``episodes``; 0: all dream all episodes
    end_reward : added where a dream ends before its last step; an end at the last one is not told from a limit
    """

    unit = "dream_steps"

    def __init__(
        self,
        engine: Dreamer,
        starts: Starts,
        *,
        episodes: int = 16,
        max_steps: int = 1000,
        temperature: float = 1.0,
        reward: str = "predicted",
        done: str = "threshold",
        seed: int = 0,
        race: int = 0,
        end_reward: float = 0.0,
    ) -> None:
        self._rounds = race_rounds(episodes, race) if race else []
        self._engine, self._starts = engine, starts
        self._episodes, self._max_steps, self._seed = episodes, max_steps, seed
        self._temperature, self._reward, self._done, self._end_reward = temperature, reward, done, end_reward
        self.steps = 0
        self.dreamt: Tensor | None = None

    @property
    def backend(self) -> str:
        """The engine's."""
        return self._engine.backend

    @property
    def device(self) -> torch.device:
        """The engine's."""
        return self._engine.device

    def __call__(self, params: Tensor, generation: int) -> Tensor:
        if not self._rounds:
            return self._dream(params, self._episodes, derive_seed(self._seed, "dream", generation))
        race, running = Race(len(params), self._episodes), torch.arange(len(params))
        for number, episodes in enumerate(self._rounds):
            seed = derive_seed(self._seed, "dream", generation, "round", number)
            race.add(running, self._dream(params[running], len(episodes), seed))
            running = race.unclear()
            if not len(running):
                break
        self.dreamt = race.dreamt
        return race.result()

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
        returns = output.returns.float().cpu()
        return returns + self._end_reward * (output.lengths.cpu() < self._max_steps) if self._end_reward else returns

    def _starts_of(self, episodes: int, seed: int) -> Starts:
        # Episode e takes starts[e mod N]: without a draw, every generation would see the first E states only.
        generator = torch.Generator().manual_seed(seed)
        return self._starts[torch.randperm(len(self._starts), generator=generator)[:episodes]]


class ThinnedDreams:
    """Dreams in M with dropout, one mask a dream (Gal & Ghahramani 2016; :meth:`WorldModel.thinned`).

    A call draws ``masks`` masks by its seed and shares its episodes out among them: episode e dreams in mask
    ``e * masks // episodes``, whichever the candidate.

    dreamer : dreams in M without a mask; it lends its backend and its device
    problem : has M, and makes a dreamer of every thinned one
    spec : the controllers' shape
    rate : of the dropout
    """

    def __init__(self, dreamer: Dreamer, problem: Problem, spec: ControllerSpec, rate: float, masks: int) -> None:
        self.backend, self.device = dreamer.backend, dreamer.device
        self._problem, self._spec, self._rate, self._masks = problem, spec, rate, masks

    def rollout(self, params: Tensor, starts: Starts, *, episodes: int, seed: int, **options: Any) -> DreamOutput:
        """See :meth:`wm_engine.dream.engine.DreamEngine.rollout`."""
        parts = []
        every = torch.arange(episodes) % len(starts)
        for number, share in enumerate(every.chunk(min(self._masks, episodes))):
            key = derive_seed(seed, "mask", number)
            world = self._problem.world.thinned(self._rate, torch.Generator().manual_seed(key))
            dreamer = self._problem.dreamer(self._spec, world)
            parts.append(dreamer.rollout(params, starts[share], episodes=len(share), seed=key, **options))
        returns, lengths = (torch.cat([getattr(part, name) for part in parts], 1) for name in ("returns", "lengths"))
        return DreamOutput(returns, lengths, torch.stack([part.failed for part in parts]).any(0))


class RealFitness:
    """Returns in the real environment, on V's and M's features.

    Candidate p's episode e has seed e of the generation, ``episode_seeds(derive_seed(seed, "tracks", g), E)[e]``, the
    same for every candidate.

    real : drives
    spec : the controllers' shape
    episodes, max_frames : E, and where an episode is cut
    patience : end an episode after so many frames in a row without a positive reward; 0: never. A cheaper fitness, not
        the same one: what a stuck car would still lose is not counted, so lost causes look a little better.
    """

    unit = "frames"
    backend = "real"
    device = torch.device("cpu")

    def __init__(
        self,
        real: RealWorld,
        spec: ControllerSpec,
        *,
        episodes: int = 1,
        max_frames: int = 1000,
        patience: int = 0,
        seed: int = 0,
    ) -> None:
        self._real, self._spec = real, spec
        self._episodes = check_int("episodes", episodes, least=1)
        self._max_frames = check_int("max_frames", max_frames, least=1)
        self._patience = check_int("patience", patience, least=0)
        self._seed, self._begun = seed, real.frames

    @property
    def steps(self) -> int:
        """Frames driven so far."""
        return self._real.frames - self._begun

    def __call__(self, params: Tensor, generation: int) -> Tensor:
        seeds = episode_seeds(derive_seed(self._seed, "tracks", generation), self._episodes)
        candidate = torch.arange(len(params)).repeat_interleave(len(seeds))

        def policy(numbers: np.ndarray) -> Controllers:
            mine, local = torch.unique(candidate[torch.from_numpy(numbers)], return_inverse=True)
            return Controllers(self._spec, params[mine], local)

        returns = self._real.returns(policy, seeds * len(params), self._max_frames, self._patience)
        return torch.from_numpy(returns).view(len(params), len(seeds))
