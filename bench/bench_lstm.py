"""One LSTM step of 1,024 rollouts at the paper's size (35 inputs, 256 units), beside its bare products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from wm_engine import kernels
from wm_engine.machine import available_cpus
from wm_engine.ops.lstm import lstm_step

from .check import check_values
from .peers import torch_compile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, INPUTS, HIDDEN = 1024, 35, 256
_REPEATS = 20
# The kernels' sizes for float32: they fit every GPU that `python -m wm_engine.kernels.aot` compiles for.
_UNITS, _DOT = 8, "ieee" if torch.version.hip else "tf32x3"
_MISSING = {
    "torch.compile": torch_compile.missing(DEVICE),
    "wm_engine kernel": kernels.missing() if DEVICE == "cuda" else "no GPU",
}


def _arguments(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (BATCH, INPUTS),
        (BATCH, HIDDEN),
        (BATCH, HIDDEN),
        (4 * HIDDEN, INPUTS),
        (4 * HIDDEN, HIDDEN),
        (4 * HIDDEN,),
    )
    scales = (1.0, 0.5, 0.5, 0.1, 0.1, 0.1)
    return [
        (scale * torch.randn(shape, generator=generator)).to(DEVICE, dtype)
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def _cell(arguments: list[Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    inputs, h, c, weight_ih, weight_hh, bias = arguments
    cell = nn.LSTMCell(INPUTS, HIDDEN, device=DEVICE)
    state = {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias, "bias_hh": torch.zeros_like(bias)}
    cell.load_state_dict(state)
    return lambda: cell(inputs, (h, c))


def _kernel(arguments: list[Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    from wm_engine.kernels import lstm

    inputs, h, c, weight_ih, weight_hh, bias = arguments
    packed = lstm.pack_gates(weight_ih, weight_hh, bias, _UNITS)
    return lambda: lstm.lstm_step(inputs, h, c, packed, dot=_DOT)


def _rival(name: str, arguments: list[Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    if name == "nn.LSTMCell":
        return _cell(arguments)
    if name == "wm_engine kernel":
        return _kernel(arguments)
    step = torch.compile(lstm_step, dynamic=False) if name == "torch.compile" else lstm_step
    return lambda: step(*arguments)


@pytest.mark.parametrize("name", ["torch", "nn.LSTMCell", "torch.compile", "wm_engine kernel", "bare matrix products"])
@torch.inference_mode()
def test_step(name: str, time_rate) -> None:
    if _MISSING.get(name):
        pytest.skip(f"{name}: {_MISSING[name]}")
    torch.set_num_threads(available_cpus())
    arguments = _arguments(torch.float32)
    if name == "bare matrix products":
        inputs, h, _, weight_ih, weight_hh, _ = arguments
        joined, weight = torch.cat([inputs, h], dim=1), torch.cat([weight_ih, weight_hh], dim=1).T.contiguous()
        out = torch.empty(BATCH, 4 * HIDDEN, device=DEVICE)
        step: Callable[[], object] = lambda: torch.mm(joined, weight, out=out)  # noqa: E731
    else:
        rival = _rival(name, arguments)
        check_values(name, rival(), lstm_step(*_arguments(torch.float64)), lstm_step(*arguments))
        step = rival

    def run() -> None:
        for _ in range(_REPEATS):
            step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    time_rate(run, _REPEATS * BATCH, "steps", f"lstm step, B={BATCH}, {DEVICE}", name)
