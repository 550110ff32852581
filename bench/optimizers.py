"""A generation's ask and tell at the size of a GPU's dream: BatchedCMAES there, beside itself and pycma on the CPU.

Part of ``python -m bench.gpu``: a dream of 4,096 candidates takes a GPU well under a second, so that an optimiser which
needs as long would be half of every generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from wm_engine.learn.evolve import BatchedCMAES, Optimizer, make_optimizer
from wm_engine.learn.evolve.cmaes import Parameters

from .check import WrongResultError, check_values

DIMENSION, POPULATION = 867, 4096
_GENERATIONS = 3
_REFERENCE = "pycma"

Clock = Callable[[Callable[[], Any]], dict[str, float]]


def contestants(device: str) -> dict[str, tuple[str, str]]:
    """What is timed, by the name in the table: the optimiser's kind and its device."""
    return {
        f"batched, {device}": ("batched", device),
        f"batched, {torch.get_num_threads()} CPU threads": ("batched", "cpu"),
        _REFERENCE: ("pycma", "cpu"),
    }


def generation(
    kind: str, device: str, clock: Clock, dimension: int = DIMENSION, popsize: int = POPULATION
) -> dict[str, Any]:
    """Seconds that ``clock`` finds for an ask and a tell, once a batched optimiser has proved right on that device.

    Raises WrongResultError where it is not, as in :func:`check_generations`.
    """
    if kind == "batched":
        check_generations(device, dimension, popsize)
    optimizer = make_optimizer(kind, torch.zeros(dimension), 0.1, popsize, device=device)
    returns = torch.randn(popsize, generator=torch.Generator().manual_seed(0))

    def ask_and_tell() -> None:
        optimizer.ask()
        optimizer.tell(returns)

    return {"dimension": dimension, "population": popsize, "seconds": clock(ask_and_tell)}


def check_generations(device: str, dimension: int, popsize: int) -> None:
    """Hold some generations on a device to float64, and to themselves a second time.

    The mean's step must be the weighted sum of the best candidates' steps to float32's rounding, and the mean, step
    size and covariance equal to the bit when all is done again. WrongResultError where they are not.
    """
    weights = Parameters.of(dimension, popsize, separable=False).weights.clamp(min=0.0)
    ends = []
    for _ in range(2):
        optimizer: Optimizer = BatchedCMAES(torch.zeros(dimension), 0.1, popsize, variant="full", device=device)
        for number in range(_GENERATIONS):
            before, candidates = optimizer.mean.cpu(), optimizer.ask().cpu()
            optimizer.tell(-((candidates - 1.0) ** 2).sum(dim=1))
            assert optimizer.last_ranking is not None
            steps = candidates[torch.from_numpy(optimizer.last_ranking.order)] - before
            check_values(
                f"generation {number} of batched on {device}",
                [optimizer.mean.cpu() - before],
                [weights @ steps],
                [weights.float() @ steps.float()],
            )
        last = optimizer.distribution
        assert last.factor is not None
        ends.append(torch.cat([last.mean, torch.tensor([last.sigma]), last.factor.flatten()]))
    if not torch.equal(*ends):
        raise WrongResultError(f"batched on {device}: a search done twice gave other bits; no speed is given")


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown lines of :func:`generation`'s rows, each with its name as "optimizer", or why it has no speed."""
    timed = {row["optimizer"]: row["seconds"]["p50"] for row in rows if "seconds" in row}
    reference = timed.get(_REFERENCE)
    lines = [
        "",
        f"| ask and tell, D = {DIMENSION}, P = {POPULATION:,} | ms | pycma's over these |",
        "| --- | --- | --- |",
    ]
    for row in rows:
        name = row["optimizer"]
        if name in timed:
            times = "" if reference is None else f"{reference / timed[name]:.1f}"
            lines.append(f"| {name} | {1e3 * timed[name]:.1f} | {times} |")
        else:
            lines.append(f"| {name} | {row['error']} | |")
    return lines
