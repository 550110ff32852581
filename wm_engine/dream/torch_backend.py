"""The dream in torch: any device, readable, the yardstick of the faster backends."""

from __future__ import annotations

import torch
from torch import Tensor

from wm_engine.controller import ControllerSpec, raw_actions, squash_actions
from wm_engine.dream.types import DreamOutput, RolloutPlan, Starts, join
from wm_engine.memory.model import MDNRNN
from wm_engine.ops.dream import DreamWeights, dream_step
from wm_engine.rng import StepDraws

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Matrix libraries take other kernels, which round differently, below a handful of rows. So that a rollout's numbers do
# not depend on its company, small batches are filled up to these; larger ones were equal to the bit on the CPU.
_LEAST_ROLLOUTS = 16
_LEAST_EPISODES = 4

# Bounds the memory of a call (about 10 KB a rollout at the paper's size), not its results.
_MOST_ROLLOUTS = 1 << 16

# Whether every rollout has ended is asked this rarely: each question makes the host wait for the device.
_STEPS_BETWEEN_CHECKS = 32


class TorchBackend:
    """Dreams as batched torch operations.

    Matrix products of M run in the given precision, controller and everything pointwise in float32 (float64 for
    "fp64"). Ended rollouts are masked, not removed.
    """

    def __init__(self, m: MDNRNN, c: ControllerSpec, device: torch.device, precision: str = "fp32") -> None:
        self._spec, self._device = c, device
        self._dtype = torch.float64 if precision == "fp64" else torch.float32
        low = DTYPES[precision]

        def weight(value: Tensor) -> Tensor:
            # Rounded before it travels: MPS has no float64, and the bias is summed in it.
            return value.to(low).to(device, copy=True).contiguous()

        w = m.state_dict()
        self._weights = DreamWeights(
            weight(w["lstm.weight_ih_l0"]),
            weight(w["lstm.weight_hh_l0"]),
            weight(w["lstm.bias_ih_l0"].double() + w["lstm.bias_hh_l0"].double()),
            weight(w["head.weight"]),
            weight(w["head.bias"]),
            m.layout,
        )

    @torch.inference_mode()
    def rollout(self, params: Tensor, starts: Starts, plan: RolloutPlan) -> DreamOutput:
        """See :class:`wm_engine.dream.types.Backend`."""
        per_call = max(1, _MOST_ROLLOUTS // plan.episodes)
        parts = [
            self._block(params[first : first + per_call], starts, plan, plan.first_candidate + first)
            for first in range(0, params.shape[0], per_call)
        ]
        return join(parts, self._device)

    def release(self) -> None:
        """See :class:`wm_engine.dream.types.Backend`: nothing is kept."""

    def _block(self, params: Tensor, starts: Starts, plan: RolloutPlan, first_candidate: int) -> DreamOutput:
        spec, device, dtype = self._spec, self._device, self._dtype
        wanted_p, wanted_e = params.shape[0], plan.episodes
        num_e = max(wanted_e, _LEAST_EPISODES)
        num_p = max(wanted_p, -(-_LEAST_ROLLOUTS // num_e))
        params = params.to(device, dtype)
        params = torch.cat([params, params[:1].expand(num_p - wanted_p, -1)])

        episodes = torch.arange(num_e, device=device)
        candidates = torch.zeros(1, dtype=torch.int64, device=device)
        if not plan.common_random_numbers:
            candidates = torch.arange(first_candidate, first_candidate + num_p, device=device)
        draws = StepDraws(plan.seed, candidates, episodes, spec.latent, self._weights.layout.mixture, dtype)

        def per_rollout(value: Tensor) -> Tensor:
            return value.expand(num_p, *value.shape[1:]).flatten(0, 1)

        z, h, c = (
            per_rollout(state[episodes % len(starts)].unsqueeze(0)) for state in starts.to(device, dtype, spec.hidden)
        )
        alive = torch.ones(num_p * num_e, dtype=torch.bool, device=device)
        failed = torch.zeros_like(alive)
        returns = torch.zeros(num_p * num_e, device=device, dtype=dtype)
        lengths = torch.zeros(num_p * num_e, device=device, dtype=torch.int32)
        record: list[tuple[Tensor, Tensor, Tensor]] = []

        for step in range(plan.max_steps):
            features = spec.observe(z, h, c).unflatten(0, (num_p, num_e))
            raw = raw_actions(spec, params, features).flatten(0, 1)
            action = squash_actions(spec, raw)
            normals, choice_uniforms, done_uniforms = (per_rollout(draw) for draw in draws.at(step))
            outcome = dream_step(
                self._weights,
                z,
                action,
                h,
                c,
                normals,
                choice_uniforms,
                done_uniforms,
                temperature=plan.temperature,
                reward=plan.reward,
                done=plan.done,
            )
            z, h, c = outcome.z, outcome.h, outcome.c
            finite = outcome.finite & torch.isfinite(raw).all(dim=-1)
            if plan.record:
                shown = alive.unsqueeze(-1)
                record.append((z.where(shown, 0.0), action.where(shown, 0.0), outcome.reward.where(alive, 0.0)))
            returns = torch.where(alive, returns + outcome.reward, returns)
            lengths += alive
            failed |= alive & ~(finite & torch.isfinite(returns))
            alive = alive & ~outcome.ended & ~failed
            if (step + 1) % _STEPS_BETWEEN_CHECKS == 0 and not bool(alive.any()):
                break

        def population(value: Tensor) -> Tensor:
            return value.unflatten(-1, (num_p, num_e))[..., :wanted_p, :wanted_e].contiguous()

        returns = population(torch.where(failed, torch.nan, returns)).float()
        output = (returns, population(lengths), population(failed).any(dim=1))
        if not plan.record:
            return DreamOutput(*output)

        def track(steps: tuple[Tensor, ...]) -> Tensor:
            stacked = torch.stack(steps).float().unflatten(1, (num_p, num_e))[:, :wanted_p, :wanted_e]
            return torch.cat([stacked, stacked.new_zeros(plan.max_steps - len(steps), *stacked.shape[1:])])

        return DreamOutput(*output, *(track(steps) for steps in zip(*record, strict=True)))
