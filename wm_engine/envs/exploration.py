"""Random action plans that get somewhere: smooth walks, held choices, and the noise they are made of."""

from __future__ import annotations

import numpy as np

from wm_engine.spaces import Box, Discrete


def random_walk(rng: np.random.Generator, steps: int, size: int, memory: float = 10.0) -> np.ndarray:
    """Draw an Ornstein-Uhlenbeck walk, float64 [steps, size], of mean 0 and standard deviation 1.

    ``memory``: after so many steps a share of 1/e of where it was is left.
    """
    keep = np.exp(-1.0 / memory)
    kicks = np.sqrt(1.0 - keep * keep) * rng.standard_normal((steps, size))
    walk = np.empty((steps, size))
    state = rng.standard_normal(size)
    for step in range(steps):
        walk[step] = state
        state = keep * state + kicks[step]
    return walk


def held_spans(rng: np.random.Generator, steps: int, mean_span: float) -> np.ndarray:
    """Number the spans of a plan: for each of ``steps`` steps its span, int64 [steps].

    Spans last ``mean_span`` steps on average (geometric).
    """
    return np.cumsum(rng.random(steps) < 1.0 / mean_span)


def box_actions(rng: np.random.Generator, steps: int, space: Box) -> np.ndarray:
    """Walk smoothly over a whole box of actions, float32 [steps, A]."""
    low, high = space.bounds
    walk = random_walk(rng, steps, space.size)
    return space.clip(0.5 * (low + high) + 0.5 * (high - low) * walk)


def discrete_actions(rng: np.random.Generator, steps: int, space: Discrete) -> np.ndarray:
    """Hold random actions for a while each, as one-hot vectors float32 [steps, A].

    How long is drawn for every plan anew, 1 to 16 steps on average: some tasks punish haste, others patience.
    """
    spans = held_spans(rng, steps, mean_span=float(2.0 ** rng.uniform(0.0, 4.0)))
    choices = rng.integers(space.count, size=int(spans[-1]) + 1 if steps else 0)
    return space.from_stored(choices[spans].astype(np.int32))
