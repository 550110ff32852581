"""The dream on a GPU: whole rollouts in Triton kernels (``wm_engine.kernels``)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

import wm_engine.kernels as kernels
from wm_engine.dream.crossover import crossover
from wm_engine.dream.types import DreamOutput, RolloutPlan, Starts
from wm_engine.errors import DeviceLimitError
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.policies.controller import ControllerSpec
from wm_engine.rng import key_words

if TYPE_CHECKING:
    from wm_engine.kernels import launch

_log = logging.getLogger(__name__)

FORMS = ("auto", "persistent", "steps")

# Bounds the memory of a launch and what is kept for the next; larger populations are dreamt block by block.
_MOST_BYTES = 4 << 30
_KEPT_BYTES = 1 << 30
_MOST_ROLLOUTS = 1 << 20

# The forms are compared with this many episodes a candidate, over this many steps.
_EPISODES = 16
_MEASURED_STEPS = 64


class TritonBackend:
    """Dreams with the Triton kernels, on CUDA devices (AMD's included), or anywhere in Triton's interpreter.

    The products of M run in the given precision with float32 sums; "fp32" makes them of three tf32 products on NVIDIA
    GPUs, for checking more than for speed. The controller sees z, h as they go into the products; it, the cell and all
    else are float32. ``form``: "persistent" (one kernel for all steps of a tile of rollouts), "steps" (two kernels a
    step, in a CUDA graph) or "auto", which takes the faster for the population's size, as measured once per device and
    kept on disk (``wm_engine.dream.crossover``), or as ``crossovers`` has it.
    """

    PRECISIONS: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp16")

    def __init__(
        self,
        m: MDNRNN,
        c: ControllerSpec,
        device: torch.device,
        precision: str = "fp32",
        form: str = "auto",
        settings: launch.Settings | None = None,
        crossovers: Mapping[str, int] | None = None,
    ) -> None:
        target = kernels.target_of(device)
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, but was {form!r}")
        from wm_engine.kernels import launch

        self._spec, self._form, self._device, self._launch = c, form, device, launch
        self._precision, self._crossovers = precision, dict(crossovers or {})
        if precision == "fp32" and device.type == "cuda":
            _log.info("triton: fp32 makes M's products three times over, for checking; bf16 is the precision for speed")
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        if settings is None:
            settings = launch.default_settings(*target, m.hidden, m.latent + m.action, dtype)
        w = m.state_dict()

        def weight(value: Tensor) -> Tensor:
            return value.to(dtype).to(device, copy=True).contiguous()

        def parts(value: Tensor) -> Any:
            head = m.layout.split(value.to(device))
            return head.logits, head.means, head.log_stds, head.reward, head.done

        self._model = launch.pack_model(
            weight(w["lstm.weight_ih_l0"]),
            weight(w["lstm.weight_hh_l0"]),
            (w["lstm.bias_ih_l0"].double() + w["lstm.bias_hh_l0"].double()).float().to(device),
            parts(w["head.weight"].T.to(dtype)),
            parts(w["head.bias"].float()),
            settings,
            m.residual,
        )
        shape = launch.Controllers(len(c.features), None if c.squash == "argmax" else tuple(c.squash), c.hidden_units)
        self._shape, self._controllers = shape, shape.values(self._model)
        self._steppers = launch.Steppers(self._model, self._controllers, _KEPT_BYTES)
        one = torch.empty(1, c.num_params, device="meta")
        self._packed_candidate = shape.pack(self._model, c.layers(one))
        # Of given actions, in the controllers' place.
        self._given = launch.Controllers(0, shape.squash, 0).values(self._model)
        self._given_steppers = launch.Steppers(self._model, self._given, _KEPT_BYTES)

    # Not inference_mode: before torch 2.11 a graph captured there spoils all that are captured outside it later.
    @torch.no_grad()
    def rollout(self, controls: Tensor, starts: Starts, plan: RolloutPlan) -> DreamOutput:
        """See :class:`wm_engine.dream.types.Backend`. DeviceLimitError where a kernel does not fit the device."""
        try:
            return self._rollout(controls, starts, plan)
        except Exception as error:
            if not self._launch.beyond_device(error):
                raise
            if self._form != "auto":
                sizes = ", ".join(f"{name} {self._model.sizes[name]}" for name in ("latent", "hidden", "mixtures"))
                raise DeviceLimitError(
                    f"backend 'triton' cannot dream {sizes} in {self._precision} on {self._device}: its kernels do not "
                    f"fit the device ({error})"
                ) from error
            _log.info(
                "triton: step by step from now on: the persistent kernel does not fit %s: %s", self._device, error
            )
        # The kernels of a step are smaller. Not in the handler, whose traceback keeps the tensors of what failed.
        self._form = "steps"
        return self.rollout(controls, starts, plan)

    def _pack(self, controls: Tensor, plan: RolloutPlan) -> dict[str, Tensor]:
        """Pack some candidates' parameters, or their actions."""
        if plan.open_loop:
            return {"controllers": controls.flatten(1)}
        return self._shape.pack(self._model, self._spec.layers(controls))

    def _rollout(self, controls: Tensor, starts: Starts, plan: RolloutPlan) -> DreamOutput:
        spec, device = self._spec, self._device
        P, E = controls.shape[0], plan.episodes
        controls = controls.to(device, torch.float32).contiguous()
        begin = starts.to(device, torch.float32, spec.hidden)
        returns = torch.empty(P, E, device=device)
        lengths, failures = (torch.empty(P, E, dtype=torch.int32, device=device) for _ in range(2))
        record = None
        if plan.record:
            shape = (plan.max_steps, P, E)
            record = tuple(torch.zeros(*shape, *last, device=device) for last in ((spec.latent,), (spec.action,), ()))

        form = self._form_for(plan.population or P * E, plan.record)
        one = self._pack(controls[:1], plan) if plan.open_loop else self._packed_candidate
        block = candidates_a_launch(self._launch.bytes_per_candidate(self._model, one, E), E)
        episodes = (plan.first_episode + plan.episode_stride * torch.arange(E, device=device)) % len(starts)
        states = [state[episodes] for state in begin]
        for first in range(0, P, block):
            size = min(block, P - first)
            where = slice(first, first + size)
            shown = None if record is None else tuple(track[:, where].flatten(1, 2) for track in record)
            task = self._launch.Task(
                self._pack(controls[where], plan), E, *states,
                returns[where].view(-1), lengths[where].view(-1), failures[where].view(-1),
                shown, P * E, plan.max_steps, plan.temperature, key_words(plan.seed), plan.first_candidate + first,
                plan.reward == "survival", plan.done == "sample", plan.common_random_numbers, plan.first_episode,
                plan.episode_stride,
            )  # fmt: skip
            self._dream(task, form, plan.open_loop)
        return DreamOutput(returns, lengths, (failures != 0).any(dim=1), *(record or ()))

    def release(self) -> None:
        """See :class:`wm_engine.dream.types.Backend`."""
        self._steppers.clear()
        self._given_steppers.clear()

    def _form_for(self, rollouts: int, record: bool) -> str:
        if self._form != "auto":
            return self._form
        # Records launch step by step without a graph, which never pays; the interpreter has nothing to measure.
        if record or self._device.type != "cuda":
            return "persistent"
        return "steps" if rollouts < self._crossover(self._key()) else "persistent"

    def crossovers(self) -> dict[str, int]:
        """See :meth:`wm_engine.dream.DreamEngine.crossovers`."""
        if self._form != "auto" or self._device.type != "cuda":
            return {}
        key = self._key()
        try:
            return {key: self._crossover(key)}
        except Exception as error:
            if not self._launch.beyond_device(error):
                raise
            return {}  # a form does not fit the device, which the first rollout finds out too

    @torch.no_grad()
    def _crossover(self, key: str) -> int:
        return self._crossovers.get(key) or crossover(key, self._seconds)

    def _dream(self, task: launch.Task, form: str, open_loop: bool) -> None:
        if form == "persistent":
            self._launch.persistent(self._model, self._given if open_loop else self._controllers, task)
            return
        steppers, others = self._steppers, self._given_steppers
        if open_loop:
            steppers, others = others, steppers
        others.clear()  # what is kept for the next launch has one bound
        steppers.run(task)

    def _key(self) -> str:
        """All that the crossover depends on."""
        sizes = ",".join(f"{name}={size}" for name, size in self._model.sizes.items())
        mixture = ("shared" if self._model.shared else "per_dim") + (", residual" if self._model.residual else "")
        versions = f"triton {kernels.triton_version()}, torch {torch.__version__}"
        dtype = self._model.tensors["gate_weights"].dtype
        name = torch.cuda.get_device_name(self._device)
        return f"{name}; {versions}; {mixture}; {dtype}; {sizes}; {self._model.settings}; {self._shape}"

    def _seconds(self, form: str, rollouts: int) -> float:
        """Time a form for this many rollouts of the measured length, of which none ends early: the answer is
        kept for all M of these sizes."""
        spec, device = self._spec, self._device
        biases = self._model.tensors["control_biases"].clone()
        biases[(self._model.sizes["mixtures"] if self._model.shared else 0) + 1] = -1e30  # of the end
        model = replace(self._model, tensors=self._model.tensors | {"control_biases": biases})
        candidates = rollouts // _EPISODES
        params = torch.zeros(candidates, spec.num_params, device=device)
        z, h = (torch.zeros(_EPISODES, n, device=device) for n in (spec.latent, spec.hidden))
        returns, lengths = torch.empty(rollouts, device=device), torch.empty(rollouts, dtype=torch.int32, device=device)
        task = self._launch.Task(
            self._shape.pack(self._model, spec.layers(params)), _EPISODES, z, h, h, returns, lengths,
            torch.empty_like(lengths), None, rollouts, _MEASURED_STEPS, 1.0, (0, 0), 0, True, False, True,
        )  # fmt: skip
        if form == "persistent":
            return _best_seconds(lambda: self._launch.persistent(model, self._controllers, task), device)
        stepper = self._launch.Stepper(model, self._controllers, task)
        return _best_seconds(lambda: stepper.run(task), device)


def candidates_a_launch(bytes_per_candidate: int, episodes: int) -> int:
    """Count the candidates that are dreamt at once: what fits the bounds on memory and rollouts, at least one."""
    return max(1, min(_MOST_ROLLOUTS // episodes, (_MOST_BYTES - _KEPT_BYTES) // bytes_per_candidate))


def _best_seconds(run: Callable[[], None], device: torch.device) -> float:
    """The best of three runs, after one that compiles."""
    times = []
    for _ in range(4):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def missing() -> str | None:
    """Say why this backend cannot dream here, or None where it can."""
    reason = kernels.missing()
    if reason is None and not torch.cuda.is_available() and not kernels.interpreted():
        return "no GPU that torch can use (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly, for checking)"
    return reason


def beyond_limits(m: MDNRNN, c: ControllerSpec) -> str | None:
    """Name the size of M or C that the kernels cannot take, or None."""
    return kernels.beyond_limits(
        {
            "hidden": m.hidden,
            "latent + action": m.latent + m.action,
            "mixtures": m.mixtures,
            "action": m.action,
            "hidden_units": c.hidden_units,
        }
    )
