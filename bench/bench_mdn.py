"""The mixture's loss with its gradients, and its sampling, at a training batch of the paper's size: 3,200 x 32 x 5."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from wm_engine.machine import available_cpus
from wm_engine.ops import mdn, registered
from wm_engine.rng import StepDraws

from .check import check_draws, check_values
from .peers import torch_compile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, LATENT, MIXTURES = 3200, 32, 5
_REPEATS = 20

_LOSSES = {"torch": mdn.mdn_nll, "torch.compile": mdn.mdn_nll, "wm_engine operator": registered.mdn_nll}
_NO_COMPILER = torch_compile.missing(DEVICE)


def _head(mixture: str, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    choices = 1 if mixture == "shared" else LATENT
    shapes = ((BATCH, choices, MIXTURES), (BATCH, LATENT, MIXTURES), (BATCH, LATENT, MIXTURES), (BATCH, LATENT))
    parts = [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]
    return [part.requires_grad_() for part in parts]


def _step(loss: Callable[..., Tensor], head: Sequence[Tensor]) -> tuple[Tensor, ...]:
    value = loss(*head)
    return (value, *torch.autograd.grad(value.mean(), head))


@pytest.mark.parametrize("mixture", mdn.MIXTURES)
@pytest.mark.parametrize("name", _LOSSES)
def test_loss(name: str, mixture: str, time_rate) -> None:
    if name == "torch.compile" and _NO_COMPILER:
        pytest.skip(_NO_COMPILER)
    torch.set_num_threads(available_cpus())
    loss = torch.compile(mdn.mdn_nll, dynamic=False) if name == "torch.compile" else _LOSSES[name]
    head, exact = _head(mixture, torch.float32), _head(mixture, torch.float64)
    check_values(name, _step(loss, head), _step(mdn.mdn_nll, exact), _step(mdn.mdn_nll, head))

    def run() -> None:
        for _ in range(_REPEATS):
            _step(loss, head)
        _finish()

    time_rate(run, _REPEATS * BATCH, "targets", f"mdn_nll forward and backward, {mixture}, {DEVICE}", name)


@pytest.mark.parametrize("mixture", mdn.MIXTURES)
@pytest.mark.parametrize("name", ["torch", "wm_engine operator"])
def test_sample(name: str, mixture: str, time_rate) -> None:
    """Both draw the contract's numbers: the reference first makes them with ``StepDraws``."""
    torch.set_num_threads(available_cpus())
    logits, means, log_stds, _ = (part.detach() for part in _head(mixture, torch.float32))
    episodes = torch.arange(BATCH, device=DEVICE)
    counters = torch.stack([torch.full_like(episodes, 7), episodes, torch.zeros_like(episodes)], dim=-1)

    def reference(dtype: torch.dtype) -> Tensor:
        draws = StepDraws(3, torch.zeros(1, dtype=torch.int64, device=DEVICE), episodes, LATENT, mixture, dtype)
        normals, uniforms, _ = draws.at(7)
        parts = (part.to(dtype) for part in (logits, means, log_stds))
        return mdn.mdn_sample(*parts, uniforms[0], normals[0], 1.0)

    def operator() -> Tensor:
        return registered.mdn_sample(logits, means, log_stds, counters, 3, 1.0)

    sample = operator if name == "wm_engine operator" else lambda: reference(torch.float32)
    check_draws(name, sample(), reference)

    def run() -> None:
        for _ in range(_REPEATS):
            sample()
        _finish()

    time_rate(run, _REPEATS * BATCH, "draws", f"mdn_sample, {mixture}, {DEVICE}", name)


def _finish() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
