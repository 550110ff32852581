"""The work that rivals are timed on: one world model, one population, the same random numbers for all."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wm_engine import MDNRNN, ControllerSpec, Starts
from wm_engine.dream.types import RolloutPlan
from wm_engine.ops.mdn import HeadLayout
from wm_engine.rng import StepDraws

_SEED = 0
# sigmoid of this is 1e-9: no dream ends before its last step.
_NEVER = -20.0


@dataclass(frozen=True)
class Workload:
    """A dream's size: P candidates, E episodes, T steps, Z latent, H hidden, K mixtures, A actions, the mixture.

    early_end: share of the rollouts that end before step T; each step ends a rollout with the probability, the same for
        all, that makes it so.
    """

    candidates: int = 64
    episodes: int = 16
    steps: int = 200
    latent: int = 32
    hidden: int = 256
    mixtures: int = 5
    action: int = 3
    mixture: str = "shared"
    early_end: float = 0.0

    def __post_init__(self) -> None:
        for name in ("candidates", "episodes", "steps", "latent", "hidden", "mixtures", "action"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but was {getattr(self, name)}")
        if not 0.0 <= self.early_end < 1.0:
            raise ValueError(f"early_end must be in [0, 1), but was {self.early_end}")
        HeadLayout(self.latent, self.mixtures, self.mixture)

    @property
    def rollouts(self) -> int:
        """P·E."""
        return self.candidates * self.episodes

    def macs_per_step(self) -> dict[str, int]:
        """Multiply-adds of one rollout's step in its dense form: gates, head, controller."""
        layout = HeadLayout(self.latent, self.mixtures, self.mixture)
        return {
            "gates": 4 * self.hidden * (self.latent + self.action + self.hidden),
            "head": self.hidden * layout.size,
            "controller": self.action * (self.latent + self.hidden),
        }


@dataclass(frozen=True)
class Draws:
    """The numbers of a whole dream under common random numbers: normals [T, E, Z], choices [T, E, C], ends [T, E].

    Peers are given these, so that they can be checked number for number; drawing them costs a peer nothing.
    """

    normals: Tensor
    choices: Tensor
    ends: Tensor


@dataclass(frozen=True)
class Setup:
    """A workload made concrete, in float32 on the CPU: M, the controllers' shape and parameters [P, D], the starts."""

    workload: Workload
    m: MDNRNN
    spec: ControllerSpec
    params: Tensor
    starts: Starts

    @property
    def plan(self) -> RolloutPlan:
        """What is asked of the engine."""
        return RolloutPlan(self.workload.episodes, self.workload.steps, 1.0, _SEED, "predicted", "sample")

    def draws(self) -> Draws:
        """The numbers that :attr:`plan` draws."""
        work = self.workload
        candidate, episodes = torch.zeros(1, dtype=torch.int64), torch.arange(work.episodes)
        source = StepDraws(_SEED, candidate, episodes, work.latent, work.mixture, torch.float32)
        normals, choices, ends = zip(*(source.at(step) for step in range(work.steps)), strict=True)
        return Draws(*(torch.cat(numbers) for numbers in (normals, choices, ends)))

    def lived_steps(self) -> int:
        """How many steps the rollouts live together; the numbers alone decide it, the same for every candidate."""
        work = self.workload
        ends = torch.sigmoid(self.m.head.bias[-1].detach()) > self.draws().ends
        lived = torch.where(ends.any(0), ends.int().argmax(0) + 1, work.steps)
        return work.candidates * int(lived.sum())

    def resized(self, *, candidates: int | None = None, episodes: int | None = None, steps: int | None = None) -> Setup:
        """The same world with fewer candidates, other episodes or steps; each step's chance to end stays."""
        changes = {"candidates": candidates, "episodes": episodes, "steps": steps}
        work = dataclasses.replace(self.workload, **{k: v for k, v in changes.items() if v is not None})
        return dataclasses.replace(self, workload=work, params=self.params[: work.candidates])


def prepare(workload: Workload) -> Setup:
    """Build a workload. M's weights are those of its initialisation, doubled so that the hidden state moves about."""
    work = workload
    generator = torch.Generator().manual_seed(_SEED)
    m = MDNRNN(work.latent, work.action, work.hidden, work.mixtures, work.mixture)
    bound = 2.0 / math.sqrt(work.hidden)
    chance = 1.0 - (1.0 - work.early_end) ** (1.0 / work.steps)
    with torch.no_grad():
        for parameter in m.parameters():
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
        m.head.weight[-1] = 0.0
        m.head.bias[-1] = math.log(chance / (1.0 - chance)) if chance > 0.0 else _NEVER
    spec = ControllerSpec(work.latent, work.hidden, work.action)
    params = 0.1 * torch.randn(work.candidates, spec.num_params, generator=generator)
    starts = Starts(torch.randn(max(16, work.episodes), work.latent, generator=generator))
    return Setup(work, m, spec, params, starts)
