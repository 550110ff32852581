"""The batched torch step captured once in a CUDA graph and replayed: no launch costs but the graph's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..workload import Setup
from .torch_step import Batch

NAME = "torch, CUDA graph"
DEVICES = ("cuda",)
ONE_BY_ONE = False
OWN_NUMBERS = False


def missing(device: str) -> str | None:
    """None wherever there is a CUDA device."""
    return None if torch.cuda.is_available() else "no CUDA device"


def prepare(setup: Setup, device: str, precision: str) -> Callable[[], Tensor]:
    """See :mod:`bench.peers`. The state is updated in place; the numbers of a step are copied in before its replay."""
    batch = Batch(setup, device, precision)
    first = batch.first
    with torch.inference_mode():
        state = tuple(value.clone() for value in first)
        numbers = [torch.stack(values) for values in batch.numbers]
        inputs = [values[0].clone() for values in numbers]

        def step() -> None:
            for old, new in zip(state, batch.step(state, *inputs), strict=True):  # type: ignore[arg-type]
                old.copy_(new)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()

    @torch.inference_mode()
    def run() -> Tensor:
        for old, new in zip(state, first, strict=True):
            old.copy_(new)
        for index in range(setup.workload.steps):
            for old, values in zip(inputs, numbers, strict=True):
                old.copy_(values[index])
            graph.replay()
        return state[-1].view(setup.workload.candidates, setup.workload.episodes).cpu()

    return run
