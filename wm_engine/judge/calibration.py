"""Calibration: what the dream promised of episodes that were then driven, beside what they paid.

From recorded states of newly driven episodes, M dreams on with the very policy that drove there. What the dream says of
the next h decisions stands beside what the road paid over the same decisions. It costs no real frame, and since neither
V nor M has learnt these episodes yet, it is an honest forecast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wm_engine.data.sequences import EncodedEpisode
from wm_engine.dream.imagination import imagine
from wm_engine.dream.starts import states_at
from wm_engine.judge.dream_real_correlation import spearman
from wm_engine.models.base import WorldModel
from wm_engine.policies.base import EpisodicPolicy, OnLanes, Policy


@dataclass(frozen=True)
class Calibration:
    """Promised and paid returns over horizons of decisions.

    horizons : int [K], in decisions; promised, paid : float64 [K], means over all starts of returns over the horizon
    rank : Spearman's correlation over the episodes between the promise over the longest horizon and the whole return
        that the episode paid; NaN for fewer than three, or where a dream's reward is not finite
    starts : how many states were dreamt on from
    """

    horizons: np.ndarray
    promised: np.ndarray
    paid: np.ndarray
    rank: float
    starts: int


def calibrate(
    world: WorldModel,
    policy: Policy,
    episodes: Sequence[EncodedEpisode],
    *,
    horizon: int,
    starts: int,
    temperature: float,
    seed: int,
    survival: bool = False,
    done: str = "threshold",
) -> Calibration | None:
    """Hold the dream to newly driven episodes; None where none of them is long enough.

    Parameters
    ----------
    world : M as it was when the policy was learnt
    policy : for one lane an episode: lane i drove ``episodes[i]``. Of one that plans, the driven actions are dreamt
    horizon : decisions, the longest one compared
    starts : how many states of each episode are dreamt on from, drawn evenly
    survival : every step is worth 1
    done : how a dream ends, "threshold" | "sample", as where the policy was learnt
    """
    owner_of, step_of = draw_starts(episodes, horizon, starts, seed)
    if not len(owner_of):
        return None
    begin = states_at(world, episodes, owner_of, step_of, seed)
    actor: Policy | Callable[[int], Tensor] = OnLanes(policy, torch.from_numpy(owner_of))
    if isinstance(policy, EpisodicPolicy):
        # A plan a dreamt step would take hours; what was planned for real is there to be dreamt.
        actor = driven_actions(episodes, owner_of, step_of, horizon).__getitem__
    dreams = imagine(world, actor, begin, horizon, temperature, seed, survival=survival, done=done)
    lengths = horizons_to(horizon)
    sums = summed_rewards(episodes, survival)
    promised = [float(dreams.returns(int(length)).mean()) for length in lengths]
    paid = [float(paid_over(sums, owner_of, step_of, int(length)).mean()) for length in lengths]
    rank = _rank(dreams.returns().numpy(), owner_of, sums)
    return Calibration(lengths, np.array(promised), np.array(paid), rank, len(owner_of))


def draw_starts(
    episodes: Sequence[EncodedEpisode], horizon: int, starts: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw at most ``starts`` steps of each episode from which ``horizon`` decisions were paid: (episode, step), int64
    [N] each.

    What a limit cut short does not say what the rest would have paid; what ended for good pays nothing more.
    """
    rng = np.random.default_rng([seed, 0])
    owners, steps = [], []
    for index, episode in enumerate(episodes):
        last = episode.steps if episode.terminated else episode.steps - horizon + 1
        if last > 0:
            chosen = np.sort(rng.choice(last, min(starts, last), replace=False))
            owners += [index] * len(chosen)
            steps += chosen.tolist()
    return np.array(owners, np.int64), np.array(steps, np.int64)


def driven_actions(episodes: Sequence[EncodedEpisode], owners: np.ndarray, steps: np.ndarray, horizon: int) -> Tensor:
    """Return the actions that were driven from each start on: float32 [horizon, N, A]; after an end the last."""
    rows = []
    for o, s in zip(owners, steps, strict=True):
        done = episodes[o].actions[s : s + horizon]
        rows.append(torch.cat([done, done[-1:].expand(horizon - len(done), -1)]))
    return torch.stack(rows, dim=1)


def horizons_to(horizon: int) -> np.ndarray:
    """Return at most twelve lengths from 1 to ``horizon`` decisions, each about as many times the one before."""
    return np.unique(np.geomspace(1, horizon, min(12, horizon)).round().astype(int))


def summed_rewards(episodes: Sequence[EncodedEpisode], survival: bool = False) -> list[np.ndarray]:
    """Return each episode's rewards summed up to every step, float64 [T+1] from 0; ``survival``: each is worth 1."""
    rewards = [episode.rewards.double().numpy() for episode in episodes]
    return [np.concatenate([[0.0], np.cumsum(np.ones_like(each) if survival else each)]) for each in rewards]


def paid_over(sums: Sequence[np.ndarray], owners: np.ndarray, steps: np.ndarray, length: int) -> np.ndarray:
    """Return what ``length`` decisions from each start paid, or those to the episode's end: float64 [N]."""
    return np.array(
        [sums[o][min(s + length, len(sums[o]) - 1)] - sums[o][s] for o, s in zip(owners, steps, strict=True)]
    )


def _rank(returns: np.ndarray, owners: np.ndarray, sums: Sequence[np.ndarray]) -> float:
    there = np.unique(owners)
    if len(there) < 3:
        return float("nan")
    promises = [returns[owners == owner].mean() for owner in there]
    if not np.isfinite(promises).all():
        return float("nan")
    return spearman(promises, [sums[owner][-1] for owner in there])
