"""A batched dream step in plain torch on numbers drawn beforehand; compiled, captured or bare in the peers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wm_engine.dream.torch_backend import DTYPES
from wm_engine.ops.dream import DreamWeights, dream_step
from wm_engine.policies.controller import act

from ..workload import Setup

# z [B, Z], h and c [B, H], alive [B], returns [B]
State = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Step = Callable[[State, Tensor, Tensor, Tensor], State]


class Batch:
    """All rollouts of a workload on one device: weights, numbers, the first state."""

    def __init__(self, setup: Setup, device: str, precision: str) -> None:
        work, m, low = setup.workload, setup.m, DTYPES[precision]
        self._spec, self._shape = setup.spec, (work.candidates, work.episodes)
        self._params = setup.params.to(device)
        bias = m.lstm.bias_ih_l0.detach() + m.lstm.bias_hh_l0.detach()
        tensors = (m.lstm.weight_ih_l0, m.lstm.weight_hh_l0, bias, m.head.weight, m.head.bias)
        self._weights = DreamWeights(*(tensor.detach().to(device, low) for tensor in tensors), m.layout)
        draws = setup.draws()
        self.numbers = [tuple(values.to(device).unbind(0)) for values in (draws.normals, draws.choices, draws.ends)]
        z = setup.starts.z[torch.arange(work.episodes) % len(setup.starts)].to(device)
        z = z.expand(work.candidates, -1, -1).flatten(0, 1).contiguous()
        zeros = z.new_zeros(work.rollouts, work.hidden)
        alive, returns = torch.ones_like(z[:, 0], dtype=torch.bool), torch.zeros_like(z[:, 0])
        self.first: State = (z, zeros, zeros.clone(), alive, returns)

    def step(self, state: State, normals: Tensor, choices: Tensor, ends: Tensor) -> State:
        """One step of every rollout; normals [E, Z], choices [E, C], ends [E]."""
        z, h, c, alive, returns = state
        num_p = self._shape[0]

        def per_rollout(numbers: Tensor) -> Tensor:
            return numbers.expand(num_p, *numbers.shape).flatten(0, 1)

        features = self._spec.observe(z, h, c).unflatten(0, self._shape)
        action = act(self._spec, self._params, features).flatten(0, 1)
        outcome = dream_step(
            self._weights, z, action, h, c, per_rollout(normals), per_rollout(choices), per_rollout(ends),
            temperature=1.0, reward="predicted", done="sample",
        )  # fmt: skip
        returns = torch.where(alive, returns + outcome.reward, returns)
        return outcome.z, outcome.h, outcome.c, alive & ~outcome.ended, returns

    def dream(self, step: Step) -> Tensor:
        """Every step in order; the returns [P, E] on the CPU."""
        state = self.first
        for numbers in zip(*self.numbers, strict=True):
            state = step(state, *numbers)
        return state[-1].view(self._shape).cpu()
