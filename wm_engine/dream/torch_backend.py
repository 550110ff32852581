"""The dream in torch: any device, readable, the yardstick of the faster backends."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from wm_engine.dream.types import DreamOutput, RolloutPlan, Starts, join
from wm_engine.models.base import WorldModel, WorldState
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.ops.dream import DreamWeights, StepOutcome, dream_step
from wm_engine.policies.controller import ControllerSpec, raw_actions, squash_actions
from wm_engine.rng import StepWords, numbers

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Matrix libraries take other kernels, which round differently, below a handful of rows. So that a rollout's numbers do
# not depend on its company, small batches are filled up to these; larger ones were equal to the bit on the CPU.
_LEAST_ROLLOUTS = 16
_LEAST_EPISODES = 4

# Bounds the memory of a call (about 10 KB a rollout at the paper's size), not its results.
_MOST_ROLLOUTS = 1 << 16

# Whether every rollout has ended is asked this rarely: each question makes the host wait for the device.
_STEPS_BETWEEN_CHECKS = 32


class _MDNRNNSteps:
    """The MDN-RNN's dreamt steps, its matrix products in a precision of their own."""

    def __init__(self, m: MDNRNN, device: torch.device, low: torch.dtype, dtype: torch.dtype) -> None:
        self._m, self._dtype = m, dtype

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
            m.residual,
        )

    def draws(self, words: Tensor) -> tuple[Tensor, ...]:
        return numbers(words, self._m.latent, self._m.mixture, self._dtype)

    def step(self, state: WorldState, action: Tensor, draws: tuple[Tensor, ...], plan: RolloutPlan) -> StepOutcome:
        return dream_step(
            self._weights, state.z, action, state.h, state.c, *draws,
            temperature=plan.temperature, reward=plan.reward, done=plan.done,
        )  # fmt: skip


class _AnySteps:
    """The dreamt steps of any kind of world model, all of it in one precision."""

    def __init__(self, m: WorldModel, device: torch.device, dtype: torch.dtype) -> None:
        self._m = copy.deepcopy(m).to(device, dtype).eval()
        self._dtype = dtype

    def draws(self, words: Tensor) -> tuple[Tensor, ...]:
        return (words,)

    def step(self, state: WorldState, action: Tensor, draws: tuple[Tensor, ...], plan: RolloutPlan) -> StepOutcome:
        (words,) = draws
        out = self._m.imagine(state, action, words, plan.temperature)
        # The last block's first word decides the end, as in the MDN-RNN's contract.
        uniforms = ((words[:, -1, 0] >> 9).to(self._dtype) + 0.5) * 2.0**-23
        ended = out.done > 0 if plan.done == "threshold" else torch.sigmoid(out.done) > uniforms
        gained = out.reward if plan.reward == "predicted" else torch.ones_like(out.reward)
        finite = torch.isfinite(out.state.z).all(dim=-1) & torch.isfinite(out.reward) & torch.isfinite(out.done)
        return StepOutcome(out.state.z, out.state.h, out.state.c, gained, ended, out.done, finite)


class TorchBackend:
    """Dreams as batched torch operations, in any kind of world model.

    Matrix products of an MDN-RNN run in the given precision, its controller and everything pointwise in float32
    (float64 for "fp64"); another kind runs in float32, or float64, as a whole. Ended rollouts are masked, not removed.
    """

    def __init__(self, m: WorldModel, c: ControllerSpec, device: torch.device, precision: str = "fp32") -> None:
        self._spec, self._device, self._blocks = c, device, m.blocks
        self._hidden = m.hidden
        self._dtype = torch.float64 if precision == "fp64" else torch.float32
        self._steps: _MDNRNNSteps | _AnySteps
        if isinstance(m, MDNRNN):
            self._steps = _MDNRNNSteps(m, device, DTYPES[precision], self._dtype)
        else:
            self._steps = _AnySteps(m, device, self._dtype)

    @torch.inference_mode()
    def rollout(self, controls: Tensor, starts: Starts, plan: RolloutPlan) -> DreamOutput:
        """See :class:`wm_engine.dream.types.Backend`."""
        per_call = max(1, _MOST_ROLLOUTS // plan.episodes)
        parts = [
            self._block(controls[first : first + per_call], starts, plan, plan.first_candidate + first)
            for first in range(0, controls.shape[0], per_call)
        ]
        return join(parts, self._device)

    def release(self) -> None:
        """See :class:`wm_engine.dream.types.Backend`: nothing is kept."""

    def _raw_actions(
        self, controls: Tensor, z: Tensor, h: Tensor, c: Tensor, step: int, plan: RolloutPlan
    ) -> tuple[Tensor, Tensor]:
        """Make a step's actions of all rollouts, [P·E, A] each: before the squash and after it."""
        spec, num_p, num_e = self._spec, len(controls), len(z) // len(controls)
        if plan.open_loop:
            given = controls[:, step].unsqueeze(1).expand(-1, num_e, -1).flatten(0, 1)
            return given, given
        raw = raw_actions(spec, controls, spec.observe(z, h, c).unflatten(0, (num_p, num_e))).flatten(0, 1)
        return raw, squash_actions(spec, raw)

    def _block(self, controls: Tensor, starts: Starts, plan: RolloutPlan, first_candidate: int) -> DreamOutput:
        device, dtype = self._device, self._dtype
        wanted_p, wanted_e = controls.shape[0], plan.episodes
        num_e = max(wanted_e, _LEAST_EPISODES)
        num_p = max(wanted_p, -(-_LEAST_ROLLOUTS // num_e))
        controls = controls.to(device, dtype)
        controls = torch.cat([controls, controls[:1].expand(num_p - wanted_p, *controls.shape[1:])])

        episodes = plan.first_episode + plan.episode_stride * torch.arange(num_e, device=device)
        candidates = torch.zeros(1, dtype=torch.int64, device=device)
        if not plan.common_random_numbers:
            candidates = torch.arange(first_candidate, first_candidate + num_p, device=device)
        draws = StepWords(plan.seed, candidates, episodes, self._blocks)

        def per_rollout(value: Tensor) -> Tensor:
            return value.expand(num_p, *value.shape[1:]).flatten(0, 1)

        z, h, c = (
            per_rollout(state[episodes % len(starts)].unsqueeze(0)) for state in starts.to(device, dtype, self._hidden)
        )
        alive = torch.ones(num_p * num_e, dtype=torch.bool, device=device)
        failed = torch.zeros_like(alive)
        returns = torch.zeros(num_p * num_e, device=device, dtype=dtype)
        lengths = torch.zeros(num_p * num_e, device=device, dtype=torch.int32)
        record: list[tuple[Tensor, Tensor, Tensor]] = []

        for step in range(plan.max_steps):
            raw, action = self._raw_actions(controls, z, h, c, step, plan)
            # Made once for all candidates that share them, and only then spread over the rollouts.
            numbers_of_step = tuple(per_rollout(part) for part in self._steps.draws(draws.at(step)))
            outcome = self._steps.step(WorldState(z, h, c), action, numbers_of_step, plan)
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
