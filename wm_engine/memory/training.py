"""Training of M: one step ahead on recorded, encoded episodes (Ha & Schmidhuber 2018, A.2; Graves 2013)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from wm_engine.memory.fidelity import one_step_errors
from wm_engine.memory.model import MDNRNN
from wm_engine.memory.sequences import SequenceBatch, gather, schedule
from wm_engine.ops.mdn import MixtureHead
from wm_engine.ops.registered import mdn_nll
from wm_engine.records import Recorder
from wm_engine.rng import RNG_VERSION
from wm_engine.runs import Checkpoints, tensors_fingerprint
from wm_engine.training import Loss, TrainingSettings, fit, keyed_generator
from wm_engine.vision.latents import Latents

_HELD_OUT_EPISODES = 32


class MemorySettings(TrainingSettings):
    """What the training of M is told, beside what every training is."""

    hidden: int = Field(256, ge=1, description="H, units of the LSTM")
    mixtures: int = Field(5, ge=1, description="K, components of the mixture")
    mixture: Literal["shared", "per_dim"] = Field(
        "per_dim", description="one choice of component for the whole latent, or one for every dimension (the paper's)"
    )
    batch_size: int = Field(32, ge=1, description="lanes, each reading its own episode")
    sequence_length: int = Field(
        64,
        ge=1,
        description="steps that gradients reach back; the hidden state reaches back to the episode's beginning",
    )
    reward_weight: float = Field(
        1.0, ge=0.0, description="of the reward's squared error over the rewards' variance, beside the latent's nats"
    )
    end_weight: float = Field(
        10.0, ge=0.0, description="how many times the loss of a step counts that ended its episode: ends are rare"
    )


def train_memory(
    latents: Latents,
    settings: MemorySettings,
    seed: int,
    checkpoints: Checkpoints,
    recorder: Recorder,
    iteration: int = 0,
    init: MDNRNN | None = None,
    device: str | torch.device = "cpu",
) -> MDNRNN:
    """Train M on the training episodes of ``latents``; resumes from ``checkpoints`` bit for bit.

    Each lane of a batch walks through an episode from its beginning to its end, ``sequence_length`` steps at a time,
    and hands its (h, c) on without their gradient (truncated backpropagation through time), so M learns in the hidden
    states that it is used in. Latents are drawn from V's posterior anew each time they are read. ``init``: weights to
    begin from, those of an earlier round.

    Raises ValueError where ``init`` has another size or there are under two episodes, and what
    :func:`wm_engine.training.fit` raises.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        m = MDNRNN(latents.latent, latents.action, settings.hidden, settings.mixtures, settings.mixture)
    if init is not None:
        if init.layout != m.layout or (init.action, init.hidden) != (m.action, m.hidden):
            raise ValueError(
                f"init must have {m.layout}, {m.action} actions and {m.hidden} hidden units, but had {init.layout}, "
                f"{init.action} and {init.hidden}"
            )
        m.load_state_dict(init.state_dict())
    m.to(device)

    training, held_out = latents.split(settings.holdout)
    if not held_out:
        raise ValueError(f"latents must hold at least two episodes, one to measure on, but held {len(latents)}")
    scale = reward_scale(latents, training)
    carried = dict(zip(("h", "c"), m.initial_state(settings.batch_size), strict=True))

    def loss(step: int, batch: SequenceBatch) -> Loss:
        batch = batch.to(device)
        begun = (~batch.fresh).unsqueeze(1)
        z = batch.sample(keyed_generator(seed, 1, step))
        head, (h, c) = m.sequence(
            torch.cat([z[:-1], batch.actions], dim=-1), (carried["h"] * begun, carried["c"] * begun)
        )
        carried["h"], carried["c"] = h.detach(), c.detach()
        latent, reward, end = losses(m.split(head), z[1:], batch, scale, settings.end_weight)
        value = latent + settings.reward_weight * reward + end
        return value, {"nll_per_dimension": latent, "reward_error": reward, "end_loss": end}

    def evaluate() -> dict[str, float]:
        return one_step_errors(m, latents, held_out[:_HELD_OUT_EPISODES])

    fit(
        "memory",
        m,
        settings,
        identity={
            "seed": seed,
            "rng_version": RNG_VERSION,
            "latents": latents.fingerprint(),
            "init": None if init is None else tensors_fingerprint(init.state_dict()),
        },
        batches=lambda step: _batches_from(latents, training, settings, seed, step),
        loss=loss,
        units=lambda batch: int(batch.live.sum()),
        unit="steps",
        evaluate=evaluate,
        checkpoints=checkpoints,
        recorder=recorder,
        iteration=iteration,
        carried=carried,
    )
    return m


def losses(
    parts: MixtureHead, target: Tensor, batch: SequenceBatch, scale: float, end_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The three losses of M's heads, averaged over live steps (the first also over latent dimensions).

    parts : heads [T, B, ...]
    target : [T, B, Z], the latents that came next
    scale : standard deviation of the rewards

    Returns the latent's negative log-likelihood in nats a dimension, the reward's squared error in units of its
    variance, and the end's cross entropy in nats, with the steps that ended their episode weighted by ``end_weight``.
    """
    nll = mdn_nll(parts.logits, parts.means, parts.log_stds, target)
    reward = ((parts.reward - batch.rewards) / scale).square()
    weight = torch.tensor(end_weight, device=target.device)
    end = F.binary_cross_entropy_with_logits(parts.done, batch.ends, pos_weight=weight, reduction="none")
    return nll[batch.live].mean(), reward[batch.live].mean(), end[batch.live].mean()


def reward_scale(latents: Latents, episodes: Sequence[int]) -> float:
    """Standard deviation of the recorded rewards, 1 where they are all the same."""
    rewards = torch.cat([latents.rewards(episode) for episode in episodes]).double()
    deviation = rewards.std(correction=0).item()
    return deviation if deviation > 0.0 else 1.0


def _batches_from(
    latents: Latents, episodes: Sequence[int], settings: MemorySettings, seed: int, step: int
) -> Iterator[SequenceBatch]:
    lengths = [latents.steps[episode] for episode in episodes]
    rounds = schedule(episodes, lengths, settings.batch_size, settings.sequence_length, seed)
    for windows in itertools.islice(rounds, step, None):
        yield gather(latents, windows, settings.sequence_length)
