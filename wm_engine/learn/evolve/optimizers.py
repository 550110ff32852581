"""Which optimiser: by name for a new one, from its state for one that goes on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from wm_engine.checks import check_choice
from wm_engine.errors import CorruptFileError
from wm_engine.learn.evolve.cmaes import BatchedCMAES
from wm_engine.learn.evolve.protocol import WITHOUT_FLOAT64, Optimizer, check_home
from wm_engine.learn.evolve.pycma import PycmaES

OPTIMIZERS: dict[str, type[PycmaES] | type[BatchedCMAES]] = {"pycma": PycmaES, "batched": BatchedCMAES}

_CPU = torch.device("cpu")


def choose_optimizer(
    name: str, device: str | torch.device = "auto", beside: torch.device = _CPU
) -> tuple[str, torch.device]:
    """The name of an optimiser, "pycma" or "batched", and the device that it lives on.

    name : "auto" takes ``batched``, which was the faster of the two from the smallest population on, at every dimension
        measured, and of the same quality (docs/evolution.md); above 5,000 dimensions it learns a diagonal only
    device : "auto" takes ``beside``, the device of the fitness, so that candidates need not leave it; but the CPU for
        ``pycma``, and in place of a device without float64 (MPS)

    Raises ValueError for an unknown name, and for a device that is not here or that the optimiser cannot live on.
    """
    check_choice("optimizer", name, ("auto", *OPTIMIZERS))
    chosen = "batched" if name == "auto" else name
    if device == "auto":
        return chosen, _CPU if chosen == "pycma" or beside.type in WITHOUT_FLOAT64 else beside
    home = check_home(device)
    if chosen == "pycma" and home.type != "cpu":
        raise ValueError(f"device must be 'cpu' for 'pycma' but was {str(home)!r}; 'batched' can live there")
    return chosen, home


def make_optimizer(
    name: str,
    x0: Any,
    sigma: float,
    popsize: int,
    seed: int = 0,
    *,
    factor: Tensor | None = None,
    device: str | torch.device = "cpu",
    sigma_max: float = math.inf,
) -> Optimizer:
    """Make the optimiser around x0 [D] that :func:`choose_optimizer` names, on its device.

    ``factor``: of the first distribution; None: the identity. ``sigma_max``: the largest standard deviation of a
    coordinate; ValueError where pycma, which has no such bound here, is given one.
    """
    name, home = choose_optimizer(name, device)
    if name == "pycma":
        if not math.isinf(sigma_max):
            raise ValueError(f"sigma_max must be infinite with pycma, which is not bounded here, but was {sigma_max:g}")
        return PycmaES(x0, sigma, popsize, seed, factor=factor)
    return BatchedCMAES(x0, sigma, popsize, seed, factor=factor, device=home, sigma_max=sigma_max)


def restore_optimizer(
    tensors: dict[str, Tensor], values: dict[str, Any], device: str | torch.device | None = None
) -> Optimizer:
    """The optimiser whose ``state()`` this was, on ``device``; None: on the device where it was.

    Raises CorruptFileError where no optimiser says that the state is its own, or a part of it is missing; ValueError
    where the device is not here; RunMismatchError where pycma's search cannot be replayed here to the same bits, or the
    state is of another version's making.
    """
    kind = values.get("kind")
    if kind not in OPTIMIZERS:
        raise CorruptFileError(f"the optimiser's state names kind {kind!r}; known are {', '.join(OPTIMIZERS)}")
    try:
        return OPTIMIZERS[kind].from_state(tensors, values if device is None else values | {"device": str(device)})
    except KeyError as error:
        raise CorruptFileError(f"the optimiser's state, of kind {kind!r}, lacks {error}") from error
