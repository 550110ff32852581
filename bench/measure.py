"""Times of rivals taken in turn, so that a machine's bad minute falls on all of them alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

_REST = 0.02
"""Seconds before each timed run: OpenMP's threads spin for some milliseconds after their work, whoever comes next."""

WIDE = 0.15
"""A spread (p80 - p20) / median above this says that the machine was busy with something else."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one rival, a number for each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def p20(self) -> float:
        return float(np.percentile(self.seconds, 20))

    @property
    def p80(self) -> float:
        return float(np.percentile(self.seconds, 80))

    @property
    def spread(self) -> float:
        """(p80 - p20) / median."""
        return (self.p80 - self.p20) / self.median


def interleave(
    runs: Mapping[str, Callable[[], object]], rounds: int, seed: int = 0, clock: Callable[[], float] | None = None
) -> dict[str, Timing]:
    """Time every run once a round, in a new order each round, after one untimed call of each.

    clock : seconds; None for the wall clock. ValueError where there is nothing to time.
    """
    clock = clock or time.perf_counter
    if rounds < 1 or not runs:
        raise ValueError(f"rounds and runs must be at least 1, but were {rounds} and {len(runs)}")
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    generator = random.Random(seed)
    for _ in range(rounds):
        generator.shuffle(order)
        for name in order:
            time.sleep(_REST)
            began = clock()
            runs[name]()
            seconds[name].append(clock() - began)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def ratio(fast: Timing, fast_amount: float, slow: Timing, slow_amount: float) -> float:
    """How many times the rate of ``slow`` that of ``fast`` is: the median over rounds of the ratio within a round.

    Within a round both met about the same machine, so this wanders less than the ratio of two medians.
    """
    pairs = zip(fast.seconds, slow.seconds, strict=True)
    return float(np.median([(fast_amount / one) / (slow_amount / other) for one, other in pairs]))
