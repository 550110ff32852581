from __future__ import annotations

import numpy as np
import pytest
import torch
from checker import check
from kernel_device import DEVICE, DOT, needs_device
from oracle import Oracle

from wm_engine.ops import lstm as reference

pytest.importorskip("triton", minversion="3.2", reason="Triton is not installed")
from wm_engine.kernels import lstm

pytestmark = needs_device


@pytest.mark.parametrize(("batch", "inputs", "hidden"), [(1, 1, 1), (5, 7, 3), (17, 35, 33), (40, 4, 64)])
@pytest.mark.parametrize(("precision", "dot"), [("fp32", "ieee"), ("fp32", DOT), ("bf16", DOT), ("fp16", DOT)])
def test_step_is_the_oracles(batch: int, inputs: int, hidden: int, precision: str, dot: str) -> None:
    generator = torch.Generator().manual_seed(0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    shapes = [(4 * hidden, inputs), (4 * hidden, hidden), (4 * hidden,), (batch, inputs), (batch, hidden)]
    weight_ih, weight_hh, bias, x, h = ((torch.randn(shape, generator=generator) * 0.5).to(dtype) for shape in shapes)
    c = torch.randn(batch, hidden, generator=generator)

    weights = {"weight_ih_l0": weight_ih, "weight_hh_l0": weight_hh, "bias_ih_l0": bias, "bias_hh_l0": bias * 0}
    oracle = Oracle(
        {f"lstm.{k}": v.double().numpy() for k, v in weights.items()}, 1, 1, hidden, 1, "shared", "z", "tanh"
    )
    rows = [oracle.lstm(x[i].double().numpy(), h[i].double().numpy(), c[i].double().numpy()) for i in range(batch)]
    peer = reference.lstm_step(x, h, c, weight_ih, weight_hh, bias)

    packed = lstm.pack_gates(weight_ih.to(DEVICE), weight_hh.to(DEVICE), bias.to(DEVICE), 16)
    out = (torch.full_like(h, torch.nan, device=DEVICE), torch.full_like(c, torch.nan, device=DEVICE))
    lstm.lstm_step(x.to(DEVICE), h.to(DEVICE), c.to(DEVICE), packed, out, dot=dot)
    for name, value, beside, i in zip(("h", "c"), out, peer, (0, 1), strict=True):
        check(name, value, np.stack([row[i] for row in rows]), beside, precision)


def test_what_does_not_agree_is_refused() -> None:
    packed = lstm.pack_gates(torch.zeros(8, 3), torch.zeros(8, 2), torch.zeros(8), 16)
    with pytest.raises(ValueError, match="must agree"):
        lstm.lstm_step(torch.zeros(2, 40), torch.zeros(2, 2), torch.zeros(2, 2), packed)
