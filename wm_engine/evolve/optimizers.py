"""Which optimiser: by name for a new one, from its state for one that goes on."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from wm_engine.checks import check_choice
from wm_engine.errors import CorruptFileError
from wm_engine.evolve.cmaes import BatchedCMAES
from wm_engine.evolve.protocol import Optimizer
from wm_engine.evolve.pycma import PycmaES

OPTIMIZERS: dict[str, type[PycmaES] | type[BatchedCMAES]] = {"pycma": PycmaES, "batched": BatchedCMAES}

# Both are of equal quality, and the batched one is the faster at every size measured (docs/evolution.md). Below this
# the optimiser is a small part of a generation's time, so the reference implementation keeps the small runs.
BATCHED_FROM = 128


def make_optimizer(
    name: str, x0: Any, sigma: float, popsize: int, seed: int = 0, *, factor: Tensor | None = None
) -> Optimizer:
    """The optimiser of that name around x0 [D]; ``auto`` takes ``pycma`` below a popsize of 128, else ``batched``.

    ``factor``: of the first distribution; None: the identity.
    """
    check_choice("optimizer", name, ("auto", *OPTIMIZERS))
    if name == "auto":
        name = "pycma" if popsize < BATCHED_FROM else "batched"
    return OPTIMIZERS[name](x0, sigma, popsize, seed, factor=factor)


def restore_optimizer(tensors: dict[str, Tensor], values: dict[str, Any]) -> Optimizer:
    """The optimiser whose ``state()`` this was. CorruptFileError where no optimiser says so."""
    kind = values.get("kind")
    if kind not in OPTIMIZERS:
        raise CorruptFileError(f"the optimiser's state names kind {kind!r}; known are {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[kind].from_state(tensors, values)
