"""M: an LSTM with a mixture density head (Ha & Schmidhuber 2018, sections 2.2 and A.2), a reward and an end head."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from wm_engine.checks import check_bool, check_int, flag_of
from wm_engine.data.sequences import SequenceBatch
from wm_engine.models.base import Imagined, MemorySettings, Scalars, WorldModel, WorldState
from wm_engine.ops.dream import DreamWeights, dream_step
from wm_engine.ops.lstm import lstm_step
from wm_engine.ops.mdn import HeadLayout, MixtureHead
from wm_engine.ops.registered import mdn_nll
from wm_engine.rng import numbers
from wm_engine.spaces import Spaces

LSTMState = tuple[Tensor, Tensor]


class RecurrentSettings(MemorySettings):
    """Settings of an LSTM with heads for the latent, the reward and the end, beside those of every world model."""

    hidden: int = Field(256, ge=1, description="H, units of the LSTM")
    residual: bool = Field(
        False, description="predict the change of the latent, z' - z, and not z' itself: for latents that change little"
    )
    reward_weight: float = Field(1.0, ge=0.0, description="of the reward's loss, beside the latent's nats")
    reward_bound: float = Field(
        8.0, gt=0.0, description="errors of the reward beyond so many of its scales count linearly, not squared"
    )
    end_weight: float = Field(
        1.0, ge=0.0, description="how many times the loss of a step counts that ended its episode: ends are rare"
    )
    dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of h that the heads do not see in training, a mask a sequence"
    )
    lstm_learns: bool = Field(True, description="false: the LSTM stays as it was drawn, and the heads alone learn")


class MDNRNNSettings(RecurrentSettings):
    """Settings of the MDN-RNN: those of its mixture."""

    kind: Literal["mdn_rnn"] = "mdn_rnn"
    mixtures: int = Field(5, ge=1, description="K, components of the mixture")
    mixture: Literal["shared", "per_dim"] = Field(
        "per_dim", description="one choice of component for the whole latent, or one for every dimension (the paper's)"
    )


class MDNRNN(WorldModel):
    """Predicts the next latent, the reward and the end of the episode from (z, action, hidden state).

    Parameters
    ----------
    latent : Z; action : A; hidden : H; mixtures : K
    mixture : "shared" (one component choice for the whole vector) | "per_dim" (the paper's: one for every dimension)
    residual : the mixture is of the change of the latent: z' = z + delta, delta ~ mixture. At a temperature tau it is
        the change that is tempered: tau = 0 adds the most likely component's mean

    State dict: ``lstm.weight_ih_l0 [4H, Z+A]`` (the input is [z, a]; gates in the order i, f, g, o),
    ``lstm.weight_hh_l0 [4H, H]``, ``lstm.bias_ih_l0``, ``lstm.bias_hh_l0 [4H]``, ``head.weight [N, H]``,
    ``head.bias [N]``, the rows of the head as in :class:`wm_engine.ops.mdn.HeadLayout`.
    """

    Settings: ClassVar[type[RecurrentSettings]] = MDNRNNSettings
    SIZES: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        "latent": int, "action": int, "hidden": int, "mixtures": int, "mixture": str, "residual": flag_of,
    }  # fmt: skip
    SIZES_OF_OLD: ClassVar[Mapping[str, str]] = {"residual": "False"}

    def __init__(
        self,
        latent: int = 32,
        action: int = 3,
        hidden: int = 256,
        mixtures: int = 5,
        mixture: str = "per_dim",
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.latent = check_int("latent", latent, least=1)
        self.action = check_int("action", action, least=1)
        self.hidden = check_int("hidden", hidden, least=1)
        self.mixtures = check_int("mixtures", mixtures, least=1)
        self.mixture = mixture
        self.residual = check_bool("residual", residual)
        self.layout = HeadLayout(latent, mixtures, mixture)
        self.lstm = nn.LSTM(latent + action, hidden)
        self.head = nn.Linear(hidden, self.layout.size)
        self.blocks = 2 * math.ceil(latent / 4) + 1
        # In training the head's reward is in these units; everywhere else in the task's (`finished`).
        self._reward_center, self._reward_scale = 0.0, 1.0

    @classmethod
    def build(cls, latent: int, spaces: Spaces, settings: Any) -> MDNRNN:
        sizes = {name: getattr(settings, name) for name in cls.SIZES if name not in ("latent", "action")}
        m = cls(latent, spaces.actions.size, **sizes)
        # Zeros say the center, in whatever units rewards will be learnt (Hafner et al. 2023 begin so too): random ones
        # would be hundreds of scales off where rewards are small or far from zero.
        with torch.no_grad():
            m.head.weight[m.layout.reward_row] = 0.0
            m.head.bias[m.layout.reward_row] = 0.0
        m.lstm.requires_grad_(settings.lstm_learns)
        return m

    def sequence(
        self, inputs: Tensor, state: LSTMState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, LSTMState]:
        """Run over whole sequences.

        ``inputs [T, B, Z+A]`` and ``state`` (h, c), each [B, H], zero where None, to heads [T, B, N] and (h, c) [B, H].
        ``mask [B, H]``: what the heads see of h is multiplied by it at every step (Gal & Ghahramani 2016: one mask a
        sequence).
        """
        packed = None if state is None else (state[0].unsqueeze(0), state[1].unsqueeze(0))
        outputs, (h, c) = self.lstm(inputs, packed)
        return self.head(outputs if mask is None else outputs * mask), (h[0], c[0])

    def observe(self, z: Tensor, action: Tensor, state: LSTMState) -> LSTMState:
        weight_ih, weight_hh, bias_ih, bias_hh = self.lstm.all_weights[0]
        return lstm_step(torch.cat([z, action], dim=-1), *state, weight_ih, weight_hh, bias_ih + bias_hh)

    def split(self, head: Tensor) -> MixtureHead:
        """Take heads [..., N] apart."""
        return self.layout.split(head)

    def initial(self, batch: int) -> LSTMState:
        zeros = self.head.weight.new_zeros(batch, self.hidden)
        return zeros, zeros.clone()

    def weights(self) -> DreamWeights:
        """Return the weights as a dreamt step uses them."""
        weight_ih, weight_hh, bias_ih, bias_hh = self.lstm.all_weights[0]
        return DreamWeights(
            weight_ih, weight_hh, bias_ih + bias_hh, self.head.weight, self.head.bias, self.layout, self.residual
        )

    def _targets(self, z: Tensor) -> Tensor:
        """Return what the mixture is of, [T, B, Z], where the latents were z [T+1, B, Z]."""
        return z[1:] - z[:-1] if self.residual else z[1:]

    def imagine(self, state: WorldState, action: Tensor, words: Tensor, temperature: float) -> Imagined:
        normals, choice_uniforms, done_uniforms = numbers(words, self.latent, self.mixture, state.z.dtype)
        outcome = dream_step(
            self.weights(), state.z, action, state.h, state.c, normals, choice_uniforms, done_uniforms,
            temperature=temperature, reward="predicted", done="threshold",
        )  # fmt: skip
        return Imagined(WorldState(outcome.z, outcome.h, outcome.c), outcome.reward, outcome.done)

    def loss(self, batch: SequenceBatch, generator: torch.Generator, settings: Any) -> tuple[Tensor, Scalars]:
        """Return the sum of the three losses of the heads, averaged over live steps, and each by itself.

        The latent's negative log-likelihood in nats a dimension (Graves 2013); the reward's Huber loss in its own
        scale, squared up to ``reward_bound``; the end's cross entropy in nats, weighted by ``end_weight`` where an
        episode ended. Latents are drawn from V's posterior anew.
        """
        z, live = batch.sample(generator), batch.live
        begin = self._burnt_in(batch, generator)
        shape = (live.shape[1], self.hidden)
        mask = _mask(shape, settings.dropout, generator).to(z.device) if settings.dropout else None
        head, _ = self.sequence(torch.cat([z[:-1], batch.actions], dim=-1), begin, mask)
        parts = self.split(head)
        nll = mdn_nll(parts.logits, parts.means, parts.log_stds, self._targets(z))[live].mean()
        target = (batch.rewards - self._reward_center) / self._reward_scale
        reward = 2.0 * F.huber_loss(parts.reward[live], target[live], delta=settings.reward_bound)
        weight = torch.tensor(settings.end_weight, device=z.device)
        end = F.binary_cross_entropy_with_logits(parts.done, batch.ends, pos_weight=weight, reduction="none")
        end = end[live].mean()
        value = nll + settings.reward_weight * reward + end
        return value, {"nll_per_dimension": nll, "reward_error": reward, "end_loss": end}

    @torch.no_grad()
    def _burnt_in(self, batch: SequenceBatch, generator: torch.Generator) -> LSTMState | None:
        """The state before a batch's first steps: what the steps before them lead to, without gradients; or zero."""
        if batch.before is None:
            return None
        h, c = self.initial(batch.live.shape[1])
        z = batch.before.sample(generator)
        _, (h[batch.continued], c[batch.continued]) = self.sequence(torch.cat([z[:-1], batch.before.actions], dim=-1))
        return h, c

    def predict(self, batch: SequenceBatch, z: Tensor) -> dict[str, Tensor]:
        head, _ = self.sequence(torch.cat([z[:-1], batch.actions], dim=-1))
        parts = self.split(head)
        nll = mdn_nll(parts.logits, parts.means, parts.log_stds, self._targets(z))
        return {"nll": nll, "reward": self._in_units(parts.reward), "done": parts.done}

    def _in_units(self, reward: Tensor) -> Tensor:
        return reward * self._reward_scale + self._reward_center

    def scale_rewards(self, center: float, scale: float) -> None:
        """See :meth:`WorldModel.scale_rewards`; a row of zeros has learnt nothing yet, and says the new center."""
        row = self.layout.reward_row
        if bool(self.head.weight[row].any()) or bool(self.head.bias[row]):
            self._change_units(center, scale)
        self._reward_center, self._reward_scale = center, scale

    @torch.no_grad()
    def _change_units(self, center: float, scale: float) -> None:
        ratio = self._reward_scale / scale
        row = self.layout.reward_row
        self.head.weight[row] *= ratio
        self.head.bias[row] = self.head.bias[row] * ratio + (self._reward_center - center) / scale
        self._reward_center, self._reward_scale = center, scale

    def reward_units(self) -> tuple[float, float]:
        return self._reward_center, self._reward_scale

    def set_reward_units(self, center: float, scale: float) -> None:
        self._reward_center, self._reward_scale = center, scale

    @torch.no_grad()
    def thinned(self, rate: float, generator: torch.Generator) -> MDNRNN:
        """Return a copy whose heads do not see a share ``rate`` of h, and see the rest that much louder; C sees all."""
        copied = copy.deepcopy(self).eval()
        copied.head.weight *= _mask((1, self.hidden), rate, generator).to(self.head.weight)
        return copied

    def finished(self) -> MDNRNN:
        """Return a copy whose head's reward row has center and scale folded into it."""
        copied = copy.deepcopy(self).eval()
        copied._change_units(0.0, 1.0)
        return copied


def _mask(shape: tuple[int, ...], rate: float, generator: torch.Generator) -> Tensor:
    """Draw a dropout mask: 0 with probability ``rate``, else 1 / (1 - rate)."""
    return (torch.rand(shape, generator=generator) >= rate).float() / (1.0 - rate)


world_model = MDNRNN
