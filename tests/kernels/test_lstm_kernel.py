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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_saturated_gates_stay_finite_and_nan_stays_nan(precision: str) -> None:
    # One input of 1 to four units' gates of all signs, far beyond where exponentials overflow; the last unit's is NaN.
    dtype, hidden = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision], 17
    gates = torch.tensor([-1e4, -300.0, 300.0, 1e4]).to(dtype)
    signs = torch.cartesian_prod(*[gates] * 4)[:: 4**4 // 16][: hidden - 1].T  # [4 gates, units]
    weight_ih = torch.cat([signs, torch.full((4, 1), torch.nan, dtype=dtype)], dim=1).reshape(-1, 1)
    weight_hh, bias = torch.zeros(4 * hidden, hidden, dtype=dtype), torch.zeros(4 * hidden, dtype=dtype)
    x, h, c = torch.ones(3, 1, dtype=dtype), torch.zeros(3, hidden, dtype=dtype), torch.full((3, hidden), 0.75)
    wide = [part.double() for part in (x, h, c, weight_ih, weight_hh, bias)]
    packed = lstm.pack_gates(weight_ih.to(DEVICE), weight_hh.to(DEVICE), bias.to(DEVICE), 16)
    got = lstm.lstm_step(x.to(DEVICE), h.to(DEVICE), c.to(DEVICE), packed, dot=DOT)
    peer = reference.lstm_step(x, h, c, weight_ih, weight_hh, bias)
    for name, value, want, beside in zip(("h", "c"), got, reference.lstm_step(*wide), peer, strict=True):
        assert value[:, -1].isnan().all()
        check(name, value[:, :-1], want[:, :-1], beside[:, :-1], precision)


def test_what_does_not_agree_is_refused() -> None:
    packed = lstm.pack_gates(torch.zeros(8, 3), torch.zeros(8, 2), torch.zeros(8), 16)
    with pytest.raises(ValueError, match="must agree"):
        lstm.lstm_step(torch.zeros(2, 40), torch.zeros(2, 2), torch.zeros(2, 2), packed)
