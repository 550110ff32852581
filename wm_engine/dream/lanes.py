"""Dreams that are taken a step at a time, by actions from outside: what environments are made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from wm_engine.checks import check_tensor
from wm_engine.dream.types import LaneBackend, LaneStep, RolloutPlan, Starts
from wm_engine.models.base import WorldState
from wm_engine.rng import key_words

_COUNTER_MASK = (1 << 32) - 1


class DreamLanes:
    """B dreams side by side in an engine (:meth:`wm_engine.dream.engine.DreamEngine.lanes`).

    Lane i dreams episodes i, i + B, i + 2B, ... of the seed, each from ``starts[episode mod N]``. Under the actions
    that ``engine.act`` computes, the first k dreams of all lanes are those of ``engine.rollout(params, starts,
    episodes=k·B)``, to the bit (docs/dream-environment.md says where torch's products are an exception). Episodes are
    counted modulo 2**32.

    episode : int64 [B], the present ones; steps : int64 [B], taken in them
    """

    def __init__(
        self, backend: LaneBackend, device: torch.device, state_size: int, starts: Starts, plan: RolloutPlan
    ) -> None:
        self._backend, self._plan = backend, plan
        self._begin = starts.to(device, backend.dtype, state_size)
        self._state = WorldState(*(value.new_empty(plan.episodes, value.shape[1]) for value in self._begin))
        self.restart(plan.seed)

    def __len__(self) -> int:
        return self._plan.episodes

    @property
    def state(self) -> WorldState:
        """z [B, Z], h and c [B, S] as they are now: the lanes' own memory, which the next step changes."""
        return replace(self._state, episode=torch.from_numpy(self.episode).to(self._state.z.device))

    def restart(self, seed: int) -> None:
        """Begin all lanes with the first episodes of a seed in [0, 2**64)."""
        key_words(seed)
        self._plan = replace(self._plan, seed=seed)
        self.episode, self.steps = np.arange(len(self)), np.zeros(len(self), np.int64)
        self._fill(self.episode)

    def next(self, lanes: np.ndarray) -> None:
        """Begin the next episodes of some lanes, bool [B]."""
        which = np.flatnonzero(lanes)
        self.episode[which] = (self.episode[which] + len(self)) & _COUNTER_MASK
        self.steps[which] = 0
        self._fill(which)

    def _fill(self, lanes: np.ndarray) -> None:
        where = torch.from_numpy(lanes)
        start = torch.from_numpy(self.episode[lanes] % len(self._begin[0]))
        for now, begin in zip((self._state.z, self._state.h, self._state.c), self._begin, strict=True):
            now[where.to(now.device)] = begin[start.to(now.device)]

    def step(self, actions: Tensor) -> LaneStep:
        """Take all lanes one step further under actions [B, A]. What ended or failed dreams on until :meth:`next`."""
        check_tensor("actions", actions, [len(self), "A"])
        s, words = self._state, (self.episode.astype(np.uint32), self.steps.astype(np.uint32))
        out = self._backend.step(s.z, s.h, s.c, actions, *words, self._plan)
        self.steps += 1
        return out
