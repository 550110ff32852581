"""The rank correlation between dream return and real return over a mix of controllers.

Evolution inside the dream uses nothing but the order in which the dream ranks controllers, so the figure that decides
whether a dream can teach is Spearman's rank correlation (Spearman 1904) between the two returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from wm_engine.checks import check_float, check_int, check_tensor

RANDOM = "random"
AROUND_BEST = "around the best"
EARLIER = "earlier winner"

# P candidates and a generation's number -> returns f32[P, E] over the generation's own dreams or tracks.
Fitness = Callable[[Tensor, int], Tensor]

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class ControllerMix:
    """Controllers to be ranked: ``params`` f32[P, D], and for each of them the group it was drawn from."""

    params: Tensor
    groups: tuple[str, ...]


def controller_mix(
    best: Tensor,
    earlier: Tensor | None,
    *,
    count: int = 48,
    sigma: float = 0.1,
    distances: Sequence[float] = (0.25, 0.5, 1.0),
    seed: int = 0,
) -> ControllerMix:
    """``count`` controllers of three kinds: random ones, ones around the best, and earlier winners of the dream.

    best: f32[D], the controller that training chose; itself the first of its group.
    earlier: f32[W, D], winners of earlier generations or of another phase, oldest first; None where there are none.
    sigma: standard deviation of the random group about zero, and the unit of ``distances`` (the standard deviations of
        the noise added to ``best``, in equal shares). The initial step size of the evolution is the natural choice.

    A third is random; up to a sixth, spread evenly over the history, are earlier winners; the rest is around the best.

    **What the mix does to rho.** Random controllers beside trained ones make two clouds far apart, and telling the
    clouds apart is easy: their share raises rho. Neighbours of the best differ little, and ordering them is what the
    last generations have to do: rho within that group is the harder figure, and is reported beside the whole. Earlier
    winners were selected *for* a high dream return, so they are where the dream's errors flatter most: their share
    lowers rho. A figure without such winners would be a kinder one, and would say less.
    """
    check_tensor("best", best, ["D"])
    size = best.numel()
    check_int("count", count, least=3)
    check_float("sigma", sigma, least=0.0)
    if not distances:
        raise ValueError("distances must hold at least one number, but was empty")
    for distance in distances:
        check_float("distances", distance, least=0.0)
    if earlier is not None:
        check_tensor("earlier", earlier, ["W", size])
    generator = np.random.default_rng(seed)

    num_random = count // 3
    num_earlier = min(count // 6, 0 if earlier is None else earlier.shape[0])
    num_around = count - num_random - num_earlier

    center = best.detach().to("cpu", torch.float32)
    noise = torch.from_numpy(generator.standard_normal((num_random + num_around, size), dtype=np.float32))
    scales = torch.tensor([sigma * distances[i % len(distances)] for i in range(num_around)])
    scales[0] = 0.0
    parts = [sigma * noise[:num_random], center + scales[:, None] * noise[num_random:]]
    if earlier is not None and num_earlier:
        picks = np.linspace(0, earlier.shape[0] - 1, num_earlier).round().astype(int)
        parts.append(earlier.detach().to("cpu", torch.float32)[torch.from_numpy(picks)])
    groups = (RANDOM,) * num_random + (AROUND_BEST,) * num_around + (EARLIER,) * num_earlier
    return ControllerMix(torch.cat(parts).contiguous(), groups)


def average_ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Ranks from 1 of a vector, equal values sharing the mean of the ranks they cover: [3, 5, 5] -> [1, 2.5, 2.5]."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"values must be a vector, but had shape {list(vector.shape)}")
    if np.isnan(vector).any():
        raise ValueError("values must not hold NaN: it has no rank")
    _, group, counts = np.unique(vector, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rho of two vectors of equal length N >= 2: Pearson's correlation of their average ranks.

    Without ties it equals 1 - 6 Σ d² / (N (N² - 1)), d the differences of ranks. Infinities have ranks like any number.
    NaN where one vector is constant (no order to compare). ValueError for other shapes and for NaN among the values.
    """
    ranks_x, ranks_y = average_ranks(x), average_ranks(y)
    if ranks_x.size != ranks_y.size or ranks_x.size < 2:
        raise ValueError(f"x and y must have the same length, at least 2, but had {ranks_x.size} and {ranks_y.size}")
    ranks_x = ranks_x - ranks_x.mean()
    ranks_y = ranks_y - ranks_y.mean()
    norm = float(np.sqrt((ranks_x @ ranks_x) * (ranks_y @ ranks_y)))
    return float(np.clip(ranks_x @ ranks_y / norm, -1.0, 1.0)) if norm > 0 else float("nan")


def dream_real_correlation(
    dream: Fitness, real: Fitness, mix: ControllerMix, *, generation: int = 0, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Rank the same controllers in the dream and in the real environment, and compare the two orders.

    dream, real: the fitnesses of the evolution; ``generation`` chooses their draws and their tracks, so take one that
    training did not use. Every controller meets the same dreams and the same tracks.

    Returns a JSON-able dict:

    - ``rho``, ``low``, ``high``: Spearman's rho over all controllers, and its 95 % interval by a percentile bootstrap
      over controllers, resampled within their groups so that every resample keeps the mix (see :func:`controller_mix`).
      The tracks are not resampled: the interval is for these tracks.
    - ``groups``: the same four figures (with ``controllers``, their number) within each group.
    - ``dream``, ``real``, ``labels``: mean returns and group of each controller, for the scatter plot. A controller
      whose mean return is not finite ranks worst in that order, is counted in ``dream_failed`` or ``real_failed``, and
      is None in the list.
    - ``real_best``, ``real_of_dream_best``, ``real_median``: the best real return in the mix, the real return of the
      controller that the dream puts first, and that of the middle one: what trusting the dream would have brought.
    - ``real_reliability``: how well the real order repeats itself on other tracks: rho between the means over odd and
      over even tracks, stepped up to all of them (Spearman-Brown). Few tracks alone hold rho below about the square
      root of this. None with a single track.
    """
    check_int("resamples", resamples, least=1)
    if len(mix.groups) != mix.params.shape[0]:
        raise ValueError(f"mix.groups must name each of {mix.params.shape[0]} controllers, but held {len(mix.groups)}")
    dream_returns = _returns("dream", dream(mix.params, generation), len(mix.groups))
    real_returns = _returns("real", real(mix.params, generation), len(mix.groups))
    dream_mean, real_mean = _means(dream_returns), _means(real_returns)
    labels = np.asarray(mix.groups)
    generator = np.random.default_rng(seed)
    everyone = np.arange(labels.size)
    names = list(dict.fromkeys(mix.groups))
    strata = [everyone[labels == name] for name in names]
    ranked_first = int(np.argmax(dream_mean))
    return {
        **_with_interval(dream_mean, real_mean, strata, resamples, generator),
        "confidence": _CONFIDENCE,
        "groups": {
            name: _with_interval(dream_mean, real_mean, [members], resamples, generator)
            for name, members in zip(names, strata, strict=True)
        },
        "dream": _plain(dream_mean),
        "real": _plain(real_mean),
        "labels": list(mix.groups),
        "dream_failed": int((~np.isfinite(dream_mean)).sum()),
        "real_failed": int((~np.isfinite(real_mean)).sum()),
        "dream_episodes": dream_returns.shape[1],
        "real_episodes": real_returns.shape[1],
        "real_best": float(real_mean.max()),
        "real_of_dream_best": float(real_mean[ranked_first]),
        "real_median": float(np.median(real_mean)),
        "real_reliability": _reliability(real_returns),
    }


def correlation_scalars(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The plain numbers of a :func:`dream_real_correlation` result, for ``metrics.jsonl``; None where there is none."""
    scalars = {name: value for name, value in result.items() if value is None or isinstance(value, (int, float))}
    scalars |= {f"{name.replace(' ', '_')}_rho": group["rho"] for name, group in result["groups"].items()}
    return {name: None if value is None else float(value) for name, value in scalars.items()}


def _returns(name: str, returns: Tensor, candidates: int) -> NDArray[np.float64]:
    array = torch.as_tensor(returns).detach().to("cpu", torch.float64).numpy()
    if array.ndim != 2 or array.shape[0] != candidates or array.shape[1] < 1:
        raise ValueError(f"{name} must return a tensor [{candidates}, E], but its shape was {list(array.shape)}")
    return array


def _means(returns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean return of each candidate [P]; -inf, the worst rank, where any episode is not finite."""
    means = np.full(returns.shape[0], -np.inf)
    finite = np.isfinite(returns).all(axis=1)
    means[finite] = returns[finite].mean(axis=1)
    return means


def _with_interval(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    strata: Sequence[NDArray[np.int64]],
    resamples: int,
    generator: np.random.Generator,
) -> dict[str, Any]:
    members = np.concatenate(strata)
    nothing = float("nan")
    if members.size < 2:
        return {"rho": nothing, "low": nothing, "high": nothing, "controllers": int(members.size)}
    rhos = np.empty(resamples)
    for i in range(resamples):
        drawn = np.concatenate([generator.choice(stratum, stratum.size) for stratum in strata])
        rhos[i] = spearman(x[drawn], y[drawn])
    rhos = rhos[~np.isnan(rhos)]
    tail = 50 * (1 - _CONFIDENCE)
    low, high = np.percentile(rhos, [tail, 100 - tail]) if rhos.size else (nothing, nothing)
    rho = spearman(x[members], y[members])
    return {"rho": rho, "low": float(low), "high": float(high), "controllers": int(members.size)}


def _reliability(returns: NDArray[np.float64]) -> float | None:
    if returns.shape[1] < 2:
        return None
    half = spearman(_means(returns[:, 0::2]), _means(returns[:, 1::2]))
    return max(0.0, 2 * half / (1 + half)) if half > -1 else 0.0


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
