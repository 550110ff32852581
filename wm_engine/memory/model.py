"""M: an LSTM with a mixture density head (Ha & Schmidhuber 2018, sections 2.2 and A.2), a reward and an end head."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from wm_engine.checks import check_int
from wm_engine.errors import CorruptFileError
from wm_engine.ops.lstm import lstm_step
from wm_engine.ops.mdn import HeadLayout, MixtureHead
from wm_engine.runs import load_tensors, save_tensors

LSTMState = tuple[Tensor, Tensor]


class MDNRNN(nn.Module):
    """Predicts the next latent, the reward and the end of the episode from (z, action, hidden state).

    Parameters
    ----------
    latent : Z; action : A; hidden : H; mixtures : K
    mixture : "shared" (one component choice for the whole vector) | "per_dim" (the paper's: one for every dimension)

    State dict: ``lstm.weight_ih_l0 [4H, Z+A]`` (the input is [z, a]; gates in the order i, f, g, o),
    ``lstm.weight_hh_l0 [4H, H]``, ``lstm.bias_ih_l0``, ``lstm.bias_hh_l0 [4H]``, ``head.weight [N, H]``,
    ``head.bias [N]``, the rows of the head as in :class:`wm_engine.ops.mdn.HeadLayout`.
    """

    def __init__(
        self, latent: int = 32, action: int = 3, hidden: int = 256, mixtures: int = 5, mixture: str = "per_dim"
    ) -> None:
        super().__init__()
        self.latent = check_int("latent", latent, least=1)
        self.action = check_int("action", action, least=1)
        self.hidden = check_int("hidden", hidden, least=1)
        self.mixtures = check_int("mixtures", mixtures, least=1)
        self.mixture = mixture
        self.layout = HeadLayout(latent, mixtures, mixture)
        self.lstm = nn.LSTM(latent + action, hidden)
        self.head = nn.Linear(hidden, self.layout.size)

    def sequence(self, inputs: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        """Run over whole sequences.

        ``inputs [T, B, Z+A]`` and ``state`` (h, c), each [B, H], zero where None, to heads [T, B, N] and (h, c) [B, H].
        """
        packed = None if state is None else (state[0].unsqueeze(0), state[1].unsqueeze(0))
        outputs, (h, c) = self.lstm(inputs, packed)
        return self.head(outputs), (h[0], c[0])

    def step(self, z: Tensor, action: Tensor, state: LSTMState) -> LSTMState:
        """Advance the hidden state alone: z [B, Z], action [B, A], (h, c) [B, H] each, to the next (h, c)."""
        weight_ih, weight_hh, bias_ih, bias_hh = self.lstm.all_weights[0]
        return lstm_step(torch.cat([z, action], dim=-1), *state, weight_ih, weight_hh, bias_ih + bias_hh)

    def split(self, head: Tensor) -> MixtureHead:
        """Take heads [..., N] apart."""
        return self.layout.split(head)

    def initial_state(self, batch: int) -> LSTMState:
        """Zero (h, c), [batch, H] each, on M's device and in its dtype."""
        zeros = self.head.weight.new_zeros(batch, self.hidden)
        return zeros, zeros.clone()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and sizes as safetensors, atomically."""
        sizes = {name: str(getattr(self, name)) for name in ("latent", "action", "hidden", "mixtures", "mixture")}
        save_tensors(path, self.state_dict(), {"kind": "MDNRNN"} | sizes)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MDNRNN:
        """Read back what :meth:`save` wrote. CorruptFileError where the file holds something else."""
        tensors, metadata = load_tensors(path)
        try:
            latent, action, hidden, mixtures = (int(metadata[n]) for n in ("latent", "action", "hidden", "mixtures"))
            model = cls(latent, action, hidden, mixtures, metadata["mixture"])
            model.load_state_dict(tensors)
        except (KeyError, ValueError, RuntimeError) as error:
            raise CorruptFileError(f"{path}: not an MDN-RNN of this project ({error}).") from error
        return model
