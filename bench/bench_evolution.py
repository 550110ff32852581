"""Ask and tell of both optimisers at the paper's controller size, by population."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from wm_engine.learn.evolve import Optimizer, make_optimizer

_DIMENSION = 867


@pytest.mark.parametrize("popsize", [64, 1024, 4096])
@pytest.mark.parametrize(
    ("kind", "device"),
    [
        ("pycma", "cpu"),
        ("batched", "cpu"),
        pytest.param("batched", "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")),
    ],
)
def test_generation(benchmark: Any, kind: str, device: str, popsize: int) -> None:
    optimizer: Optimizer = make_optimizer(kind, torch.zeros(_DIMENSION), 0.1, popsize, device=device)
    returns = torch.randn(popsize, generator=torch.Generator().manual_seed(0))

    def generation() -> None:
        optimizer.ask()
        optimizer.tell(returns)  # ends with a number that the CPU waits for, on a GPU too

    benchmark.group = f"ask + tell, D = {_DIMENSION}, P = {popsize}"
    benchmark.pedantic(generation, rounds=6, warmup_rounds=1)
