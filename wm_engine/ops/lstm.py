"""One step of an LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).

The reference takes any float dtype: float64 is the oracle.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def lstm_cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The pointwise half of a step.

    With ``i, f, g, o`` the quarters of ``gates``: ``c' = sigmoid(f) * c + sigmoid(i) * tanh(g)`` and
    ``h' = sigmoid(o) * tanh(c')``.

    Parameters
    ----------
    gates : [..., 4H], pre-activations in torch's order i, f, g, o
    c : [..., H], cell state

    Returns
    -------
    h', c' : [..., H]
    """
    i, f, g, o = gates.chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def lstm_step(
    inputs: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """One step: ``gates = W_ih x + W_hh h + b``, then :func:`lstm_cell`.

    Parameters
    ----------
    inputs : [B, X]
    h, c : [B, H], hidden and cell state
    weight_ih : [4H, X]; weight_hh : [4H, H]; bias : [4H], the sum of torch's two

    Returns
    -------
    h', c' : [B, H], in c's dtype: the products are made in the weights' dtype, the cell is updated in c's
    """
    low = weight_ih.dtype
    gates = F.linear(inputs.to(low), weight_ih, bias) + F.linear(h.to(low), weight_hh)
    return lstm_cell(gates.to(c.dtype), c)
