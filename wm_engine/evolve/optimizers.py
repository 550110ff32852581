"""Which optimiser: by name for a new one, from its state for one that goes on."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from wm_engine.checks import check_choice
from wm_engine.errors import CorruptFileError
from wm_engine.evolve.protocol import Optimizer
from wm_engine.evolve.pycma import PycmaES

OPTIMIZERS: dict[str, type[PycmaES]] = {"pycma": PycmaES}


def make_optimizer(name: str, x0: Any, sigma: float, popsize: int, seed: int = 0) -> Optimizer:
    """The optimiser of that name around x0 [D]; ``auto`` takes the fastest of equal quality for (D, P)."""
    check_choice("optimizer", name, ("auto", *OPTIMIZERS))
    if name == "auto":
        name = "pycma"
    return OPTIMIZERS[name](x0, sigma, popsize, seed)


def restore_optimizer(tensors: dict[str, Tensor], values: dict[str, Any]) -> Optimizer:
    """The optimiser whose ``state()`` this was."""
    kind = values.get("kind")
    if kind not in OPTIMIZERS:
        raise CorruptFileError(f"the optimiser's state names kind {kind!r}; known are {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[kind].from_state(tensors, values)
