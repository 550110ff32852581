"""Confidence intervals of means that few values are known of, such as a training's over its seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
_NODES = 256
# Quantiles at 95 % lie below this at every number of degrees of freedom.
_MOST = 64.0


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; ``low`` and ``high`` are None where one value alone cannot say how values differ."""

    mean: float
    low: float | None
    high: float | None


def student_interval(values: Sequence[float]) -> Interval:
    """Return the mean of N independent values with its 95 % interval: mean ± t · s / sqrt(N) (Student 1908).

    It holds exactly where values are normal, and is wide where they are few, as it should be: at N = 2 the half width
    is 9 standard deviations. ValueError where there is no value.
    """
    if not len(values):
        raise ValueError("values must hold at least one number, but was empty")
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) == 1:
        return Interval(mean, None, None)
    half = student_quantile(len(array) - 1) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return Interval(mean, mean - half, mean + half)


def student_quantile(freedom: int) -> float:
    """Return t with P(|T| <= t) = 0.95, for T of Student's distribution with ``freedom`` degrees of freedom.

    The density ``c · (1 + x²/n)^(-(n+1)/2)`` is integrated by Gauss and Legendre's rule, and t found by bisection.
    """
    n = freedom
    scale = math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2)) / math.sqrt(n * math.pi)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)

    def within(t: float) -> float:
        x = 0.5 * t * (nodes + 1.0)
        return t * scale * float(weights @ (1.0 + x * x / n) ** (-(n + 1) / 2))

    low, high = 0.0, _MOST
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if within(middle) < CONFIDENCE else (low, middle)
    return high
