"""The report's pictures: what V sees, and what M dreams from a recorded start under the recorded actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from matplotlib.image import imsave

from wm_engine.data.store import RolloutStore
from wm_engine.dream.imagination import imagine
from wm_engine.dream.starts import states_at
from wm_engine.dream.types import Starts
from wm_engine.files import atomic_write
from wm_engine.models.base import Vision, WorldModel, as_seen
from wm_engine.models.latents import LatentCache
from wm_engine.spaces import Pixels

_GAP = 3
# How far ahead the pictures of a film strip lie; those that an episode is too short for are left out.
AHEAD = (0, 1, 2, 4, 7, 10, 15, 20, 30, 40, 60, 80)
REAL, VIEW = "real", "V's view of it"
_DREAMS = {"dream, most likely": 0.0, "dream, drawn": 1.0}


@dataclass(frozen=True)
class FilmStrip:
    """A recorded episode from step ``start`` on, T steps, beside what V and M make of it.

    rows : by name what is seen, uint8 or float32 [T+1, ...]
    rewards : by name their sum over the T steps; a dream's ends with it
    lengths : by name after how many steps the row ends, T or fewer
    """

    episode: int
    start: int
    rows: Mapping[str, np.ndarray]
    rewards: Mapping[str, float]
    lengths: Mapping[str, int]

    @property
    def ahead(self) -> list[int]:
        """Return the steps whose pictures are shown."""
        return [step for step in AHEAD if step < len(self.rows[REAL])]


@torch.inference_mode()
def reconstructions(
    vision: Vision, store: RolloutStore, episodes: Sequence[int], count: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Choose ``count`` pictures spread evenly over episodes; return them and V's view, uint8 [count, ...]."""
    total = [store.info(episode).steps + 1 for episode in episodes]
    ends = np.cumsum(total)
    pictures = []
    for place in np.linspace(0, ends[-1] - 1, count + 2).round().astype(int)[1:-1]:
        index = int(np.searchsorted(ends, place, side="right"))
        step = int(place - (ends[index] - total[index]))
        pictures.append(store.observations(episodes[index], step, step + 1)[0])
    originals = np.stack(pictures)
    mu, _ = vision.encode(torch.from_numpy(originals))
    return originals, as_seen(vision.decode(mu), pictures=True)


@torch.inference_mode()
def film_strip(
    vision: Vision,
    world: WorldModel,
    store: RolloutStore,
    episode: int,
    start: int,
    steps: int = AHEAD[-1],
    seed: int = 0,
) -> FilmStrip:
    """Lay a recorded episode from ``start`` on beside two dreams of it, ``steps`` steps or as long as it lasts.

    M reads the episode up to ``start``, then dreams on alone, told the recorded actions and nothing else: once the most
    likely way (temperature 0), once drawn at temperature 1.
    """
    pictures = isinstance(store.spaces.observations, Pixels)
    record = LatentCache(vision, store, torch.device("cpu")).read(episode)
    stop = min(start + steps, record.steps)
    length = stop - start
    rows = {
        REAL: store.observations(episode, start, stop + 1),
        VIEW: as_seen(vision.decode(record.mu[start : stop + 1]), pictures),
    }
    rewards, lengths = {REAL: float(record.rewards[start:stop].double().sum())}, {REAL: length, VIEW: length}
    met = states_at(world, [record], np.zeros(1, np.int64), np.array([start]), seed)
    begin = Starts(record.mu[start : start + 1], met.h, met.c)
    actions = record.actions[start:stop]
    for name, temperature in _DREAMS.items():
        dreams = imagine(world, lambda step: actions[step].unsqueeze(0), begin, length, temperature, seed)
        rows[name] = as_seen(vision.decode(dreams.seen[:, 0]), pictures)
        rewards[name], lengths[name] = float(dreams.returns()[0]), int(dreams.live.sum())
    return FilmStrip(episode, start, rows, rewards, lengths)


def save_row(pictures: np.ndarray, path: Path, shown: int | None = None) -> None:
    """Write pictures uint8 [N, height, width, 3] side by side as a PNG, transparent between and past ``shown``."""
    count, height, width, _ = pictures.shape
    row = np.zeros((height, count * (width + _GAP) - _GAP, 4), dtype=np.uint8)
    for index, picture in enumerate(pictures[:shown]):
        left = index * (width + _GAP)
        row[:, left : left + width, :3] = picture
        row[:, left : left + width, 3] = 255
    with atomic_write(path) as file:
        imsave(cast(BinaryIO, file), row, format="png")
