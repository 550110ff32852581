"""Calibration: what the dream promised of episodes that were then driven, beside what they paid.

From recorded states of newly driven episodes, M dreams on with the very policy that drove there. What the dream says of
the next h decisions stands beside what the road paid over the same decisions. It costs no real frame, and since neither
V nor M has learnt these episodes yet, it is an honest forecast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from wm_engine.data.sequences import EncodedEpisode
from wm_engine.dream.imagination import imagine
from wm_engine.dream.starts import states_at
from wm_engine.judge.dream_real_correlation import spearman
from wm_engine.models.base import WorldModel
from wm_engine.policies.base import OnLanes, Policy


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
    policy : for one lane an episode: lane i drove ``episodes[i]``
    horizon : decisions, the longest one compared
    starts : how many states of each episode are dreamt on from, drawn evenly
    survival : every step is worth 1
    done : how a dream ends, "threshold" | "sample", as where the policy was learnt
    """
    rng = np.random.default_rng([seed, 0])
    owners, steps = [], []
    for index, episode in enumerate(episodes):
        # What a limit cut short does not say what the rest would have paid; what ended for good pays nothing more.
        last = episode.steps if episode.terminated else episode.steps - horizon + 1
        if last > 0:
            chosen = np.sort(rng.choice(last, min(starts, last), replace=False))
            owners += [index] * len(chosen)
            steps += chosen.tolist()
    if not owners:
        return None
    owner_of, step_of = np.array(owners), np.array(steps)
    begin = states_at(world, episodes, owner_of, step_of, seed)
    dreams = imagine(
        world,
        OnLanes(policy, torch.from_numpy(owner_of)),
        begin,
        horizon,
        temperature,
        seed,
        survival=survival,
        done=done,
    )
    lengths = np.unique(np.geomspace(1, horizon, min(12, horizon)).round().astype(int))
    sums = [np.concatenate([[0.0], np.cumsum(_paid(episode, survival))]) for episode in episodes]
    promised = [float(dreams.returns(int(length)).mean()) for length in lengths]
    paid = [
        float(
            np.mean(
                [sums[o][min(s + length, episodes[o].steps)] - sums[o][s] for o, s in zip(owners, steps, strict=True)]
            )
        )
        for length in lengths
    ]
    return Calibration(
        lengths, np.array(promised), np.array(paid), _rank(dreams.returns().numpy(), owner_of, sums), len(owners)
    )


def _paid(episode: EncodedEpisode, survival: bool) -> np.ndarray:
    rewards = episode.rewards.double().numpy()
    return np.ones_like(rewards) if survival else rewards


def _rank(returns: np.ndarray, owners: np.ndarray, sums: Sequence[np.ndarray]) -> float:
    there = np.unique(owners)
    if len(there) < 3:
        return float("nan")
    promises = [returns[owners == owner].mean() for owner in there]
    if not np.isfinite(promises).all():
        return float("nan")
    return spearman(promises, [sums[owner][-1] for owner in there])
