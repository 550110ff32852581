"""Ask and tell of both optimisers at the paper's controller size, by population."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from wm_engine.evolve import Optimizer, make_optimizer

_DIMENSION = 867


@pytest.mark.parametrize("popsize", [64, 1024, 4096])
@pytest.mark.parametrize("kind", ["pycma", "batched"])
def test_generation(benchmark: Any, kind: str, popsize: int) -> None:
    optimizer: Optimizer = make_optimizer(kind, torch.zeros(_DIMENSION), 0.1, popsize)
    returns = torch.randn(popsize, generator=torch.Generator().manual_seed(0))

    def generation() -> None:
        optimizer.ask()
        optimizer.tell(returns)

    benchmark.group = f"ask + tell, D = {_DIMENSION}, P = {popsize}"
    benchmark.pedantic(generation, rounds=6, warmup_rounds=1)
