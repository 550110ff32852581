"""Policy gradient in the dream: a small network learns from what it did in M's dreams, by gradients.

    recorded starts ─► dreams of T steps ─► advantages over a learned value ─► a few clipped steps of Adam ─► ...

REINFORCE (Williams 1992) with a learned value as its baseline, advantages as in Schulman et al. 2016 ("generalized
advantage estimation") and the clipped objective of Schulman et al. 2017 (PPO), which lets a batch of dreams teach more
than once. Written out here: the libraries for it want an environment with a step for every action, and a dream is a
batch of tensors already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from wm_engine.dream.imagination import world_state
from wm_engine.dream.types import Starts
from wm_engine.envs.task import Task
from wm_engine.errors import ConfigError, CorruptFileError
from wm_engine.files import load_tensors, save_tensors
from wm_engine.learn.base import DreamRules, Learner, LearnerSettings, Problem, State
from wm_engine.models.base import WorldModel, WorldState
from wm_engine.models.trainer import Trainer
from wm_engine.policies.base import Policy
from wm_engine.rng import StepWords, derive_seed, keyed_generator
from wm_engine.spaces import Discrete

_CLIP = 0.2  # of the ratio of new to old probabilities, as in the paper
_LARGEST_GRADIENT = 0.5


class PolicyGradientSettings(LearnerSettings):
    """Settings of the policy gradient, beside those of every learner."""

    kind: Literal["policy_gradient"] = "policy_gradient"
    features: Literal["z", "zh", "zhc"] = Field("z", description="what the policy sees of M's state")
    hidden_units: int = Field(64, ge=1, description="width of the policy's tanh layer, and of the value's")
    updates: int = Field(60, ge=0, description="batches of dreams that are learnt from, each round")
    dreams: int = Field(256, ge=2, description="dreams in a batch")
    dream_steps: int = Field(30, ge=1, description="most decisions of a dream")
    epochs: int = Field(4, ge=1, description="optimiser steps that a batch of dreams teaches")
    learning_rate: float = Field(3e-3, gt=0.0, description="Adam's")
    discount: float = Field(0.97, gt=0.0, le=1.0, description="what a reward one step later is worth")
    decay: float = Field(0.95, ge=0.0, le=1.0, description="lambda of the advantages: 1 trusts the dream, 0 the value")
    entropy: float = Field(0.01, ge=0.0, description="what a nat of the policy's entropy is worth")
    temperature: float = Field(1.0, ge=0.0, le=1e6, description="of M in the dream")

    def dream_rules(self, round_index: int) -> DreamRules:
        return DreamRules(self.dream_steps, self.temperature)


class Networks(nn.Module):
    """The policy's network and the value's: one tanh layer each, over features [B, F].

    Parameters
    ----------
    inputs : F; actions : A; units : of the hidden layers
    """

    def __init__(self, inputs: int, actions: int, units: int) -> None:
        super().__init__()
        chosen = nn.Linear(units, actions)
        self.policy = nn.Sequential(nn.Linear(inputs, units), nn.Tanh(), chosen)
        self.value = nn.Sequential(nn.Linear(inputs, units), nn.Tanh(), nn.Linear(units, 1))
        with torch.no_grad():  # every action alike at first
            chosen.weight.mul_(0.01)
            chosen.bias.zero_()


class NetworkPolicy:
    """Takes the likeliest action of a network, the first of equals, as a one-hot vector; the same in every lane."""

    def __init__(self, network: nn.Sequential, features: str) -> None:
        self.network, self.features = network, features

    @torch.no_grad()
    def act(self, features: Tensor, lanes: Tensor) -> Tensor:
        """See :class:`wm_engine.policies.base.Policy`."""
        logits = self.network(features)
        actions = F.one_hot(logits.argmax(-1), logits.shape[1]).to(features.dtype)
        return actions.where(torch.isfinite(logits).all(-1, keepdim=True), torch.nan)


@dataclass(frozen=True)
class _Dreamt:
    """A batch of dreams: features [T+1, B, F], chosen int64 [T, B], log_probs, rewards [T, B], live bool [T+1, B]."""

    features: Tensor
    chosen: Tensor
    log_probs: Tensor
    rewards: Tensor
    live: Tensor


class PolicyGradient(Learner):
    """Learns a policy over discrete actions from dreams, by gradients of what it did in them."""

    Settings = PolicyGradientSettings

    def __init__(self, settings: PolicyGradientSettings, networks: Networks, survival: bool, actions: int) -> None:
        self.settings, self._survival, self._actions = settings, survival, actions
        self._trainer = Trainer("controller", networks)

    @classmethod
    def build(
        cls, settings: PolicyGradientSettings, task: Task, world: WorldModel, seed: int, device: torch.device
    ) -> PolicyGradient:
        if not isinstance(task.spaces.actions, Discrete):
            raise ConfigError(
                f"controller.kind: policy_gradient chooses among discrete actions, but the task takes "
                f'{task.spaces.actions}. Set controller.kind = "evolution".'
            )
        if not world.hidden and settings.features != "z":
            raise ConfigError(
                f"controller.features: {settings.features!r} sees a hidden state, but this world model has none: "
                'set it to "z"'
            )
        sizes = {"z": world.latent, "h": world.hidden, "c": world.hidden}
        actions = task.spaces.actions.size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "policy"))
            networks = Networks(sum(sizes[name] for name in settings.features), actions, settings.hidden_units)
        return cls(settings, networks.to(device), task.reward == "survival", actions)

    def units(self, round_index: int) -> int:
        return self.settings.updates

    def learn(self, problem: Problem, done: int) -> Iterator[dict[str, float]]:
        s = self.settings
        for unit in range(done, s.updates):
            generator = keyed_generator(problem.seed, unit)
            dreamt = self._dream(problem, unit, generator)
            returns = (dreamt.rewards * dreamt.live[:-1]).sum(0)
            parts: dict[str, float] = {}
            advantages, targets = self._advantages(dreamt)
            for _ in range(s.epochs):
                value, parts = self._loss(dreamt, advantages, targets)
                self._trainer.step(value, s.learning_rate, _LARGEST_GRADIENT)
            yield {
                "mean": float(returns.mean()), "best": float(returns.max()), "std": float(returns.std()),
                "steps": float(dreamt.live[:-1].sum()), **parts,
            }  # fmt: skip

    @torch.no_grad()
    def _dream(self, problem: Problem, unit: int, generator: torch.Generator) -> _Dreamt:
        """Dream a batch, its actions drawn from the policy (by Gumbel noise), from starts drawn anew."""
        s, world = self.settings, problem.world
        places = torch.randint(len(problem.starts), (s.dreams,), generator=generator)
        parts = (problem.starts.z, problem.starts.h, problem.starts.c)
        state: WorldState = world_state(world, Starts(*(None if part is None else part[places] for part in parts)))  # type: ignore[arg-type]
        lanes = torch.arange(s.dreams, device=world.device)
        words = StepWords(derive_seed(problem.seed, unit), lanes[:1] * 0, lanes, world.blocks)
        on = torch.ones(s.dreams, dtype=torch.bool, device=world.device)
        features, chosen, log_probs, rewards, live = [], [], [], [], [on]
        for step in range(s.dream_steps):
            features.append(world.features(state, s.features))
            logits = self._trainer.model.policy(features[-1])
            uniform = torch.rand(logits.shape, generator=generator).clamp(min=1e-9).to(logits.device)
            chosen.append((logits - torch.log(-torch.log(uniform))).argmax(-1))
            log_probs.append(_log_prob(logits, chosen[-1]))
            action = F.one_hot(chosen[-1], self._actions).to(state.z.dtype)
            imagined = world.imagine(state, action, words.at(step)[0], s.temperature)
            state = imagined.state
            rewards.append(torch.ones_like(imagined.reward) if self._survival else imagined.reward)
            on = on & ~(imagined.done > 0)
            live.append(on)
        features.append(world.features(state, s.features))
        return _Dreamt(*(torch.stack(part) for part in (features, chosen, log_probs, rewards, live)))

    @torch.no_grad()
    def _advantages(self, dreamt: _Dreamt) -> tuple[Tensor, Tensor]:
        """Advantages [T, B], of mean 0 and variance 1 over live steps, and what the value should have said [T, B].

        delta_t = r_t + discount · V_{t+1} - V_t, summed backwards with discount · lambda; nothing follows an end, and
        where a dream was cut its value stands for what would have followed.
        """
        s = self.settings
        values = self._trainer.model.value(dreamt.features).squeeze(-1)
        advantage, column = torch.zeros_like(values[0]), []
        for t in reversed(range(len(dreamt.rewards))):
            goes_on = dreamt.live[t + 1].to(values.dtype)
            delta = dreamt.rewards[t] + s.discount * values[t + 1] * goes_on - values[t]
            advantage = delta + s.discount * s.decay * goes_on * advantage
            column.append(advantage)
        advantages = torch.stack(column[::-1])
        live = advantages[dreamt.live[:-1]]
        return (advantages - live.mean()) / (live.std() + 1e-8), advantages + values[:-1]

    def _loss(self, dreamt: _Dreamt, advantages: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, float]]:
        live, networks = dreamt.live[:-1], self._trainer.model
        seen = dreamt.features[:-1][live]
        logits = networks.policy(seen)
        ratio = torch.exp(_log_prob(logits, dreamt.chosen[live]) - dreamt.log_probs[live])
        clipped = ratio.clamp(1.0 - _CLIP, 1.0 + _CLIP)
        gain = torch.minimum(ratio * advantages[live], clipped * advantages[live]).mean()
        log_probs = torch.log_softmax(logits, -1)
        entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
        error = (networks.value(seen).squeeze(-1) - targets[live]).square().mean()
        value = 0.5 * error - gain - self.settings.entropy * entropy
        return value, {"entropy": float(entropy.detach()), "value_error": float(error.detach())}

    def policy(self) -> NetworkPolicy:
        return NetworkPolicy(self._trainer.model.policy, self.settings.features)

    def candidates(self, count: int, seed: int) -> NetworkPolicy:
        """Return the present policy for every lane: what explores is the noise that the loop adds."""
        return self.policy()

    def state(self) -> State:
        return self._trainer.state(), {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self._trainer.load_state(tensors)

    def save_policy(self, path: Path, policy: Policy) -> None:
        assert isinstance(policy, NetworkPolicy)
        save_tensors(path, policy.network.state_dict(), {"kind": "policy_gradient", "features": policy.features})

    @classmethod
    def load_policy(cls, path: Path) -> NetworkPolicy:
        tensors, metadata = load_tensors(path)
        try:
            (units, inputs), actions = tensors["0.weight"].shape, len(tensors["2.weight"])
            network = Networks(inputs, actions, units).policy
            network.load_state_dict(tensors)
            return NetworkPolicy(network.eval(), metadata["features"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise CorruptFileError(f"{path}: not a policy of a policy gradient ({error}).") from error


def _log_prob(logits: Tensor, chosen: Tensor) -> Tensor:
    """The log probability of each choice: [..., A] and int64 [...] to [...]."""
    return torch.log_softmax(logits, -1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


learner = PolicyGradient
