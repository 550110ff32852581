"""The machine's ceilings for a dream: its bare matrix products by torch, and multiply-adds on registers alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from wm_engine.dream.cpp_backend import CppBackend
from wm_engine.dream.torch_backend import DTYPES

from .costs import step_cost
from .workload import Setup

PRODUCTS = "bare matrix products"
PEAK = "instruction peak"

# A tenth of a second: of four milliseconds on an idle machine, waking its processors takes a fifth to a half.
_ROUNDS = 60_000_000


def products(setup: Setup, device: str, precision: str) -> Callable[[], None] | None:
    """All matrix products of a dream in their dense form, on every rollout at once; None where torch has none such.

    A step: ``[B, Z+A+H] x [Z+A+H, 4H]`` and ``[B, H] x [H, N]``. The controller's are under one in a hundred and left
    out.
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


def instruction_peak(precision: str, threads: int) -> tuple[Callable[[], None], float] | None:
    """The C++ core's multiply-adds on registers alone, on every thread: the function, and how many flops a call does.

    None where the core was not built or its level has no instruction for the precision.
    """
    if not CppBackend.available()[0]:
        return None
    core = importlib.import_module("wm_engine._C")
    if precision not in CppBackend.PRECISIONS or core.multiply_adds(precision, 1) == 0:
        return None
    pool = ThreadPoolExecutor(threads)

    def run() -> None:
        for done in [pool.submit(core.multiply_adds, precision, _ROUNDS) for _ in range(threads)]:
            done.result()

    return run, float(threads * core.multiply_adds(precision, 1) * _ROUNDS)


def peak_steps(setup: Setup, precision: str, threads: int) -> tuple[Callable[[], None], float] | None:
    """As :func:`instruction_peak`, in dream steps: flops a call over those that a step of the workload cannot avoid.

    Of the mixture these are the logits and the chosen components.
    """
    peak = instruction_peak(precision, threads)
    if peak is None:
        return None
    run, flops = peak
    return run, flops / step_cost(setup.workload, precision, setup.workload.rollouts).flops
