"""M without a mixture: an LSTM that predicts the mean of the next latent, by least squares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from wm_engine.checks import flag_of
from wm_engine.models.mdn_rnn import MDNRNN, RecurrentSettings
from wm_engine.ops.mdn import LOG_STD_LIMIT, MixtureHead


class LSTMSettings(RecurrentSettings):
    """Settings of the LSTM: none of its own."""

    kind: Literal["lstm"] = "lstm"


class LSTM(MDNRNN):
    """Predicts the next latent's mean, the reward and the end: the MDN-RNN of one component whose width is not learnt.

    Least squares is the likelihood of a Gaussian of width 1, up to a constant (Bishop 1994), which is what :meth:`loss`
    and :meth:`predict` take. A dream takes the mean, for a Gaussian as narrow as a head can be: exp(-7) = 0.0009 in
    units of z, and nothing at a temperature of 0. So every backend that dreams the MDN-RNN dreams this one.

    Parameters
    ----------
    latent : Z; action : A; hidden : H
    residual : the mean is of the change of the latent, z' - z
    """

    Settings = LSTMSettings
    SIZES: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        "latent": int, "action": int, "hidden": int, "residual": flag_of,
    }  # fmt: skip
    SIZES_OF_OLD: ClassVar[Mapping[str, str]] = {}

    def __init__(self, latent: int = 32, action: int = 3, hidden: int = 256, residual: bool = False) -> None:
        super().__init__(latent, action, hidden, mixtures=1, mixture="shared", residual=residual)
        with torch.no_grad():
            widths = slice(1 + latent, 1 + 2 * latent)  # behind one component's logit and its means
            self.head.weight[widths] = 0.0
            self.head.bias[widths] = -LOG_STD_LIMIT

    def split(self, head: Tensor) -> MixtureHead:
        """Take heads [..., N] apart, the width 1: that of the dreams gets no gradient, and stays as it is."""
        parts = super().split(head)
        return replace(parts, log_stds=torch.zeros_like(parts.log_stds))


world_model = LSTM
