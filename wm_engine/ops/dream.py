"""M's half of one dream step: LSTM, head, reward, next latent, end of the episode.

The reference takes any float dtype: float64 is the oracle. The whole rollout belongs to the dream's backends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wm_engine.ops.lstm import lstm_step
from wm_engine.ops.mdn import HeadLayout, mdn_sample

REWARDS = ("predicted", "survival")
DONES = ("threshold", "sample")


@dataclass(frozen=True)
class DreamWeights:
    """M's weights as a step uses them.

    weight_ih [4H, Z+A], weight_hh [4H, H], bias [4H], head_weight [N, H], head_bias [N], all of one dtype.
    residual : the mixture is of the change z' - z, not of z'
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor
    head_weight: Tensor
    head_bias: Tensor
    layout: HeadLayout
    residual: bool = False


@dataclass(frozen=True)
class StepOutcome:
    """The outcome of a step: z [B, Z], h and c [B, H] after it, its reward [B], whether the episode ends with it [B],
    and the logit of that [B].

    ``finite`` [B] is false where the latent, the reward or the end logit is NaN or infinite.
    """

    z: Tensor
    h: Tensor
    c: Tensor
    reward: Tensor
    ended: Tensor
    done: Tensor
    finite: Tensor


def dream_step(
    weights: DreamWeights,
    z: Tensor,
    action: Tensor,
    h: Tensor,
    c: Tensor,
    normals: Tensor,
    choice_uniforms: Tensor,
    done_uniforms: Tensor,
    *,
    temperature: float,
    reward: str,
    done: str,
) -> StepOutcome:
    """Advance a batch of dreams by one step under given actions and random numbers.

    Parameters
    ----------
    weights : M's, whose dtype is that of the matrix products
    z : [B, Z]; action : [B, A]; h, c : [B, H], whose dtype is that of everything else
    normals : [B, Z]; choice_uniforms : [B, C]; done_uniforms : [B]
    temperature : tau >= 0, for the latent alone: rewards and ends are not tempered
    reward : "predicted" | "survival" (1 a step)
    done : "threshold" (logit > 0) | "sample" (sigmoid(logit) > u)
    """
    h, c = lstm_step(torch.cat([z, action], dim=-1), h, c, weights.weight_ih, weights.weight_hh, weights.bias)
    outputs = F.linear(h.to(weights.head_weight.dtype), weights.head_weight, weights.head_bias).to(c.dtype)
    head = weights.layout.split(outputs)
    drawn = mdn_sample(head.logits, head.means, head.log_stds, choice_uniforms, normals, temperature)
    z = z + drawn if weights.residual else drawn
    ended = head.done > 0 if done == "threshold" else torch.sigmoid(head.done) > done_uniforms
    gained = head.reward if reward == "predicted" else torch.ones_like(head.reward)
    finite = torch.isfinite(z).all(dim=-1) & torch.isfinite(head.reward) & torch.isfinite(head.done)
    return StepOutcome(z, h, c, gained, ended, head.done, finite)
