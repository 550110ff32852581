"""How well M knows recorded episodes: likelihood, rewards, ends and open-loop dreams, on ones it has not learnt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wm_engine.data.sequences import EncodedEpisode, SequenceBatch, stack_windows
from wm_engine.dream.imagination import imagine
from wm_engine.dream.starts import states_at
from wm_engine.models.base import WorldModel
from wm_engine.rng import keyed_generator

HORIZON = 100
_LANES = 16
_BINS = 10
_OPEN_LOOP_STARTS = 256


@torch.inference_mode()
def one_step_errors(world: WorldModel, episodes: Sequence[EncodedEpisode], seed: int = 0) -> dict[str, float]:
    """Measure M one step ahead on recorded episodes, fed the recorded latents; scalars, for the record of a run."""
    steps = _OneStep(world, episodes, seed)
    rewards, ends = steps.reward_numbers(), steps.end_numbers()
    return {
        "nll_per_dimension": steps.nll,
        "reward_r2": rewards["reward_r2"],
        "reward_r2_before_ends": rewards["reward_r2_before_ends"],
        "end_precision": ends["end_precision"],
        "end_recall": ends["end_recall"],
    }


@torch.inference_mode()
def model_errors(
    world: WorldModel, episodes: Sequence[EncodedEpisode], others: Sequence[EncodedEpisode], seed: int = 0
) -> dict[str, Any]:
    """Measure M on held-out ``episodes``; the baselines are fitted on ``others``. Latents are drawn from V's posterior.

    Scalars
        ``nll_per_dimension``, ``nll_gaussian``, ``nll_copy_last``: negative log-likelihood of the next latent, nats a
        dimension, under M, under a Gaussian that knows each dimension's mean and variance, and under a Gaussian around
        the present latent with each dimension's variance of change. ``reward_r2``: 1 - squared error / variance;
        ``reward_r2_before_ends``: without the steps that ended an episode, whose penalty outweighs all else.
        ``reward_slope``, ``reward_intercept``: the realised reward regressed on the predicted one (1 and 0 at best).
        ``ends``, ``ends_predicted``, ``end_precision``, ``end_recall``: steps whose end logit is over 0 beside those
        that ended; NaN where there is nothing to divide by. ``episodes``, ``steps``, ``open_loop_starts``: how much
        was measured.
    Curves, as lists
        ``reward_bins_predicted``, ``_realised``, ``_count``: means in tenths of the steps, ordered by prediction.
        ``open_loop_horizon`` 1 to 100, and at each the root mean squared error of a latent dimension, of a dream with
        the recorded actions from burnt-in states: ``open_loop_most_likely`` (temperature 0), ``open_loop_sampled``
        (temperature 1), beside ``open_loop_copy_last`` and ``open_loop_gaussian`` (the mean latent).

    Raises ValueError where either is empty.
    """
    if not episodes or not others:
        raise ValueError(f"episodes and others must be some each, but were {len(episodes)} and {len(others)}")
    baselines = _Baselines(others)
    steps = _OneStep(world, episodes, seed, baselines)
    return {
        "episodes": len(episodes),
        "steps": len(steps.rewards),
        "nll_per_dimension": steps.nll,
        "nll_gaussian": steps.nll_gaussian,
        "nll_copy_last": steps.nll_copy_last,
        **steps.reward_numbers(),
        **steps.reward_bins(),
        **steps.end_numbers(),
        **_open_loop(world, episodes, baselines.mean, seed),
    }


class _Baselines:
    """Per-dimension Gaussians fitted on episodes: of the latent itself, and of its change from one step to the next.

    The posteriors' own variances are added to the means' exactly, instead of by drawing latents.
    """

    def __init__(self, episodes: Sequence[EncodedEpisode]) -> None:
        moments = torch.zeros(3, episodes[0].mu.shape[1], dtype=torch.float64)
        frames = changes = 0
        for record in episodes:
            mu, variance = record.mu.double(), record.logvar.double().exp()
            moments[0] += mu.sum(0)
            moments[1] += (mu.square() + variance).sum(0)
            moments[2] += (mu.diff(dim=0).square() + variance[1:] + variance[:-1]).sum(0)
            frames += len(mu)
            changes += len(mu) - 1
        mean = moments[0] / frames
        self.mean = mean.float()
        self._log_std = 0.5 * (moments[1] / frames - mean.square()).clamp(min=1e-12).log().float()
        self._log_std_of_change = 0.5 * (moments[2] / changes).clamp(min=1e-12).log().float()

    def gaussian_nll(self, target: Tensor) -> Tensor:
        """[..., Z] to nats a dimension [...]."""
        return _gaussian_nll(target, self.mean, self._log_std)

    def copy_last_nll(self, target: Tensor, last: Tensor) -> Tensor:
        """[..., Z] and the latents one step before to nats a dimension [...]."""
        return _gaussian_nll(target, last, self._log_std_of_change)


def _gaussian_nll(target: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    standard = (target - mean) * torch.exp(-log_std)
    return (0.5 * standard.square() + log_std + 0.5 * math.log(2.0 * math.pi)).mean(-1)


class _OneStep:
    """M fed recorded episodes: what it said of every live step, in one flat row each."""

    def __init__(
        self, world: WorldModel, episodes: Sequence[EncodedEpisode], seed: int, baselines: _Baselines | None = None
    ) -> None:
        nll, gaussian, copy_last = [], [], []
        predicted, rewards, logits, ends = [], [], [], []
        for batch, z, said in _teacher_forced(world, episodes, seed):
            live = batch.live
            nll.append(said["nll"][live])
            if baselines is not None:
                gaussian.append(baselines.gaussian_nll(z[1:])[live])
                copy_last.append(baselines.copy_last_nll(z[1:], z[:-1])[live])
            predicted.append(said["reward"][live])
            rewards.append(batch.rewards[live])
            logits.append(said["done"][live])
            ends.append(batch.ends[live])
        self.nll = torch.cat(nll).double().mean().item()
        self.nll_gaussian = torch.cat(gaussian).double().mean().item() if gaussian else math.nan
        self.nll_copy_last = torch.cat(copy_last).double().mean().item() if copy_last else math.nan
        self.predicted, self.rewards = torch.cat(predicted).double(), torch.cat(rewards).double()
        self.ended, self.ends_predicted = torch.cat(ends) > 0.5, torch.cat(logits) > 0.0

    def reward_numbers(self) -> dict[str, float]:
        going_on = ~self.ended
        spread = self.predicted.var(correction=0)
        together = ((self.predicted - self.predicted.mean()) * (self.rewards - self.rewards.mean())).mean()
        slope = _ratio(together.item(), spread.item())
        return {
            "reward_r2": _r2(self.predicted, self.rewards),
            "reward_r2_before_ends": _r2(self.predicted[going_on], self.rewards[going_on]),
            "reward_slope": slope,
            "reward_intercept": self.rewards.mean().item() - slope * self.predicted.mean().item(),
        }

    def reward_bins(self) -> dict[str, list[float]]:
        bins = [part for part in self.predicted.argsort(stable=True).tensor_split(_BINS) if len(part)]
        return {
            "reward_bins_predicted": [self.predicted[part].mean().item() for part in bins],
            "reward_bins_realised": [self.rewards[part].mean().item() for part in bins],
            "reward_bins_count": [len(part) for part in bins],
        }

    def end_numbers(self) -> dict[str, float]:
        hits = int((self.ended & self.ends_predicted).sum())
        ends, predicted = int(self.ended.sum()), int(self.ends_predicted.sum())
        return {
            "ends": ends,
            "ends_predicted": predicted,
            "end_precision": _ratio(hits, predicted),
            "end_recall": _ratio(hits, ends),
        }


def _teacher_forced(
    world: WorldModel, episodes: Sequence[EncodedEpisode], seed: int
) -> Iterator[tuple[SequenceBatch, Tensor, dict[str, Tensor]]]:
    """Groups of whole episodes: the records, the latents drawn [T+1, B, Z], and what M says of every step."""
    device = world.device
    generator = keyed_generator(seed)
    ordered = sorted(episodes, key=lambda episode: -episode.steps)  # so that little is padded
    for first in range(0, len(ordered), _LANES):
        batch = stack_windows(ordered[first : first + _LANES])
        z = batch.sample(generator)
        said = world.predict(batch.to(device), z.to(device))
        yield batch, z, {name: value.cpu() for name, value in said.items()}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else math.nan


def _r2(predicted: Tensor, realised: Tensor) -> float:
    error = (predicted - realised).square().mean().item()
    variance = realised.var(correction=0).item()
    return 1.0 - error / variance if variance > 0.0 else math.nan


def _open_loop(world: WorldModel, episodes: Sequence[EncodedEpisode], mean: Tensor, seed: int) -> dict[str, Any]:
    """The error of dreams with the recorded actions against the recorded means, at every horizon."""
    owners, steps = _open_loop_places(episodes, np.random.default_rng([seed, 1]))
    starts = states_at(world, episodes, owners, steps, seed)
    pairs = list(zip(owners.tolist(), steps.tolist(), strict=True))
    windows = [episodes[owner].window(step, min(step + HORIZON, episodes[owner].steps)) for owner, step in pairs]
    batch = stack_windows(windows)
    errors = {
        name: (
            imagine(world, batch.actions.__getitem__, starts, len(batch.actions), temperature, seed).z[1:]
            - batch.mu[1:]
        )
        for name, temperature in (("most_likely", 0.0), ("sampled", 1.0))
    }
    errors |= {"copy_last": starts.z - batch.mu[1:], "gaussian": mean - batch.mu[1:]}
    curves = {
        f"open_loop_{name}": [error[t][live].square().mean().sqrt().item() for t, live in enumerate(batch.live)]
        for name, error in errors.items()
    }
    return {"open_loop_starts": len(pairs), "open_loop_horizon": list(range(1, len(batch.live) + 1)), **curves}


def _open_loop_places(episodes: Sequence[EncodedEpisode], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(episode, step) pairs drawn evenly from all steps that have as much recorded after them as the horizon needs.

    Episodes too short for that give their first step.
    """
    choices = np.array([
        (index, step) for index, episode in enumerate(episodes) for step in range(max(episode.steps - HORIZON, 0) + 1)
    ])  # fmt: skip
    chosen = np.sort(rng.choice(len(choices), min(len(choices), _OPEN_LOOP_STARTS), replace=False))
    return choices[chosen, 0], choices[chosen, 1]
