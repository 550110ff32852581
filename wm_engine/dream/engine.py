"""DreamEngine: a population of controllers, dreamt by the fastest backend at hand."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

import wm_engine.kernels as kernels
from wm_engine.checks import (
    FLOAT32_MAX,
    as_device,
    check_bool,
    check_choice,
    check_device,
    check_float,
    check_int,
    check_tensor,
    check_type,
)
from wm_engine.dream import triton_backend
from wm_engine.dream.cpp_backend import CppBackend
from wm_engine.dream.ensemble_backend import EnsembleBackend
from wm_engine.dream.lanes import DreamLanes
from wm_engine.dream.torch_backend import DTYPES, TorchBackend
from wm_engine.dream.triton_backend import TritonBackend
from wm_engine.dream.types import Backend, DreamOutput, LaneBackend, RolloutPlan, Starts, checked_controls, join
from wm_engine.errors import DeviceLimitError, DeviceMemoryError
from wm_engine.fleet import shards
from wm_engine.models.base import WorldModel
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.ops.dream import DONES, REWARDS
from wm_engine.policies.controller import ControllerSpec
from wm_engine.rng import key_words

_log = logging.getLogger(__name__)
_COUNTER_LIMIT = 1 << 32
_MOST_STEPS = (1 << 31) - 1  # lengths are int32


@dataclass(frozen=True)
class BackendEntry:
    """A backend in the table: where it runs, in which precisions, and why it may be missing here.

    by_name : devices where it runs too, but only where it is asked for by name
    refuses : why it cannot dream this memory and controller, or None
    unfit : why it cannot use this device, of a kind that it runs on, or None
    steps_lanes : whether it takes dreams a step at a time too (:meth:`DreamEngine.lanes`)
    """

    name: str
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    missing: Callable[[], str | None]
    make: Callable[..., Backend]
    by_name: tuple[str, ...] = ()
    refuses: Callable[[WorldModel, ControllerSpec], str | None] = lambda m, c: None
    unfit: Callable[[torch.device], str | None] = lambda device: None
    steps_lanes: bool = True


def _cpp_missing() -> str | None:
    there, reason = CppBackend.available()
    return None if there else reason


def _no_mdn_rnn(m: WorldModel, c: ControllerSpec) -> str | None:
    member = m.episode_models()[0]
    if isinstance(member, MDNRNN):
        return None
    return f"it dreams MDN-RNNs alone, and this world model is a {type(member).__name__}: the torch backend dreams it"


def _beyond_triton(m: WorldModel, c: ControllerSpec) -> str | None:
    member = m.episode_models()[0]
    return _no_mdn_rnn(m, c) or (triton_backend.beyond_limits(member, c) if isinstance(member, MDNRNN) else None)


BACKENDS = (
    BackendEntry("cpp", ("cpu",), CppBackend.PRECISIONS, _cpp_missing, CppBackend, refuses=_no_mdn_rnn),
    BackendEntry(
        "triton",
        ("cuda",),
        TritonBackend.PRECISIONS,
        triton_backend.missing,
        TritonBackend,
        by_name=("cpu",),
        refuses=_beyond_triton,
        unfit=kernels.unfit,
        steps_lanes=False,
    ),
    BackendEntry("torch", ("cpu", "cuda", "mps"), tuple(DTYPES), lambda: None, TorchBackend),
)
"""Fastest first: ``auto`` takes the first that is here and fits."""


def fastest_backend(device: str, precision: str, m: WorldModel, c: ControllerSpec) -> str:
    """Name what ``auto`` takes on a kind of device where everything is installed; ValueError where nothing fits."""
    for entry in BACKENDS:
        if device in entry.devices and precision in entry.precisions and entry.refuses(m, c) is None:
            return entry.name
    raise ValueError(f"no backend dreams in {precision!r} on {device!r}")


class DreamEngine:
    """Dreams whole populations.

    Parameters
    ----------
    m : the world model, an MDN-RNN or, on the torch backend, any kind; or an ensemble of N, whose member e mod N dreams
        episode e. Its weights are copied, so train on and make a new engine
    c : the controllers' shape; latent, hidden and action must be M's
    device : where to dream
    devices : several of one kind, in place of ``device``: the population is split over them, a share to each, and the
        output is gathered on the first. Results are those of one device
    backend : "auto" | "cpp" (CPU) | "triton" (CUDA) | "torch" (any device)
    precision : "fp32" | "bf16" | ..., of M's matrix products
    num_threads : of the ``cpp`` backend; None takes every core this process may use
    crossovers : what :meth:`crossovers` said elsewhere or earlier, so that this engine makes the same bits

    Raises ValueError for sizes that do not match, non-finite weights, a device that is not here, or a backend that
    cannot do what is asked; RuntimeError for one that is not installed here; DeviceMemoryError where the device has no
    memory for M. No backend is ever taken silently in place of an explicit choice.
    """

    def __init__(
        self,
        m: WorldModel,
        c: ControllerSpec,
        device: str | torch.device = "cpu",
        backend: str = "auto",
        precision: str = "fp32",
        num_threads: int | None = None,
        devices: Sequence[str | torch.device] | None = None,
        crossovers: Mapping[str, int] | None = None,
    ) -> None:
        check_type("m", m, WorldModel)  # type: ignore[type-abstract]
        check_type("c", c, ControllerSpec)
        self._state_size = m.state_size
        for name in ("latent", "hidden", "action") if "h" in c.features or m.hidden else ("latent", "action"):
            if getattr(m, name) != getattr(c, name):
                raise ValueError(
                    f"the controller's {name} must be the memory's, {getattr(m, name)}, but was {getattr(c, name)}"
                )
        for name, value in m.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"the memory's weights must be finite, but {name} has entries that are not")
        if num_threads is not None:
            check_int("num_threads", num_threads, least=1)
        self.controller = c
        self.devices = _checked_devices([device] if devices is None else devices)
        self.device = self.devices[0]
        self.precision = precision
        entry = _choose(backend, self.device, precision, m, c)
        for other in self.devices[1:]:
            check_device("device", other)
        _check_alike(self.devices)
        # Only a launch shows whether Triton's kernels fit the device: M is kept, as it is now, for the next backend.
        self._spare = copy.deepcopy(m) if backend == "auto" and entry.name == "triton" else None
        self.backend = entry.name
        options: dict[str, Any] = {}
        if entry.name == "cpp":
            options["num_threads"] = num_threads
        elif entry.name == "triton":
            options["crossovers"] = crossovers
        self._backends = self._made(entry, m, **options)

    def _made(self, entry: BackendEntry, m: WorldModel, **options: Any) -> list[Backend]:
        """A backend on each device; of an ensemble one for each member there."""

        def made(where: torch.device) -> Backend:
            models = m.episode_models()
            backends = [entry.make(model, self.controller, where, self.precision, **options) for model in models]
            return backends[0] if len(backends) == 1 else EnsembleBackend(backends, m.hidden)

        try:
            return [made(where) for where in self.devices]
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory("M's weights take", error) from None

    def _out_of_memory(self, what: str, error: torch.OutOfMemoryError) -> DeviceMemoryError:
        shown, devices = str(error).partition("\n")[0], ", ".join(map(str, self.devices))
        return DeviceMemoryError(f"{what} more memory than is free on {devices}: {shown}")

    def rollout(
        self,
        params: Tensor | None = None,
        starts: Starts | None = None,
        episodes: int = 16,
        max_steps: int = 1000,
        temperature: float = 1.0,
        seed: int = 0,
        reward: str = "predicted",
        done: str = "threshold",
        common_random_numbers: bool = True,
        first_candidate: int = 0,
        record: bool = False,
        population: int | None = None,
        actions: Tensor | None = None,
    ) -> DreamOutput:
        """Dream ``episodes`` episodes with each of P controllers, or of P given sequences of actions.

        One step, in this order: ``a = squash(W·[z, h(, c)] + b)``; ``h, c = LSTM([z, a], (h, c))``; head of h; the
        reward is added; ``z ~ mixture``; the end. The ending step's reward counts.

        Parameters
        ----------
        params : float32 [P, D], finite; layout in :class:`wm_engine.policies.controller.ControllerSpec`. Not together
            with ``actions``
        starts : episode e begins from ``starts[e mod N]``, the same for every candidate
        episodes : E; max_steps : T, the most steps of an episode; with ``actions`` no more than there are
        temperature : tau; logits / tau and standard deviation · sqrt(tau); 0 takes the most likely component's mean
        seed : in [0, 2**64); with step, episode and candidate it fixes every number drawn (``wm_engine.rng``)
        reward : "predicted" adds M's reward head, "survival" 1 a step
        done : "threshold" ends where the end logit > 0, "sample" where sigmoid(logit) > u
        common_random_numbers : all candidates meet the same random numbers
        first_candidate : index of ``params[0]`` in the whole population; a shard dreams as the whole would have
        record : keep latents, actions and rewards of every step too
        population : candidates of the whole of which ``params`` is a shard; None: P. What a backend chooses by size (a
            GPU's form) it chooses by this
        actions : float32 [P, T, A], finite, in the controllers' place (open loop): in all its episodes candidate p does
            ``actions[p, t]`` in step t, whatever M shows it. They are given to M as they are, neither squashed nor
            clipped, so they must be what the squash puts out and M has learnt from: in a box the task's own units and
            bounds; of discrete actions one-hot rows, a 1 for the one that is done and 0 for all others. A dream of
            these candidates has the numbers (``seed``, ``first_candidate``, ...) that it has with controllers that do
            the same

        Returns
        -------
        DreamOutput, on the engine's device

        Raises ValueError or TypeError for arguments outside these bounds, before anything runs; DeviceMemoryError where
        a device has too little memory, after which the engine can be used again; DeviceLimitError where the kernels of
        a backend that was asked for by name do not fit the device. ``auto`` then takes the next backend, for good.
        """
        controls = checked_controls(self.controller, params, actions)
        starts = self._checked_starts(starts)
        max_steps = check_int("max_steps", max_steps, least=1)
        if actions is not None:
            max_steps = min(max_steps, controls.shape[1])
            controls = controls[:, :max_steps]
        plan = RolloutPlan(
            episodes=check_int("episodes", episodes, least=1),
            max_steps=max_steps,
            temperature=check_float("temperature", temperature, least=0.0, most=FLOAT32_MAX),
            seed=check_int("seed", seed, least=0),
            reward=check_choice("reward", reward, REWARDS),
            done=check_choice("done", done, DONES),
            common_random_numbers=check_bool("common_random_numbers", common_random_numbers),
            first_candidate=check_int("first_candidate", first_candidate, least=0),
            record=check_bool("record", record),
            population=episodes * check_int("population", len(controls) if population is None else population, least=1),
            open_loop=actions is not None,
        )
        key_words(plan.seed)
        last = plan.first_candidate + controls.shape[0]
        if max(last, plan.episodes) > _COUNTER_LIMIT:
            raise ValueError(
                "candidates and episodes must fit the 32-bit counters of the random-number contract, but were "
                f"{last} and {plan.episodes}"
            )
        if plan.max_steps > _MOST_STEPS:
            raise ValueError(f"max_steps must be at most {_MOST_STEPS}, but was {plan.max_steps}")
        return self._dream(controls.detach(), starts, plan)

    def lanes(
        self,
        starts: Starts,
        count: int,
        *,
        temperature: float = 1.0,
        seed: int = 0,
        reward: str = "predicted",
        done: str = "threshold",
    ) -> DreamLanes:
        """Begin ``count`` dreams that are taken a step at a time, by actions from outside.

        The other arguments are :meth:`rollout`'s. Raises what it raises, and ValueError for the triton backend, which
        dreams whole rollouts alone, and for several devices.
        """
        starts = self._checked_starts(starts)
        plan = RolloutPlan(
            episodes=check_int("count", count, least=1),
            max_steps=1,
            temperature=check_float("temperature", temperature, least=0.0, most=FLOAT32_MAX),
            seed=check_int("seed", seed, least=0),
            reward=check_choice("reward", reward, REWARDS),
            done=check_choice("done", done, DONES),
        )
        return DreamLanes(self._lane_backend(), self.device, self._state_size, starts, plan)

    def act(self, params: Tensor, features: Tensor) -> Tensor:
        """Return what controllers do: the actions of a rollout, to the bit.

        ``params`` [P, D] and ``features`` [P, E, F], E rows for each of them; actions [P, E, A] on the engine's device,
        float32 (float64 where that is the precision). ValueError or TypeError for other shapes, and where :meth:`lanes`
        raises it.
        """
        check_tensor("params", params, ["P", self.controller.num_params])
        check_tensor("features", features, [len(params), "E", self.controller.num_features])
        return self._lane_backend().act(params.detach(), features.detach())

    def _lane_backend(self) -> LaneBackend:
        if not next(entry for entry in BACKENDS if entry.name == self.backend).steps_lanes:
            raise ValueError(
                f"backend {self.backend!r} dreams whole rollouts alone: make the engine with backend='torch'"
            )
        if len(self._backends) > 1:
            raise ValueError(f"lanes are stepped on one device, but devices were {', '.join(map(str, self.devices))}")
        return cast(LaneBackend, self._backends[0])

    def _checked_starts(self, starts: Starts | None) -> Starts:
        starts = check_type("starts", starts, Starts)
        check_tensor("starts.z", starts.z, ["N", self.controller.latent])
        for name in ("h", "c"):
            if getattr(starts, name) is not None and self._state_size:
                check_tensor(f"starts.{name}", getattr(starts, name), [len(starts), self._state_size])
        return starts

    def crossovers(self) -> dict[str, int]:
        """Measure the population size from which one kernel for all steps beats step by step, by what it depends on.

        A measurement, from which bits follow: runs keep it, and fleets share it. Empty where nothing is measured.
        DeviceMemoryError where the device has no memory for it.
        """
        first = self._backends[0]
        if isinstance(first, EnsembleBackend):
            first = first.members[0]  # all are of one shape
        try:
            return first.crossovers() if isinstance(first, TritonBackend) else {}
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory("measuring which form of the dream is faster takes", error) from None

    def _dream(self, controls: Tensor, starts: Starts, plan: RolloutPlan) -> DreamOutput:
        too_little_memory = None
        try:
            return self._split(controls, starts, plan)
        except DeviceLimitError as error:
            if self._spare is None:
                raise
            _log_once(f"backend {self.backend} is passed over: {error}")
        except torch.OutOfMemoryError as error:
            too_little_memory = str(error).partition("\n")[0]
        # Not in the handler: the traceback that it holds keeps the tensors of the call that failed.
        for backend in self._backends:
            backend.release()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if too_little_memory is not None:
            raise DeviceMemoryError(
                f"{controls.shape[0]} x {plan.episodes} rollouts on {', '.join(map(str, self.devices))} take more "
                f"memory than is free: {too_little_memory} Dream fewer candidates a call, or free the device of other "
                "work."
            )
        self._fall_back()
        return self._dream(controls, starts, plan)

    def _fall_back(self) -> None:
        """Go over to the backend that ``auto`` would have taken without the one that does not fit the device."""
        m, self._spare = self._spare, None
        assert m is not None
        names = [entry.name for entry in BACKENDS]
        later = BACKENDS[names.index(self.backend) + 1 :]
        entry = _first_fitting(later, self.device, self.precision, m, self.controller)
        self.backend = entry.name
        self._backends = self._made(entry, m)

    def _split(self, controls: Tensor, starts: Starts, plan: RolloutPlan) -> DreamOutput:
        """Every device dreams its share of the candidates, in a thread of its own."""
        parts = shards(len(controls), len(self._backends))
        work = [
            (
                backend,
                controls[part.start : part.stop],
                replace(plan, first_candidate=plan.first_candidate + part.start),
            )
            for backend, part in zip(self._backends, parts, strict=False)
        ]

        if len(work) == 1:
            backend, share, its_plan = work[0]
            return backend.rollout(share, starts, its_plan)
        # A thread begins with the default streams, but whoever called may have made the parameters on others.
        cuda = self.device.type == "cuda"
        streams = [torch.cuda.current_stream(where) for where in self.devices] if cuda else []

        def dream(backend: Backend, share: Tensor, its_plan: RolloutPlan) -> DreamOutput:
            with ExitStack() as stack:
                for stream in streams:
                    stack.enter_context(torch.cuda.stream(stream))
                return backend.rollout(share, starts, its_plan)

        with ThreadPoolExecutor(len(work)) as pool:
            return join(list(pool.map(dream, *zip(*work, strict=True))), self.device)


def _checked_devices(devices: Sequence[str | torch.device]) -> tuple[torch.device, ...]:
    if isinstance(devices, str) or len(devices) == 0:
        raise ValueError(f"devices must be a sequence of at least one device, but was {devices!r}")
    known = [_indexed(as_device("device", device)) for device in devices]
    shown = ", ".join(map(str, known))
    if len({device.type for device in known}) > 1:
        raise ValueError(f"devices must be of one kind, but were {shown}")
    if known[0].type == "cuda" and len(set(known)) < len(known):
        raise ValueError(f"devices must be different GPUs, but were {shown}")
    return tuple(known)


def _indexed(device: torch.device) -> torch.device:
    """The GPU that "cuda" stands for now: later another one may be current, but the weights will be on this one."""
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _check_alike(devices: Sequence[torch.device]) -> None:
    """ValueError where GPUs are of several models, whose kernels, and so whose bits, may differ."""
    names = {str(device): torch.cuda.get_device_name(device) for device in devices if device.type == "cuda"}
    if len(set(names.values())) > 1:
        shown = ", ".join(f"{device} ({name})" for device, name in names.items())
        raise ValueError(f"devices must be GPUs of one model, for equal results, but were {shown}")


def _choose(backend: str, device: torch.device, precision: str, m: WorldModel, c: ControllerSpec) -> BackendEntry:
    check_choice("backend", backend, ("auto", *(entry.name for entry in BACKENDS)))
    check_choice("precision", precision, sorted({p for entry in BACKENDS for p in entry.precisions}))
    if backend == "auto":
        check_device("device", device)
        return _first_fitting(BACKENDS, device, precision, m, c)
    entry = next(entry for entry in BACKENDS if entry.name == backend)
    if device.type not in entry.devices + entry.by_name:
        raise ValueError(f"backend {backend!r} runs on {', '.join(entry.devices)}, but device was {device.type!r}")
    if precision not in entry.precisions:
        raise ValueError(
            f"backend {backend!r} has precisions {', '.join(entry.precisions)}, but was asked for {precision!r}"
        )
    reason = entry.missing()
    if reason is not None:
        raise RuntimeError(f"backend {backend!r} is not available here: {reason}")
    check_device("device", device)
    reason = entry.unfit(device)
    if reason is not None:
        raise RuntimeError(f"backend {backend!r} is not available on {device}: {reason}")
    reason = entry.refuses(m, c)
    if reason is not None:
        raise ValueError(f"backend {backend!r} cannot dream this: {reason}")
    return entry


def _first_fitting(
    entries: Sequence[BackendEntry], device: torch.device, precision: str, m: WorldModel, c: ControllerSpec
) -> BackendEntry:
    """The first of these that is here and can dream this; which it is, and why others are not, is logged once."""
    for entry in entries:
        if device.type in entry.devices and precision in entry.precisions:
            reason = entry.missing() or entry.unfit(device) or entry.refuses(m, c)
            if reason is None:
                _log_once(f"backend: {entry.name} ({device.type}, {precision})")
                return entry
            _log_once(f"backend {entry.name} is passed over: {reason}")
    raise ValueError(f"no backend dreams in {precision} on {device.type!r}; see `wm-engine info`")


_logged: set[str] = set()


def _log_once(message: str) -> None:
    if message not in _logged:
        _logged.add(message)
        _log.info(message)
