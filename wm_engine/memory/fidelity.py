"""How well M knows the recorded world: likelihood, rewards, ends and dreams, beside episodes it has not seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from wm_engine.memory.model import MDNRNN
from wm_engine.memory.sequences import SequenceBatch, burnt_in, whole_episodes
from wm_engine.ops.mdn import MixtureHead, mdn_sample
from wm_engine.ops.registered import mdn_nll
from wm_engine.training import keyed_generator
from wm_engine.vision.latents import Latents

HORIZON = 100
_LANES = 16
_BINS = 10
_OPEN_LOOP_STARTS = 256
_BASELINE_EPISODES = 256


def one_step_errors(m: MDNRNN, latents: Latents, episodes: Sequence[int], seed: int = 0) -> dict[str, float]:
    """One step ahead on recorded episodes, fed the recorded latents; scalars only, for the record of a training."""
    steps = _OneStep(m, latents, episodes, seed)
    rewards, ends = steps.reward_numbers(), steps.end_numbers()
    return {
        "nll_per_dimension": steps.nll,
        "reward_r2": rewards["reward_r2"],
        "end_precision": ends["end_precision"],
        "end_recall": ends["end_recall"],
    }


def memory_fidelity(m: MDNRNN, latents: Latents, episodes: Sequence[int], seed: int = 0) -> dict[str, Any]:
    """Measure M on held-out ``episodes``; the baselines are fitted on the others. Latents are drawn from V's posterior.

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

    Raises ValueError where ``episodes`` is empty or leaves none to fit the baselines on.
    """
    others = sorted(set(range(len(latents))) - set(episodes))
    if not episodes or not others:
        raise ValueError(
            f"episodes must be some, but not all, of the {len(latents)} encoded ones, but were {len(episodes)}"
        )
    m = m.eval()
    with torch.inference_mode():
        baselines = _Baselines(latents, others[:: math.ceil(len(others) / _BASELINE_EPISODES)])
        steps = _OneStep(m, latents, episodes, seed, baselines)
        return {
            "episodes": len(episodes),
            "steps": len(steps.rewards),
            "nll_per_dimension": steps.nll,
            "nll_gaussian": steps.nll_gaussian,
            "nll_copy_last": steps.nll_copy_last,
            **steps.reward_numbers(),
            **steps.reward_bins(),
            **steps.end_numbers(),
            **_open_loop(m, latents, episodes, baselines.mean, seed),
        }


class _Baselines:
    """Per-dimension Gaussians fitted on episodes: of the latent itself, and of its change from one step to the next.

    The posteriors' own variances are added to the means' exactly, instead of by drawing latents.
    """

    def __init__(self, latents: Latents, episodes: Sequence[int]) -> None:
        moments = torch.zeros(3, latents.latent, dtype=torch.float64)
        frames = changes = 0
        for episode in episodes:
            record = latents.read(episode)
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
        self, m: MDNRNN, latents: Latents, episodes: Sequence[int], seed: int, baselines: _Baselines | None = None
    ) -> None:
        nll, gaussian, copy_last = [], [], []
        predicted, rewards, logits, ends = [], [], [], []
        for batch, z, parts in _teacher_forced(m, latents, episodes, seed):
            live = batch.live
            nll.append(mdn_nll(parts.logits, parts.means, parts.log_stds, z[1:])[live])
            if baselines is not None:
                gaussian.append(baselines.gaussian_nll(z[1:])[live])
                copy_last.append(baselines.copy_last_nll(z[1:], z[:-1])[live])
            predicted.append(parts.reward[live])
            rewards.append(batch.rewards[live])
            logits.append(parts.done[live])
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
    m: MDNRNN, latents: Latents, episodes: Sequence[int], seed: int
) -> Iterator[tuple[SequenceBatch, Tensor, MixtureHead]]:
    """Groups of whole episodes: the records, the latents drawn [T+1, B, Z], and M's heads of every step."""
    device = next(m.parameters()).device
    generator = keyed_generator(seed)
    for batch in whole_episodes(latents, episodes, _LANES):
        z = batch.sample(generator)
        head, _ = m.sequence(torch.cat([z[:-1], batch.actions], dim=-1).to(device))
        yield batch, z, m.split(head.cpu())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else math.nan


def _r2(predicted: Tensor, realised: Tensor) -> float:
    error = (predicted - realised).square().mean().item()
    variance = realised.var(correction=0).item()
    return 1.0 - error / variance if variance > 0.0 else math.nan


def _open_loop(m: MDNRNN, latents: Latents, episodes: Sequence[int], mean: Tensor, seed: int) -> dict[str, Any]:
    """The error of dreams with the recorded actions against the recorded means, at every horizon."""
    places = _open_loop_places(latents, episodes, keyed_generator(seed, 1))
    z0, h0, c0 = burnt_in(m, latents, places, keyed_generator(seed, 2))
    windows = [latents.window(episode, at, min(at + HORIZON, latents.steps[episode])) for episode, at in places]
    targets = torch.nn.utils.rnn.pad_sequence([window.mu[1:] for window in windows])
    actions = torch.nn.utils.rnn.pad_sequence([window.actions for window in windows])
    lengths = torch.tensor([len(window.actions) for window in windows])

    errors: dict[str, list[float]] = {name: [] for name in ("most_likely", "sampled", "copy_last", "gaussian")}
    states = {"most_likely": (z0, (h0, c0)), "sampled": (z0, (h0, c0))}
    generator = keyed_generator(seed, 3)
    for horizon, (target, action) in enumerate(zip(targets, actions, strict=True)):
        guesses = {"copy_last": z0, "gaussian": mean.expand_as(z0)}
        uniforms = torch.rand(len(places), m.layout.choices, generator=generator).to(z0.device)
        normals = torch.randn(z0.shape, generator=generator).to(z0.device)
        for name, temperature in (("most_likely", 0.0), ("sampled", 1.0)):
            z, state = states[name]
            state = m.step(z, action.to(z.device), state)
            parts = m.split(m.head(state[0]))
            z = mdn_sample(parts.logits, parts.means, parts.log_stds, uniforms, normals, temperature)
            states[name] = (z, state)
            guesses[name] = z
        live = lengths > horizon
        for name, guess in guesses.items():
            errors[name].append((guess.cpu() - target)[live].square().mean().sqrt().item())
    return {
        "open_loop_starts": len(places),
        "open_loop_horizon": list(range(1, len(targets) + 1)),
        **{f"open_loop_{name}": curve for name, curve in errors.items()},
    }


def _open_loop_places(latents: Latents, episodes: Sequence[int], generator: torch.Generator) -> list[tuple[int, int]]:
    """(episode, step) pairs drawn evenly from all steps that have as much recorded after them as the horizon needs.

    Episodes too short for that give their first step.
    """
    choices = [(episode, step) for episode in episodes for step in range(max(latents.steps[episode] - HORIZON, 0) + 1)]
    chosen = torch.randperm(len(choices), generator=generator)[:_OPEN_LOOP_STARTS]
    return [choices[index] for index in chosen.sort().values.tolist()]
