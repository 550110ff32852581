"""Recorded episodes as world models read them: encoded, and many side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FEW_LENGTHS = 32


@dataclass(frozen=True)
class EncodedEpisode:
    """An episode of T steps after V.

    mu, logvar : float32 [T+1, Z], the posteriors of what was seen before each step and after the last
    actions : float32 [T, A]; rewards : float32 [T]
    terminated : whether the last step ended the episode for good (a limit does not)
    """

    mu: Tensor
    logvar: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: bool

    @property
    def steps(self) -> int:
        """T."""
        return len(self.rewards)

    def window(self, start: int, stop: int) -> EncodedEpisode:
        """Return steps ``start`` to ``stop`` (not included), with the latent after the last of them."""
        return EncodedEpisode(
            self.mu[start : stop + 1],
            self.logvar[start : stop + 1],
            self.actions[start:stop],
            self.rewards[start:stop],
            self.terminated and stop == self.steps,
        )


@dataclass(frozen=True)
class SequenceBatch:
    """B windows of encoded episodes, padded with zeros to T steps.

    mu, logvar : float32 [T+1, B, Z]
    actions : float32 [T, B, A]
    rewards, ends : float32 [T, B]; ends is 1 at a step that ended its episode for good
    live : bool [T, B], false where a window is shorter
    before : the steps before those windows that begin in mid-episode, to burn in a hidden state; None: none do
    continued : bool [B], which windows these are
    """

    mu: Tensor
    logvar: Tensor
    actions: Tensor
    rewards: Tensor
    ends: Tensor
    live: Tensor
    before: SequenceBatch | None = None
    continued: Tensor | None = None

    def to(self, device: torch.device) -> SequenceBatch:
        """Return the same batch on ``device``."""
        parts: dict[str, Any] = {
            name: value if value is None else value.to(device) for name, value in vars(self).items()
        }
        return SequenceBatch(**parts)

    def lanes(self, chosen: Tensor) -> SequenceBatch:
        """Return some of the windows, int64 [n], with what was before them."""
        names = ("mu", "logvar", "actions", "rewards", "ends", "live")
        part = replace(self, **{name: getattr(self, name)[:, chosen] for name in names})
        if self.before is None or self.continued is None:
            return part
        continued = self.continued[chosen]
        if not bool(continued.any()):
            return replace(part, before=None, continued=None)
        places = (self.continued.cumsum(0) - 1)[chosen][continued]
        return replace(part, before=self.before.lanes(places), continued=continued)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw a latent of every moment from its posterior: float32 [T+1, B, Z]; the draw is made on the CPU."""
        noise = torch.randn(self.mu.shape, generator=generator).to(self.mu.device)
        return self.mu + torch.exp(0.5 * self.logvar) * noise


def stack_windows(windows: Sequence[EncodedEpisode], multiple: int = 1) -> SequenceBatch:
    """Stand windows side by side, padded with zeros to the longest, or further to a ``multiple`` of steps."""
    lanes, length = len(windows), multiple * math.ceil(max(window.steps for window in windows) / multiple)
    latent, action = windows[0].mu.shape[1], windows[0].actions.shape[1]
    batch = SequenceBatch(
        mu=torch.zeros(length + 1, lanes, latent),
        logvar=torch.zeros(length + 1, lanes, latent),
        actions=torch.zeros(length, lanes, action),
        rewards=torch.zeros(length, lanes),
        ends=torch.zeros(length, lanes),
        live=torch.zeros(length, lanes, dtype=torch.bool),
    )
    for lane, window in enumerate(windows):
        steps = window.steps
        batch.mu[: steps + 1, lane] = window.mu
        batch.logvar[: steps + 1, lane] = window.logvar
        batch.actions[:steps, lane] = window.actions
        batch.rewards[:steps, lane] = window.rewards
        batch.ends[steps - 1, lane] = float(window.terminated)
        batch.live[:steps, lane] = True
    return batch


def cut_windows(episodes: Sequence[EncodedEpisode], length: int, rng: np.random.Generator) -> SequenceBatch:
    """Cut one window of ``length`` steps from each episode, at a random multiple of it, with the window before it.

    ``length`` 0 takes the episodes whole, padded to one of few lengths: libraries prepare themselves for every length
    that they meet, and keep what they prepared (150 MB after 240 lengths).
    """
    if not length:
        return stack_windows(episodes, multiple=_FEW_LENGTHS)
    firsts = [int(rng.integers(math.ceil(episode.steps / length))) * length for episode in episodes]
    pairs = list(zip(episodes, firsts, strict=True))
    windows = [episode.window(first, min(first + length, episode.steps)) for episode, first in pairs]
    before = [episode.window(first - length, first) for episode, first in pairs if first]
    batch = stack_windows(windows)
    if not before:
        return batch
    return replace(batch, before=stack_windows(before), continued=torch.tensor([first > 0 for first in firsts]))
