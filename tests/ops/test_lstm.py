from __future__ import annotations

import numpy as np
import pytest
import torch
from checker import check
from oracle import Oracle

from wm_engine.ops.lstm import lstm_step


@pytest.mark.parametrize(("batch", "inputs", "hidden"), [(1, 1, 1), (5, 7, 3), (16, 35, 33)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_step_is_the_oracles(batch: int, inputs: int, hidden: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    cell = torch.nn.LSTMCell(inputs, hidden, dtype=torch.float64)
    x, h, c = (torch.randn(batch, n, dtype=torch.float64) * 3 for n in (inputs, hidden, hidden))
    weights = {f"lstm.{name}_l0": value.detach().numpy() for name, value in cell.named_parameters()}
    oracle = Oracle(weights, 1, 1, hidden, 1, "shared", "z", "tanh")
    want = [oracle.lstm(x[i].numpy(), h[i].numpy(), c[i].numpy()) for i in range(batch)]
    bias = cell.bias_ih + cell.bias_hh
    with torch.no_grad():
        got = lstm_step(*(v.to(dtype) for v in (x, h, c, cell.weight_ih, cell.weight_hh, bias)))
        peer = cell.to(dtype)(x.to(dtype), (h.to(dtype), c.to(dtype)))
    for i, name in enumerate(("h", "c")):
        reference = np.stack([pair[i] for pair in want])
        check(name, got[i], reference, peer[i], precision="fp64" if dtype == torch.float64 else "fp32")
