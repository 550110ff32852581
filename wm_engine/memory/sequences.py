"""The order in which M reads encoded episodes: many at once, each from its beginning to its end, a window at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wm_engine.memory.model import MDNRNN
from wm_engine.vision.latents import Latents

_BURN_IN_LANES = 64


@dataclass(frozen=True)
class Window:
    """Steps [start, stop) of an episode; ``fresh`` where the hidden state before them is zero."""

    episode: int
    start: int
    stop: int
    fresh: bool


@dataclass(frozen=True)
class SequenceBatch:
    """Windows of B lanes, padded to T steps.

    mu, logvar : float32 [T+1, B, Z]
    actions : float32 [T, B, A]
    rewards, ends : float32 [T, B]; ends is 1 at a step that ended its episode for good
    live : bool [T, B], false where a lane's window is shorter
    fresh : bool [B], lanes whose hidden state begins at zero
    """

    mu: Tensor
    logvar: Tensor
    actions: Tensor
    rewards: Tensor
    ends: Tensor
    live: Tensor
    fresh: Tensor

    def to(self, device: torch.device) -> SequenceBatch:
        """The same batch on ``device``."""
        return SequenceBatch(**{name: value.to(device) for name, value in vars(self).items()})

    def sample(self, generator: torch.Generator) -> Tensor:
        """A latent of every frame, drawn from its posterior: float32 [T+1, B, Z]; the draw is made on the CPU."""
        noise = torch.randn(self.mu.shape, generator=generator).to(self.mu.device)
        return self.mu + torch.exp(0.5 * self.logvar) * noise


def schedule(
    episodes: Sequence[int], steps: Sequence[int], lanes: int, length: int, seed: int
) -> Iterator[list[Window]]:
    """Endless rounds of one window a lane, of at most ``length`` steps each.

    A lane reads an episode's windows in order and then takes the next episode from an order shared by all lanes, which
    goes through all ``episodes`` in a new permutation each time. A lane's first episode begins at a random step, so
    that the lanes are never all at the same time of an episode. ``steps[i]``: length of ``episodes[i]``.
    """
    generator = np.random.default_rng([seed, 0])
    places = _permutations(len(episodes), generator)

    def first_window() -> Window:
        place = next(places)
        start = int(generator.integers(steps[place]))
        return Window(episodes[place], start, min(start + length, steps[place]), fresh=True)

    lengths = dict(zip(episodes, steps, strict=True))
    current = [first_window() for _ in range(lanes)]
    while True:
        yield current
        following = []
        for window in current:
            if window.stop < lengths[window.episode]:
                stop = min(window.stop + length, lengths[window.episode])
                following.append(Window(window.episode, window.stop, stop, fresh=False))
            else:
                episode = episodes[next(places)]
                following.append(Window(episode, 0, min(length, lengths[episode]), fresh=True))
        current = following


def _permutations(count: int, generator: np.random.Generator) -> Iterator[int]:
    while True:
        yield from generator.permutation(count).tolist()


def gather(latents: Latents, windows: Sequence[Window], length: int) -> SequenceBatch:
    """Read the windows, padded with zeros to ``length`` steps."""
    lanes = len(windows)
    batch = SequenceBatch(
        mu=torch.zeros(length + 1, lanes, latents.latent),
        logvar=torch.zeros(length + 1, lanes, latents.latent),
        actions=torch.zeros(length, lanes, latents.action),
        rewards=torch.zeros(length, lanes),
        ends=torch.zeros(length, lanes),
        live=torch.zeros(length, lanes, dtype=torch.bool),
        fresh=torch.tensor([window.fresh for window in windows]),
    )
    for lane, window in enumerate(windows):
        episode = latents.window(window.episode, window.start, window.stop)
        steps = window.stop - window.start
        batch.mu[: steps + 1, lane] = episode.mu
        batch.logvar[: steps + 1, lane] = episode.logvar
        batch.actions[:steps, lane] = episode.actions
        batch.rewards[:steps, lane] = episode.rewards
        batch.ends[steps - 1, lane] = float(episode.terminated)
        batch.live[:steps, lane] = True
    return batch


def whole_episodes(latents: Latents, episodes: Sequence[int], lanes: int) -> Iterator[SequenceBatch]:
    """The episodes whole, ``lanes`` of them at a time, longest first so that little is padded."""
    ordered = sorted(episodes, key=lambda episode: -latents.steps[episode])
    for first in range(0, len(ordered), lanes):
        group = ordered[first : first + lanes]
        windows = [Window(episode, 0, latents.steps[episode], fresh=True) for episode in group]
        yield gather(latents, windows, windows[0].stop)


def burnt_in(
    m: MDNRNN, latents: Latents, places: Sequence[tuple[int, int]], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The states of M before given steps of recorded episodes.

    M reads each episode's latents, drawn from V's posterior as in its training, and actions from the beginning up to
    the step, which is how an agent's (h, c) comes about.

    Parameters
    ----------
    places : N pairs (episode, step), step < the episode's length

    Returns
    -------
    z [N, Z], h and c [N, H], float32 on M's device
    """
    device = next(m.parameters()).device
    z = torch.empty(len(places), m.latent, device=device)
    h, c = (torch.zeros(len(places), m.hidden, device=device) for _ in range(2))
    # Longest first: a group of similar lengths wastes little, and no group is large.
    order = sorted(range(len(places)), key=lambda place: -places[place][1])
    for group in (order[first : first + _BURN_IN_LANES] for first in range(0, len(order), _BURN_IN_LANES)):
        inputs = []
        for place in group:
            episode, step = places[place]
            record = latents.window(episode, 0, max(step, 1))
            drawn = record.sample(generator)
            z[place] = drawn[step]
            if step > 0:
                inputs.append(torch.cat([drawn[:step], record.actions], dim=-1).to(device))
        if inputs:
            packed = torch.nn.utils.rnn.pack_sequence(inputs)
            _, (last_h, last_c) = m.lstm(packed)
            h[group[: len(inputs)]], c[group[: len(inputs)]] = last_h[0], last_c[0]
    return z, h, c
