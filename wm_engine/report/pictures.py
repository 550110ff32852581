"""The report's pictures: what V sees, and what M dreams from a recorded start under the recorded actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from matplotlib.image import imsave
from numpy.typing import NDArray
from torch import Tensor

from wm_engine.memory.model import MDNRNN
from wm_engine.ops.mdn import mdn_sample
from wm_engine.rollouts import Episode, RolloutStore
from wm_engine.runs import atomic_write
from wm_engine.training import keyed_generator
from wm_engine.vision.model import VAE

Frames = NDArray[np.uint8]

_GAP = 3
# How far ahead the frames of a film strip lie; those that an episode is too short for are left out.
AHEAD = (0, 1, 2, 4, 7, 10, 15, 20, 30, 40, 60, 80)


@dataclass(frozen=True)
class FilmStrip:
    """Rows of frames uint8 [N, 64, 64, 3] by name, seen ``ahead`` [N] steps after step ``start`` of an episode."""

    episode: int
    start: int
    ahead: tuple[int, ...]
    rows: dict[str, Frames]


def to_pixels(decoded: Tensor) -> Frames:
    """Frames float [N, 64, 64, 3] in [0, 1] as uint8."""
    return (decoded.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).cpu().numpy()


@torch.inference_mode()
def reconstructions(vae: VAE, store: RolloutStore, episodes: Sequence[int], count: int = 10) -> tuple[Frames, Frames]:
    """``count`` frames spread evenly over the given episodes, and what V makes of them from the posterior's mean."""
    total = [store.info(episode).steps + 1 for episode in episodes]
    places = np.linspace(0, sum(total) - 1, count + 2).round().astype(int)[1:-1]
    ends = np.cumsum(total)
    frames = []
    for place in places:
        index = int(np.searchsorted(ends, place, side="right"))
        step = int(place - (ends[index] - total[index]))
        frames.append(store.frames(episodes[index], step, step + 1)[0])
    originals = np.stack(frames)
    mu, _ = vae.encode(torch.from_numpy(originals))
    return originals, to_pixels(vae.decode(mu))


@torch.inference_mode()
def film_strip(vae: VAE, m: MDNRNN, record: Episode, index: int, start: int, seed: int = 0) -> FilmStrip:
    """A recorded episode from ``start`` on beside two dreams of it.

    M reads the episode's latents up to ``start``, then dreams on alone, told the recorded actions and nothing else:
    once the most likely way (temperature 0), once drawn at temperature 1.
    """
    steps = len(record.actions)
    ahead = tuple(step for step in AHEAD if start + step <= steps)
    shown = record.frames[[start + step for step in ahead]]
    mu, _ = vae.encode(torch.from_numpy(record.frames[: start + ahead[-1] + 1]))
    actions = torch.from_numpy(record.actions)
    state = m.initial_state(1)
    if start > 0:
        _, state = m.sequence(torch.cat([mu[:start], actions[:start]], dim=1).unsqueeze(1))
    rows = {"real": shown, "V's view of it": to_pixels(vae.decode(mu[[start + step for step in ahead]]))}
    for name, temperature in (("dream, most likely", 0.0), ("dream, drawn", 1.0)):
        latents = _dream(m, mu[start : start + 1], state, actions[start : start + ahead[-1]], temperature, seed)
        rows[name] = to_pixels(vae.decode(latents[list(ahead)]))
    return FilmStrip(index, start, ahead, rows)


def _dream(
    m: MDNRNN, z: Tensor, state: tuple[Tensor, Tensor], actions: Tensor, temperature: float, seed: int
) -> Tensor:
    """Latents [T+1, Z] of a dream under given actions [T, A], the first one given."""
    generator = keyed_generator(seed)
    latents = [z]
    for action in actions:
        state = m.step(z, action.unsqueeze(0), state)
        parts = m.split(m.head(state[0]))
        uniforms = torch.rand(1, m.layout.choices, generator=generator)
        normals = torch.randn(1, m.latent, generator=generator)
        z = mdn_sample(parts.logits, parts.means, parts.log_stds, uniforms, normals, temperature)
        latents.append(z)
    return torch.cat(latents)


def save_row(frames: Frames, path: Path) -> None:
    """Frames [N, 64, 64, 3] side by side as one PNG, transparent between them."""
    count, height, width, _ = frames.shape
    row = np.zeros((height, count * (width + _GAP) - _GAP, 4), dtype=np.uint8)
    for index, frame in enumerate(frames):
        left = index * (width + _GAP)
        row[:, left : left + width, :3] = frame
        row[:, left : left + width, 3] = 255
    with atomic_write(path) as file:
        imsave(cast(BinaryIO, file), row, format="png")
