"""The batched torch step as it is, operation after operation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..workload import Setup
from .torch_step import Batch

NAME = "torch eager, batched"
DEVICES = ("cpu", "cuda", "mps")
ONE_BY_ONE = False
OWN_NUMBERS = False


def missing(device: str) -> str | None:
    """None: torch is always here."""
    return None


def prepare(setup: Setup, device: str, precision: str) -> Callable[[], Tensor]:
    """See :mod:`bench.peers`."""
    batch = Batch(setup, device, precision)

    @torch.inference_mode()
    def run() -> Tensor:
        return batch.dream(batch.step)

    return run
