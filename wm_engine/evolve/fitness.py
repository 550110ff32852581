"""What a candidate is worth: its returns in the dream, or in the real environment.

Both fitnesses use common random numbers: within a generation all candidates meet the same starts, luck and tracks, so
that their order reflects the candidates; every generation draws fresh ones, so that none can be learnt by heart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from wm_engine.agent import Agent
from wm_engine.checks import check_int
from wm_engine.collect import track_seeds
from wm_engine.controller import ControllerSpec
from wm_engine.dream.types import DreamOutput, Starts
from wm_engine.envs import EnvSettings, choose_backend
from wm_engine.evolve.protocol import derive_seed
from wm_engine.evolve.racing import Race, race_rounds
from wm_engine.fleet import Fleet
from wm_engine.memory.model import MDNRNN
from wm_engine.rollouts import EpisodeWriter, RolloutStore
from wm_engine.vision.model import VAE
from wm_engine.waves import Candidates, Crews, Wave

BEGIN, CHOOSE, SCORE = "begin", "choose", "score"
"""Streams of fresh noise: to choose where a later phase begins, to choose among finalists, to score the choice with."""


class Fitness(Protocol):
    """Returns of a population.

    ``unit`` names what ``steps``, the work done so far, counts. ``backend`` computes the returns; another one gives
    other bits. Candidates that are on ``device`` already travel least. A fitness that fills in some returns may have
    ``dreamt``: which of the latest call's it did not, bool [P, E], or None where it filled in none.
    """

    unit: str
    steps: int

    @property
    def backend(self) -> str: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(self, params: Tensor, generation: int) -> Tensor:
        """Returns f32 [P, E] of ``params`` f32 [P, D] on the luck of ``generation``; NaN where an episode failed."""
        ...

    def fresh(self, params: Tensor, episodes: int, stream: str) -> Tensor:
        """Returns f32 [P, episodes] on luck that no generation and no other ``stream`` meets."""
        ...


class Dreamer(Protocol):
    """What dreams on ``device`` by ``backend``: a :class:`wm_engine.dream.engine.DreamEngine`, or a fleet of them."""

    backend: str

    @property
    def device(self) -> torch.device: ...

    def rollout(
        self,
        params: Tensor,
        starts: Starts,
        *,
        episodes: int,
        max_steps: int,
        temperature: float,
        seed: int,
        reward: str,
        done: str,
    ) -> DreamOutput:
        """See :meth:`wm_engine.dream.engine.DreamEngine.rollout`."""
        ...


class DreamFitness:
    """Returns in M's dream.

    engine : dreams
    starts : states that episodes begin from; which of them a generation uses is drawn anew each generation
    episodes, max_steps, temperature, reward, done : as in :meth:`wm_engine.dream.engine.DreamEngine.rollout`
    seed : generation g dreams with ``derive_seed(seed, "dream", g)``
    race : episodes that all candidates dream before those whose place is clear stop (:mod:`wm_engine.evolve.racing`);
        what they did not dream is filled in. Round r dreams with ``derive_seed(seed, "dream", g, "round", r)``. At
        least 2 and less than ``episodes``; 0: every candidate dreams all episodes
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
    ) -> None:
        self._rounds = race_rounds(episodes, race) if race else []
        self._engine, self._starts = engine, starts
        self._episodes, self._max_steps, self._seed = episodes, max_steps, seed
        self._temperature, self._reward, self._done = temperature, reward, done
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


class RealFitness:
    """Returns in the real environment, on V's and M's features.

    Candidate p's episode e drives on track e of the generation, ``track_seeds(derive_seed(seed, "tracks", g), E)[e]``,
    the same for every candidate. The P·E episodes are driven in waves of at most ``lanes``.

    env_settings : which environment; ``num_envs`` and ``max_steps`` are replaced by ``lanes`` and the steps below
    vae, mdnrnn, spec : the agent's parts
    episodes, max_steps : E, and where an episode of a generation is cut
    patience : end an episode of a generation after so many steps in a row without a positive reward; 0: never. A
        cheaper fitness, not the same one: what a stuck car would still lose (0.1 points a step) is not counted, so lost
        causes look a little better than they are.
    final_steps : where an episode of :meth:`fresh` is cut, which knows no patience; None: at ``max_steps``
    lanes : environments driven at once; bounds the memory. Results depend on it in the last bits only.
    device, precision : of the agent
    fleet : drives the waves, several at once, with the same returns; None: this process drives them one by one
    store : appends episodes of every generation, the first ``store_episodes`` of it in the order of candidates, as of
        the policy "evolve" and the round ``iteration``. Asked for the same generation again, by a resumed run, it
        appends only what is missing.
    """

    unit = "frames"
    device = torch.device("cpu")

    def __init__(
        self,
        env_settings: EnvSettings,
        vae: VAE,
        mdnrnn: MDNRNN,
        spec: ControllerSpec,
        *,
        episodes: int = 1,
        max_steps: int = 1000,
        patience: int = 0,
        final_steps: int | None = None,
        lanes: int = 64,
        seed: int = 0,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        fleet: Fleet | None = None,
        store: RolloutStore | None = None,
        store_episodes: int = 16,
        iteration: int = 0,
    ) -> None:
        agent = Agent(vae, mdnrnn, spec, torch.zeros(1, spec.num_params), device, precision)
        self._crews = Crews(env_settings, agent, fleet)
        self.backend = choose_backend(env_settings)
        self._episodes = check_int("episodes", episodes, least=1)
        self._max_steps = check_int("max_steps", max_steps, least=1)
        self._final_steps = self._max_steps if final_steps is None else check_int("final_steps", final_steps, least=1)
        self._patience = check_int("patience", patience, least=0)
        self._lanes = check_int("lanes", lanes, least=1)
        self._seed = seed
        self._store, self._iteration = store, iteration
        self._store_episodes = check_int("store_episodes", store_episodes, least=1)
        self.steps = 0

    def __call__(self, params: Tensor, generation: int) -> Tensor:
        seeds = track_seeds(derive_seed(self._seed, "tracks", generation), self._episodes)
        return self._drive(params, seeds, self._max_steps, self._patience, self._to_store(params, generation))

    def fresh(self, params: Tensor, episodes: int, stream: str) -> Tensor:
        seeds = track_seeds(derive_seed(self._seed, "tracks", stream), episodes)
        return self._drive(params, seeds, self._final_steps, 0, range(0))

    def close(self) -> None:
        """End the environments; a later call starts new ones."""
        self._crews.close()

    def _drive(self, params: Tensor, tracks: list[int], max_steps: int, patience: int, stored: range) -> Tensor:
        """Returns f32 [P, E]; the episodes ``stored`` of the P·E, candidate by candidate, go to the store."""
        candidates = np.repeat(np.arange(len(params)), len(tracks))
        seeds = np.tile(tracks, len(params))
        waves = []
        for first in range(0, len(seeds), self._lanes):
            lanes = slice(first, first + self._lanes)
            mine, local = np.unique(candidates[lanes], return_inverse=True)
            recorded = tuple(episode - first for episode in stored if 0 <= episode - first < len(local))
            drivers = Candidates(params[torch.from_numpy(mine)], local)
            waves.append(Wave(seeds[lanes].tolist(), drivers, max_steps, patience, recorded))
        driven = [one for wave in self._crews.drive(waves, self._writers) for one in wave]
        self.steps += sum(one.steps for one in driven)
        returns = np.array([np.nan if one.failed else one.total_reward for one in driven], dtype=np.float32)
        return torch.from_numpy(returns).view(len(params), len(tracks))

    def _writers(self, wave: Wave) -> Mapping[int, EpisodeWriter]:
        if self._store is None:
            return {}
        return {lane: self._store.writer(wave.seeds[lane], "evolve", self._iteration) for lane in wave.recorded}

    def _to_store(self, params: Tensor, generation: int) -> range:
        """Which of the generation's episodes are to be appended: those it should have there, less those it has."""
        if self._store is None:
            return range(0)
        wanted = min(self._store_episodes, len(params) * self._episodes)
        infos = (self._store.info(index) for index in range(len(self._store)))
        there = sum(info.policy == "evolve" and info.iteration == self._iteration for info in infos)
        return range(min(max(there - generation * wanted, 0), wanted), wanted)
