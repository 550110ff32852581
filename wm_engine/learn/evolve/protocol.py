"""The ask/tell protocol that every optimiser of wm_engine speaks, and the ranking they share.

An optimiser proposes a population (``ask``), learns what each candidate was worth (``tell``, greater is better) and
moves its distribution. Only the order of the returns matters, so a monotone change of the reward changes nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from wm_engine.checks import check_device, check_float, check_int

_log = logging.getLogger(__name__)

Returns: TypeAlias = Tensor | np.ndarray | Sequence[float]
State: TypeAlias = tuple[dict[str, Tensor], dict[str, Any]]

# Far outside what a search needs; they keep a diverging or collapsing distribution inside floating-point range.
_LEAST_STD, _GREATEST_STD = 1e-15, 1e15

LEAST_SIGMA, GREATEST_SIGMA = 1e-12, 1e12
"""The first step sizes that a configuration may name: at its bounds, their distribution still fits into float32."""

# What a search takes is wider: the distribution that one of those has come to is another search's beginning.
_LEAST_BEGINNING, _GREATEST_BEGINNING = 1e-30, 1e30

# Within these, variances are still float64.
LEAST_AXIS, GREATEST_AXIS = 1e-150, 1e150

WITHOUT_FLOAT64 = ("mps",)
"""Kinds of device that have no float64."""


class Optimizer(Protocol):
    """An evolution strategy over real vectors of length D with a population of P."""

    @property
    def dimension(self) -> int:
        """D."""

    @property
    def popsize(self) -> int:
        """P."""

    @property
    def generation(self) -> int:
        """Generations told so far."""

    @property
    def mean(self) -> Tensor:
        """The distribution's mean, float64 [D]."""

    @property
    def sigma(self) -> float:
        """The global step size."""

    @property
    def distribution(self) -> Distribution:
        """The distribution that the next generation is drawn from; a new optimiser may begin with it."""

    @property
    def last_ranking(self) -> Ranking | None:
        """The ranking of the latest ``tell``; None before the first."""

    def ask(self) -> Tensor:
        """The candidates of the current generation, float64 [P, D]; asked again before ``tell``, the same ones."""

    def tell(self, returns: Returns) -> None:
        """Rank the candidates by ``returns`` [P], greater is better, and update the distribution.

        Non-finite returns rank worst. Raises ValueError for another shape, TypeError for what is no vector of numbers,
        RuntimeError where nothing was asked.
        """

    def state(self) -> State:
        """Everything that a continued run needs, as (tensors, JSON-able values), taken between generations."""


@dataclass(frozen=True)
class Distribution:
    """A normal distribution over [D], as plain arrays: N(mean, sigma²·L·Lᵀ).

    mean : float64 [D]; sigma : the step size
    factor : L, float64: [D, D] lower triangular, [D] the diagonal of a diagonal one, or None for the identity

    Searches drift along σ·s and L/s, which say the same: as they give it away, L's longest row is within 2^±8, so that
    σ is within what another search may begin with.
    """

    mean: Tensor
    sigma: float
    factor: Tensor | None = None

    @classmethod
    def balanced(cls, mean: Tensor, sigma: float, factor: Tensor) -> Distribution:
        """The same with a longest row within 2^±8."""
        scale = surplus(float(torch.linalg.vector_norm(factor.reshape(len(factor), -1), dim=1).max()), bits=8)
        return cls(mean, sigma * scale, factor / scale)

    def tensors(self) -> dict[str, Tensor]:
        """The arrays by name; :meth:`of` reads them back."""
        named = {"mean": self.mean, "sigma": torch.tensor(self.sigma, dtype=torch.float64)}
        return named | ({} if self.factor is None else {"factor": self.factor})

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Distribution:
        """The distribution whose ``tensors()`` these were; KeyError where one is missing."""
        return cls(tensors["mean"], float(tensors["sigma"]), tensors.get("factor"))


@dataclass(frozen=True)
class Ranking:
    """The order of a generation. ``order`` int64 [P]: candidates, best first; ``nonfinite``: how many returns were not
    finite; ``flat``: of those that were, no two differed."""

    order: np.ndarray
    nonfinite: int
    flat: bool


def rank(returns: Returns, popsize: int, seed: int, generation: int) -> Ranking:
    """Order the candidates by ``returns`` [P], greater is better, non-finite last.

    Ties are broken at random, by a generator keyed with (seed, generation): candidates are not all alike in their index
    (some strategies put special samples first), and under a flat return a fixed order would drive the distribution
    away, while a random one leaves it where it is on average.
    """
    values = _as_vector(returns, popsize)
    finite = np.isfinite(values)
    told_apart = len(np.unique(values[finite])) > 1
    values = np.where(finite, values, -np.inf)
    shuffled = np.random.default_rng((seed, generation, 1)).permutation(popsize)
    order = shuffled[np.argsort(-values[shuffled], kind="stable")]
    return Ranking(order=order, nonfinite=int(popsize - finite.sum()), flat=not told_apart)


def _as_vector(returns: Returns, popsize: int) -> np.ndarray:
    values = _as_numbers(returns, f"returns must be {popsize} numbers, but were")
    if values.shape != (popsize,):
        raise ValueError(f"returns must have shape [{popsize}], one a candidate, but had {list(values.shape)}")
    return values


def _as_numbers(given: Any, complaint: str) -> np.ndarray:
    """Real numbers as a float64 array; else a TypeError of ``complaint`` and what they were.

    Left to NumPy, "1" and None would count as numbers, and an imaginary part would go without a word.
    """
    try:
        if isinstance(given, Tensor):
            plain = given.detach().cpu()
            # NumPy has no bfloat16.
            values = (plain.double() if plain.is_floating_point() else plain).numpy()
        else:
            values = np.asarray(given)
        if values.dtype == object and all(isinstance(each, Real) for each in values.flat):
            values = values.astype(np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{complaint} {type(given).__name__} ({error})") from error
    if values.dtype.kind not in "fiu":
        raise TypeError(f"{complaint} {type(given).__name__} of {values.dtype}")
    return values.astype(np.float64)


def check_start(x0: Any, sigma: Any, popsize: Any, seed: Any) -> tuple[np.ndarray, float, int, int]:
    """The checked arguments that every optimiser starts from: x0 float64 [D], sigma, popsize, seed."""
    mean = _as_numbers(x0, "x0 must be D numbers, but was")
    if mean.ndim != 1 or mean.size < 2:
        raise ValueError(f"x0 must have shape [D] with D of at least 2, but had {list(mean.shape)}")
    if not np.isfinite(mean).all():
        raise ValueError(
            f"x0 must be finite, but {int((~np.isfinite(mean)).sum())} of its {mean.size} entries were not"
        )
    step = check_float("sigma", sigma, least=0.0, most=_GREATEST_BEGINNING)
    if step < _LEAST_BEGINNING:
        raise ValueError(f"sigma must be greater than 0, at least {_LEAST_BEGINNING:g}, but was {step:g}")
    return mean, step, check_int("popsize", popsize, least=4), check_int("seed", seed, least=0)


def check_home(device: Any) -> torch.device:
    """The device that a float64 state is to live on; ValueError where it is not here, or knows no float64."""
    home = check_device("device", device)
    if home.type in WITHOUT_FLOAT64:
        raise ValueError(f"device must know float64, but was {str(home)!r}: the CPU can take its place")
    return home


def check_factor(factor: Tensor, dimension: int, diagonal_only: bool = False) -> Tensor:
    """A distribution's factor, float64 with its own memory, checked; ValueError where it is none for ``dimension``."""
    if not factor.is_floating_point():
        raise TypeError(f"factor must be a floating tensor, but its dtype was {factor.dtype}")
    shapes = [[dimension]] if diagonal_only else [[dimension], [dimension, dimension]]
    if list(factor.shape) not in shapes:
        raise ValueError(f"factor must have shape {' or '.join(map(str, shapes))}, but had {list(factor.shape)}")
    factor = as_float64(factor.detach().cpu())
    axes = factor if factor.dim() == 1 else factor.diagonal()
    lower = factor.dim() == 1 or torch.equal(factor, factor.tril())
    if not (lower and bool(torch.isfinite(factor).all()) and bool((axes > 0).all())):
        raise ValueError("factor must be finite, lower triangular, with a diagonal above 0, but was not")
    least, greatest = float(axes.min()), float(factor.abs().max())
    if least < LEAST_AXIS or greatest > GREATEST_AXIS:
        raise ValueError(
            f"factor must lie within {LEAST_AXIS:g} and {GREATEST_AXIS:g}, but went from {least:g} to {greatest:g}"
        )
    return factor


def held_std(std: float, first_sigma: float) -> float:
    """The largest standard deviation of a coordinate, within 10^±15 times the first step size; logged where it was not.

    One that is not a number counts as too large.
    """
    least, greatest = _LEAST_STD * first_sigma, _GREATEST_STD * first_sigma
    if least <= std <= greatest:
        return std
    _log.warning("CMA-ES: the largest standard deviation, %g, is held within [%g, %g]", std, least, greatest)
    return least if std < least else greatest


def surplus(length: float, bits: int) -> float:
    """The power of two at or just below ``length``, where it is beyond 2^±bits; else 1.

    A factor of a distribution may be divided by it, and its step size multiplied, without a change of any bit drawn.
    """
    if not 0.0 < length < math.inf:
        return 1.0
    power = math.frexp(length)[1] - 1
    return 1.0 if abs(power) <= bits else math.ldexp(1.0, power)


def as_float64(values: np.ndarray | Tensor) -> Tensor:
    """A float64 tensor with its own memory."""
    if isinstance(values, Tensor):
        return values.to(torch.float64, copy=True)
    return torch.from_numpy(np.array(values, dtype=np.float64))
