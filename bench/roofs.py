"""The machine's roofs, measured: multiply-adds a second, bytes a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from wm_engine.dream.torch_backend import DTYPES

from .ceiling import instruction_peak

_SIDE = {"cpu": 1024, "cuda": 8192}
_MEMORY_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}
_CACHED_BYTES = 256 << 10
_TRIES = 9


@dataclass(frozen=True)
class Roofs:
    """flops : a second, of multiply-adds on registers alone; where that cannot be measured, of a large square matrix
        product; None where torch has none at the precision
    memory : bytes a second of a large copy, read and written
    cache : the same of a copy that fits one core's own cache, times the threads; None on a GPU
    """

    flops: float | None
    memory: float
    cache: float | None


def measure_roofs(device: str, precision: str, threads: int) -> Roofs:
    """The best of some tries each: a roof is what the machine can do, not what it mostly does."""
    peak = instruction_peak(precision, threads) if device == "cpu" else None
    flops = _matmul(device, precision) if peak is None else peak[1] / _best(peak[0], device)
    return Roofs(flops, _copy(device), _cached_copy(threads) if device == "cpu" else None)


def _best(run: Callable[[], object], device: str) -> float:
    def once() -> float:
        began = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(_TRIES))


def _matmul(device: str, precision: str) -> float | None:
    if precision not in DTYPES:
        return None
    side = _SIDE.get(device, 2048)
    left, right = (torch.randn(side, side).to(device, DTYPES[precision]) for _ in range(2))
    out = torch.empty_like(left)
    return 2.0 * side**3 / _best(lambda: torch.mm(left, right, out=out), device)


def _copy(device: str) -> float:
    source = torch.zeros(_MEMORY_BYTES.get(device, 64 << 20), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.numel() / _best(lambda: target.copy_(source), device)


def _cached_copy(threads: int) -> float:
    source = np.zeros(_CACHED_BYTES, dtype=np.uint8)
    target = np.empty_like(source)
    times = 200

    def run() -> None:
        for _ in range(times):
            np.copyto(target, source)

    return threads * 2.0 * times * _CACHED_BYTES / _best(run, "cpu")
