"""evosax's CMA-ES (Lange 2022, "evosax: JAX-based Evolution Strategies", arXiv:2212.04180), as a peer of ours.

evosax is in no extra, for it brings flax and what flax needs: ``pip install evosax``.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import numpy as np
import torch
from torch import Tensor


def installed() -> bool:
    """Whether the peer can be had here."""
    return importlib.util.find_spec("evosax") is not None


@functools.cache
def _strategy(dimension: int, popsize: int) -> Any:
    """One for all runs of a size: evosax compiles its functions for each."""
    import jax.numpy as jnp
    from evosax.algorithms import CMA_ES

    return CMA_ES(population_size=popsize, solution=jnp.zeros(dimension))


class EvosaxCMAES:
    """``evosax.algorithms.CMA_ES`` with its own defaults: float32, an eigendecomposition at every ``ask``, compiled.

    x0 : [D], the first mean; sigma : the first step size; popsize : P; seed : of JAX's generator
    """

    def __init__(self, x0: Tensor, sigma: float, popsize: int, seed: int = 0) -> None:
        import jax
        import jax.numpy as jnp

        self.dimension, self.popsize = len(x0), popsize
        self._strategy = _strategy(self.dimension, popsize)
        self._parameters = self._strategy.default_params.replace(std_init=jnp.asarray(sigma, jnp.float32))
        self._key = jax.random.key(seed)
        self._state = self._strategy.init(self._next_key(), jnp.asarray(x0.numpy(), jnp.float32), self._parameters)
        self._asked: Any = None

    @property
    def mean(self) -> Tensor:
        """The distribution's mean, float64 [D]."""
        return torch.from_numpy(np.array(self._state.mean, np.float64))

    def ask(self) -> Tensor:
        """The next candidates, float64 [P, D]."""
        self._asked, self._state = self._strategy.ask(self._next_key(), self._state, self._parameters)
        return torch.from_numpy(np.array(self._asked, np.float64))

    def tell(self, returns: Tensor) -> None:
        """Learn what the candidates were worth: [P], greater is better."""
        import jax
        import jax.numpy as jnp

        costs = jnp.asarray(-returns.numpy(), jnp.float32)
        self._state, _ = self._strategy.tell(self._next_key(), self._asked, costs, self._state, self._parameters)
        jax.block_until_ready(self._state)  # or the work would be done on a later caller's clock

    def _next_key(self) -> Any:
        import jax

        self._key, key = jax.random.split(self._key)
        return key
