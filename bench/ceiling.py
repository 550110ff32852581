"""The machine's ceiling for a dream: its bare matrix products, nothing else, by torch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from wm_engine.dream.torch_backend import DTYPES

from .workload import Setup

NAME = "bare matrix products"


def products(setup: Setup, device: str, precision: str) -> Callable[[], None] | None:
    """All matrix products of a dream in their dense form, on every rollout at once; None where torch has none such.

    A step: ``[B, Z+A+H] x [Z+A+H, 4H]`` and ``[B, H] x [H, N]``. The controller's are under one in a hundred and left
    out. A backend may do with fewer multiply-adds than these (see ``shared`` in docs/benchmarks.md) and so pass the
    ceiling.
    """
    if precision not in DTYPES:
        return None
    work, dtype = setup.workload, DTYPES[precision]
    inputs = torch.randn(work.rollouts, work.latent + work.action + work.hidden).to(device, dtype)
    hidden = inputs[:, : work.hidden].contiguous()
    gates = torch.randn(inputs.shape[1], 4 * work.hidden).to(device, dtype)
    head = torch.randn(work.hidden, setup.m.layout.size).to(device, dtype)
    gate_out = torch.empty(work.rollouts, 4 * work.hidden, device=device, dtype=dtype)
    head_out = torch.empty(work.rollouts, setup.m.layout.size, device=device, dtype=dtype)

    @torch.inference_mode()
    def run() -> None:
        for _ in range(work.steps):
            torch.mm(inputs, gates, out=gate_out)
            torch.mm(hidden, head, out=head_out)
        if device == "cuda":
            torch.cuda.synchronize()

    return run
