"""Which recorded episodes are learnt from: new and old ones mixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wm_engine.data.store import RolloutStore, split_episodes


class Replay:
    """The episodes of a store as one round sees them: those of its own and of earlier rounds.

    Parameters
    ----------
    store : the recorded episodes
    round : episodes of later rounds are not there yet, even where a run that was cut has recorded them
    holdout : share of the episodes that nothing learns from
    """

    def __init__(self, store: RolloutStore, round: int, holdout: float) -> None:
        self.store = store
        self.episodes = list(store.episodes(round))
        self.training, self.held_out = split_episodes(len(self.episodes), holdout)
        self.newest = [index for index in self.episodes if store.info(index).round == round]

    def draw(self, rng: np.random.Generator, count: int, share: float, recent: int) -> list[int]:
        """Draw ``count`` training episodes: a ``share`` (rounded) of the ``recent`` newest ones, the rest of all."""
        new = round(count * share)
        drawn = [*rng.choice(self.training[-recent:], new), *rng.choice(self.training, count - new)]
        return [int(index) for index in drawn]

    def spread(self, rng: np.random.Generator, count: int) -> list[int]:
        """Choose at most ``count`` different training episodes: half of them the newest, half any of the others."""
        new = self.training[-max(1, count // 2) :]
        old = self.training[: len(self.training) - len(new)]
        chosen: Any = (
            rng.choice(old, min(len(old), count - len(new)), replace=False) if old and count > len(new) else []
        )
        return [*new, *(int(index) for index in chosen)]


def draw_frames(store: RolloutStore, episodes: Sequence[int], rng: np.random.Generator, count: int) -> np.ndarray:
    """Read ``count`` observations spread over ``episodes``, in random order: [count, ...]."""
    lengths = np.array([store.info(index).steps + 1 for index in episodes])
    places = np.sort(rng.choice(int(lengths.sum()), min(count, int(lengths.sum())), replace=False))
    owners = np.searchsorted(lengths.cumsum(), places, side="right")
    firsts = lengths.cumsum() - lengths
    parts = []
    for owner in np.unique(owners):
        wanted = places[owners == owner] - firsts[owner]
        parts.append(store.read(episodes[owner]).observations[wanted])
    return np.concatenate(parts)[rng.permutation(len(places))]
