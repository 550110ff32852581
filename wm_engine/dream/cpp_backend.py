"""The dream in the C++ core: tiles of rollouts over threads, each tile through all its steps (``csrc/``)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from wm_engine.core import core
from wm_engine.dream.types import DreamOutput, RolloutPlan, Starts
from wm_engine.machine import available_cpus
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.policies.controller import ControllerSpec


class CppBackend:
    """Dreams in the C++ core, on the CPU.

    The environment variable ``WM_ENGINE_ISA`` forces an instruction-set level, for tests and comparisons. Ctrl-C is
    answered at the next step of a tile.

    Parameters
    ----------
    m, c : M's weights are copied, packed for the processor at hand
    device : the CPU
    precision : "fp32" | "bf16" (weights, z, a and h rounded, sums in float32) | "int8" (what multiplies h: weights
        with a scale a row, h with a scale a rollout and step; z and a as in bf16). Reward and end heads, cell and
        controller are float32 in all of them.
    num_threads : None takes every CPU this process may keep busy
    """

    PRECISIONS: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "int8")

    def __init__(
        self, m: MDNRNN, c: ControllerSpec, device: torch.device, precision: str, num_threads: int | None = None
    ) -> None:
        module, reason = core()
        if module is None:
            raise RuntimeError(reason)
        self._num_threads = available_cpus() if num_threads is None else num_threads
        weights = {name.rpartition(".")[2].removesuffix("_l0"): _array(w) for name, w in m.lstm.state_dict().items()}
        self._dream = module.Dream(
            latent=m.latent,
            action=m.action,
            hidden=m.hidden,
            mixtures=m.mixtures,
            mixture=m.mixture,
            **weights,
            head_weight=_array(m.head.weight),
            head_bias=_array(m.head.bias),
            features=c.features,
            squash=c.squash,
            hidden_units=c.hidden_units,
            precision=precision,
            residual=m.residual,
        )

    @staticmethod
    def available() -> tuple[bool, str]:
        """Say whether the core is here, with the reason and the remedy where it is not."""
        module, reason = core()
        return module is not None, reason

    @staticmethod
    def describe() -> str:
        """The core's instruction-set levels, the one it takes, and its compiler, in words."""
        module, reason = core()
        if module is None:
            return reason
        words = [f"{module.chosen_isa()} of {', '.join(module.isa_levels())}", f"built by {module.compiler()}"]
        if module.isa_levels_not_compiled():
            words.append(f"without {', '.join(module.isa_levels_not_compiled())}, which that compiler does not know")
        if module.has_amx() and "amx" not in module.isa_levels():
            words.append("this processor's AMX cannot be used: the operating system or the compiler does not know it")
        return "; ".join(words)

    def rollout(self, controls: Tensor, starts: Starts, plan: RolloutPlan) -> DreamOutput:
        """See :class:`wm_engine.dream.types.Backend`."""
        out = self._dream.rollout(
            params=None if plan.open_loop else _array(controls),
            actions=_array(controls) if plan.open_loop else None,
            z=_array(starts.z),
            h=None if starts.h is None else _array(starts.h),
            c=None if starts.c is None else _array(starts.c),
            episodes=plan.episodes,
            max_steps=plan.max_steps,
            temperature=plan.temperature,
            seed=plan.seed,
            reward=plan.reward,
            done=plan.done,
            common_random_numbers=plan.common_random_numbers,
            first_candidate=plan.first_candidate,
            num_threads=self._num_threads,
            record=plan.record,
            first_episode=plan.first_episode,
            episode_stride=plan.episode_stride,
        )
        del out["work"]
        return DreamOutput(**{name: torch.from_numpy(value) for name, value in out.items()})

    def release(self) -> None:
        """See :class:`wm_engine.dream.types.Backend`: nothing is kept."""


def _array(value: Tensor) -> np.ndarray:
    """A tensor as a contiguous float32 array, sharing its memory where it can."""
    return value.detach().to("cpu", torch.float32).contiguous().numpy()
