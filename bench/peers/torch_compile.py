"""The batched torch step, compiled by torch.compile; the loop over the steps stays in Python."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from ..workload import Setup
from .torch_step import Batch

NAME = "torch.compile, batched"
DEVICES = ("cpu", "cuda")
ONE_BY_ONE = False
OWN_NUMBERS = False


def missing(device: str) -> str | None:
    """torch's CPU code generator needs a C++ compiler."""
    if device == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return "torch.compile needs a C++ compiler"
    return None


def prepare(setup: Setup, device: str, precision: str) -> Callable[[], Tensor]:
    """See :mod:`bench.peers`. Compiles at the first run."""
    batch = Batch(setup, device, precision)
    compiled = torch.compile(batch.step, dynamic=False)

    @torch.no_grad()
    def run() -> Tensor:
        return batch.dream(compiled)

    return run
