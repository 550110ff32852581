"""The host's half of the dream's kernels: packing M's weights, sizes of blocks, scratch memory, launches."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import triton
from torch import Tensor

from . import MOST, dream, interpreted, triton_release
from .constants import Sizes, Switches
from .controller import SQUASHES
from .lstm import pack_gates, padded, padded_hidden

FENCES_COPIES_SINCE = (3, 7)
"""The version of Triton from which on it shows warpgroups' products what was copied asynchronously (fence.proxy.async,
which NVIDIA's instruction set asks for)."""


@dataclass(frozen=True)
class Settings:
    """How the kernels are launched.

    rows : rollouts a program
    units : of M's hidden units, how many a chunk takes
    dims : of the latent dimensions, how many the head makes at a time, at most
    depth : how many of h's columns the head's products load at a time, at most: all of them, kept in shared memory, or
        fewer, loaded again for each product
    num_warps, num_stages : of Triton; stages are those of the weights' stream
    dot : how products are made, see :func:`wm_engine.kernels.maths.add_product`
    """

    rows: int = 64
    units: int = 16
    dims: int = 32
    depth: int = MOST["hidden"]
    num_warps: int = 4
    num_stages: int = 2
    dot: str = "ieee"


def default_settings(backend: str, arch: int | str, hidden: int, inputs: int, dtype: torch.dtype) -> Settings:
    """For a target of Triton: backend "cuda" | "hip", arch 80, 90, ... or "gfx942"; any other backend interprets.

    hidden, inputs : M's H, and Z + A

    At the paper's size in 16 bits, the largest tile whose kernels spill no registers (TUNING.md has the trials), and of
    which two fit on a multiprocessor of sm_80 and sm_90: one's products then take turns with the other's cells. On
    sm_90 and sm_100 matrix instructions take 64 rows of a group of four warps. sm_100 keeps the addresses of operands
    in registers, a pair for 16 columns of depth, hence its smaller blocks of the head. A larger H or float32 takes
    smaller chunks, that fit: ``python -m wm_engine.kernels.aot`` holds all of this. Not tuned on any device.
    """
    size = padded(hidden)
    by_parts = Settings(dims=16, depth=64, num_warps=8, num_stages=1, dot="tf32x3")
    if backend == "cuda":
        if dtype == torch.float32:
            if size <= 256:
                return replace(by_parts, rows=16, units=8)
            # Three tf32 products keep two parts of every operand, which do not fit here.
            return replace(by_parts, rows=16, units=4, num_warps=4, dot="ieee")
        if int(arch) >= 100:
            # Beyond 512 columns the tile of h does not fit in tensor memory, which fewer than 64 rows do not go to.
            return replace(by_parts, rows=64 if size <= 512 else 32, units=16 if size <= 256 else 8)
        if int(arch) >= 90:
            # With one stage weights come in through registers, and those every Triton shows to the products.
            stages = 2 if triton_release() >= FENCES_COPIES_SINCE else 1
            if size <= 256:
                return Settings(rows=64, units=8, dims=16, num_stages=stages, dot="tf32x3")
            if size <= 512:
                # Wider tiles of [z, a] leave shared memory for one stage.
                stages = stages if padded(inputs) <= 64 else 1
                return Settings(rows=128, units=8, dims=16, depth=64, num_warps=8, num_stages=stages, dot="tf32x3")
            return replace(by_parts, rows=64, units=8, num_warps=4)
        return Settings(rows=32, dims=16, dot="tf32x3") if size <= 256 else replace(by_parts, rows=32, units=8)
    if backend == "hip":
        if size <= 256 and dtype != torch.float32:
            return Settings(rows=16, num_stages=1)
        return Settings(
            rows=16, units=16 if size <= 512 and dtype != torch.float32 else 4, dims=16, depth=64, num_stages=1
        )
    return Settings(rows=128, dot="sums")


@dataclass(frozen=True)
class Model:
    """M's weights, packed for the kernels, with their sizes and settings."""

    tensors: dict[str, Tensor]
    sizes: dict[str, int]
    shared: bool
    settings: Settings
    residual: bool = False

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tensors["gate_weights"].device


def pack_model(
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    head: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    head_bias: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    settings: Settings,
    residual: bool = False,
) -> Model:
    """Pack M.

    Parameters
    ----------
    weight_ih : [4H, Z+A]; weight_hh : [4H, H]; bias : [4H], in the dtype of the products
    head : logits [H, C, K], means [H, Z, K], log_stds [H, Z, K], reward [H], done [H]: the head's weight, transposed
        and taken apart, in the same dtype
    head_bias : the same of its bias, without H
    settings : of the launches
    residual : whether the mixture is of the latent's change
    """
    hidden, inputs = weight_hh.shape[1], weight_ih.shape[1]
    latent, mixtures = head[1].shape[1:]
    shared = head[0].shape[1] == 1
    hp, dims = padded_hidden(hidden), min(settings.dims, padded(latent))
    units = min(settings.units, hp)
    gate_weights, gate_biases = pack_gates(weight_ih, weight_hh, bias, units)

    def by_group(weight: Tensor) -> Tensor:
        """[H, Z, K, n] to [groups of latent dimensions, K, HP, dims · n], zeros filled in."""
        groups, each = triton.cdiv(latent, dims), weight.shape[-1]
        full = weight.new_zeros(hp, groups * dims, mixtures, each)
        full[: weight.shape[0], :latent] = weight
        full = full.view(hp, groups, dims, mixtures, each).permute(1, 3, 0, 2, 4)
        return full.reshape(groups, mixtures, hp, dims * each).contiguous()

    def packed(parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        logits, means, log_stds, reward, done = parts
        columns = [*(logits[:, 0].unbind(-1) if shared else ()), reward, done]
        control = reward.new_zeros(hp, padded(len(columns)))
        control[: len(reward), : len(columns)] = torch.stack(columns, dim=-1)
        choice = reward.new_zeros(1) if shared else by_group(logits.unsqueeze(-1))
        return control, choice, by_group(torch.stack([means, log_stds], dim=-1))

    names = ("control", "choice", "value")
    weights = dict(zip((f"{name}_weights" for name in names), packed(head), strict=True))
    # A bias is packed as the only row of a weight; the rows of zeros that come with it are dropped.
    rows = packed(tuple(part.float().unsqueeze(0) for part in head_bias))
    biases = {
        f"{name}_biases": (row if row.dim() == 1 else row[..., 0, :]).contiguous()
        for name, row in zip(names, rows, strict=True)
    }
    sizes = {
        "latent": latent, "hidden": hidden, "mixtures": mixtures, "actions": inputs - latent,
        "HP": hp, "XP": padded(inputs), "UNITS": units, "DIMS": dims, "DEPTH": min(settings.depth, hp),
        "SPAN": min(32, hp, padded(inputs)), "CONTROL": weights["control_weights"].shape[1],
        "ROWS": settings.rows, "STAGES": settings.num_stages,
    }  # fmt: skip
    gates = {"gate_weights": gate_weights, "gate_biases": gate_biases}
    return Model(gates | weights | biases, sizes, shared, settings, residual)


@dataclass(frozen=True)
class Controllers:
    """The controllers' shape, as the kernels take it.

    features : 1 (z), 2 (z, h) or 3 (z, h, c); 0 where actions are given in their place
    squash : a word of :data:`wm_engine.kernels.controller.SQUASHES` for each action dimension, or None for one-hot
    hidden_units : U, 0 for linear ones
    """

    features: int
    squash: tuple[str, ...] | None
    hidden_units: int

    def values(self, model: Model) -> dict[str, Any]:
        """The kernels' arguments that say it."""
        kinds = [0] * model.sizes["XP"]
        for place, word in enumerate(self.squash or (), start=model.sizes["latent"]):
            kinds[place] = SQUASHES.index(word)
        return {
            "squash": torch.tensor(kinds, dtype=torch.int32, device=model.device),
            "hidden_units": self.hidden_units,
            "UP": padded(self.hidden_units) if self.hidden_units else 0,
            "FEATURES": self.features,
            "ARGMAX": self.squash is None,
        }

    def pack(self, model: Model, layers: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Pack controllers, given as (weight [P, out, in], bias [P, out]) of each layer, float32.

        Returns ``controllers`` [P, n], a row each: the last layer's biases, at the columns that actions have in [z, a];
        the first layer's weights, whose rows are padded to [z in XP, h in HP, c in HP]; and, with a hidden layer, its
        biases and the last layer's weights, both padded to UP. Everything else is zero.
        """
        latent, hidden, actions, hp, xp = (model.sizes[name] for name in ("latent", "hidden", "actions", "HP", "XP"))
        weight, bias = layers[0]
        candidates, outputs = bias.shape
        up = padded(outputs) if len(layers) == 2 else 0
        widths = (xp, outputs * (xp + (self.features - 1) * hp), up, actions * up)
        # All parts are written in place: of a large population there is no room for the controllers twice.
        packed = weight.new_zeros(candidates, sum(widths))
        last_bias, first, first_bias, last = packed.split(widths, dim=1)
        last_bias[:, latent : latent + actions] = layers[-1][1]
        first = first.unflatten(1, (outputs, -1))
        first[..., :latent] = weight[..., :latent]
        for part in range(self.features - 1):
            there = weight[..., latent + part * hidden : latent + (part + 1) * hidden]
            first[..., xp + part * hp : xp + part * hp + hidden] = there
        if up > 0:
            first_bias[:, :outputs] = bias
            last.unflatten(1, (actions, -1))[..., :outputs] = layers[1][0]
        return {"controllers": packed}


@dataclass(frozen=True)
class Task:
    """A block of candidates to dream, and where its results go.

    params : of P candidates, by :meth:`Controllers.pack`; of given actions ``controllers`` [P, max_steps · A]
    z, h, c : float32 [E, Z], [E, H], [E, H]: where each episode begins, the same for all candidates
    returns : float32 [P·E]; lengths, failures : int32 [P·E]
    record : (z [T, R, Z], actions [T, R, A], rewards [T, R]), float32, zeros, of which this block's rollouts are the
        first P·E of the R; or None
    keys : words of the random-number contract; first_candidate : the first one's index in the whole population
    first_episode, episode_stride : the episodes are numbers first, first + stride, ... of the whole's
    """

    params: dict[str, Tensor]
    episodes: int
    z: Tensor
    h: Tensor
    c: Tensor
    returns: Tensor
    lengths: Tensor
    failures: Tensor
    record: tuple[Tensor, Tensor, Tensor] | None
    record_rows: int
    max_steps: int
    temperature: float
    keys: tuple[int, int]
    first_candidate: int
    survival: bool
    sample_done: bool
    common: bool
    first_episode: int = 0
    episode_stride: int = 1


def _signed(word: int) -> int:
    """A 32-bit word as the int32 of the same bits, so that every seed has one type of argument."""
    return word - (1 << 32) if word >= 1 << 31 else word


def switches_of(task: Task) -> Switches:
    """What kind of dream a task is."""
    return Switches(
        GREEDY=task.temperature == 0.0,
        SAMPLE_DONE=task.sample_done,
        SURVIVAL=task.survival,
        COMMON=task.common,
        RECORD=task.record is not None,
        STRIDED=(task.first_episode, task.episode_stride) != (0, 1),
    )


def values_of(model: Model, controllers: dict[str, Any], task: Task) -> dict[str, Any]:
    """The kernels' arguments by name, all groups of them but the state (:mod:`wm_engine.kernels.dream`).

    controllers : of :meth:`Controllers.values`
    """
    record_z, record_actions, record_rewards = task.record if task.record is not None else (task.returns,) * 3
    known = model.sizes | controllers | {"SHARED": model.shared, "DOT": model.settings.dot, "RESIDUAL": model.residual}
    return {
        # Controllers.
        **task.params, "squash": controllers["squash"],
        # M.
        **model.tensors,
        # Results.
        "returns": task.returns, "lengths": task.lengths, "failures": task.failures,
        # Record.
        "record_z": record_z, "record_actions": record_actions, "record_rewards": record_rewards,
        # Numbers.
        "rows": len(task.returns), "record_rows": task.record_rows, "episodes": task.episodes,
        "mixtures": model.sizes["mixtures"], "temperature": task.temperature, "max_steps": task.max_steps,
        "first_candidate": _signed(task.first_candidate),
        "first_episode": _signed(task.first_episode), "episode_stride": _signed(task.episode_stride),
        "key_low": _signed(task.keys[0]), "key_high": _signed(task.keys[1]),
        # Constants.
        "sizes": Sizes(**{field.name: known[field.name] for field in fields(Sizes)}), "switches": switches_of(task),
    }  # fmt: skip


def beyond_device(error: Exception) -> bool:
    """Whether Triton or the driver refused a launch for want of shared memory, tensor memory, registers or threads."""
    return isinstance(error, triton.OutOfResources) or (
        isinstance(error, RuntimeError) and "too many resources requested for launch" in str(error)
    )


FP_FUSION = True
"""Products and sums may fuse; said explicitly because Triton's default changes with its version."""


def launch(kernel: Any, grid: tuple[int, ...], values: dict[str, Any], settings: Settings) -> None:
    """Launch ``kernel`` with those of ``values`` that it takes."""
    if interpreted():
        # The bound of loops, which interpreters up to Triton 3.6 cannot take from an argument with NumPy 2.4 or newer.
        values = values | {"mixtures": triton.language.constexpr(values["mixtures"])}
    kernel[grid](
        **{name: values[name] for name in kernel.arg_names},
        num_warps=settings.num_warps,
        num_stages=settings.num_stages,
        enable_fp_fusion=FP_FUSION,
    )


def tiles_of(model: Model, rows: int) -> int:
    """How many tiles ``rows`` rollouts fill, the last one in part."""
    return int(triton.cdiv(rows, model.sizes["ROWS"]))


def scratch(model: Model, rows: int) -> dict[str, Tensor]:
    """State of ``rows`` rollouts, rounded up to whole tiles: h [2, R, HP], c [R, HP], z and x [R, XP], zeros."""
    tile, hp, xp = (model.sizes[name] for name in ("ROWS", "HP", "XP"))
    total, device, dtype = tiles_of(model, rows) * tile, model.device, model.tensors["gate_weights"].dtype
    return {
        "h": torch.zeros(2, total, hp, dtype=dtype, device=device),
        "c": torch.zeros(total, hp, device=device),
        "z": torch.zeros(total, xp, device=device),
        "x": torch.zeros(total, xp, dtype=dtype, device=device),
    }


def bytes_per_rollout(model: Model) -> int:
    """Device memory a rollout takes while it is dreamt in either form, results included."""
    hp, xp, low = model.sizes["HP"], model.sizes["XP"], model.tensors["gate_weights"].element_size()
    # Results, the same of the per-step form, its alive and acted: eight words; which of them failed: a byte.
    return (2 * low + 4) * hp + (4 + low) * xp + 33


def bytes_per_candidate(model: Model, params: dict[str, Tensor], episodes: int) -> int:
    """Device memory a candidate takes while it is dreamt in either form: its rollouts', and its packed parameters'.

    params : packed by :meth:`Controllers.pack` of one candidate, on any device. The per-step form has them twice
    """
    return episodes * bytes_per_rollout(model) + 2 * sum(value.nbytes for value in params.values())


def begin(state: dict[str, Tensor], task: Task) -> None:
    """Put the starts into scratch."""
    for now, start in ((state["h"][0], task.h), (state["c"], task.c), (state["z"], task.z)):
        episodes, width = start.shape
        now[: len(task.returns)].unflatten(0, (-1, episodes))[..., :width] = start


def persistent(model: Model, controllers: dict[str, Any], task: Task) -> None:
    """Dream a task with one kernel for all steps; results are written to its tensors."""
    state = scratch(model, len(task.returns))
    begin(state, task)
    with torch.cuda.device_of(task.returns):
        tiles = tiles_of(model, len(task.returns))
        launch(dream.rollout_kernel, (tiles,), values_of(model, controllers, task) | state, model.settings)


_capturing = threading.Lock()
"""A process may capture one graph at a time, and threads dream on several devices."""

STEPS_A_GRAPH = 16
"""Steps that one captured graph takes: enough that replaying costs little, few enough to stop soon."""


def has_graphs(device: torch.device) -> bool:
    """Whether launches on ``device`` wait in streams, and can be captured: on GPUs, but not in the interpreter."""
    return device.type == "cuda" and not interpreted()


class Stepper:
    """Dreams tasks of one shape step by step, two kernels each and one before the first; on a GPU as a captured graph.

    Owns the memory that the graph works on. It is made for as many candidates as fit the tiles of its first task, since
    a tile costs the same with fewer. Recording, and the interpreter, launch the same kernels one by one.
    """

    def __init__(self, model: Model, controllers: dict[str, Any], task: Task) -> None:
        self._model = model
        self._tiles = tiles_of(model, len(task.returns))
        total, device = self._tiles * model.sizes["ROWS"], model.device
        candidates = total // task.episodes
        self._state = scratch(model, total)
        for name, size in (("alive", total), ("acted", total), ("clock", 7)):
            self._state[name] = torch.zeros(size, dtype=torch.int32, device=device)
        self._params = {name: value.new_zeros(candidates, *value.shape[1:]) for name, value in task.params.items()}
        books = (task.returns, task.lengths, task.failures)
        self._books = tuple(book.new_zeros(candidates * task.episodes) for book in books)
        returns, lengths, failures = self._books
        own = replace(
            task, params=self._params, returns=returns, lengths=lengths, failures=failures, record=None, record_rows=0
        )
        self._values = values_of(model, controllers, own) | self._state | {"switches": switches_of(task)}
        self._graph: torch.cuda.CUDAGraph | None = None
        self._done = torch.cuda.Event() if has_graphs(device) else None

    @property
    def _memory(self) -> list[Tensor]:
        return [*self._state.values(), *self._params.values(), *self._books]

    @property
    def nbytes(self) -> int:
        """Device memory that is kept from task to task."""
        return sum(value.nbytes for value in self._memory)

    def run(self, task: Task) -> None:
        """Dream a task of the shape that this was made for, or of as many tiles, with any steps, seed and starts."""
        with torch.cuda.device_of(task.returns):
            if self._done is None:
                self._run(task)
                return
            # All tasks share this memory, and streams do not wait for each other: the last task may still be under way
            # on another. Nor may the memory, once it is let go of, be given away before this stream is done with it.
            stream = torch.cuda.current_stream()
            stream.wait_event(self._done)
            for value in self._memory:
                value.record_stream(stream)
            try:
                self._run(task)
            finally:
                self._done.record(stream)

    def _run(self, task: Task) -> None:
        values, graph = self._values, None
        if task.record is not None:
            values = values | dict(zip(("record_z", "record_actions", "record_rewards"), task.record, strict=True))
            values |= {"record_rows": task.record_rows}
        elif has_graphs(self._model.device):
            # Before the task is begun, since the launches that compile work on the same memory.
            graph = self._graph = self._graph or self._capture()
        self._begin(task)
        launch(dream.act_kernel, (self._tiles,), values, self._model.settings)
        for done in range(0, task.max_steps, STEPS_A_GRAPH):
            if graph is not None:
                graph.replay()
            else:
                self._advance(min(STEPS_A_GRAPH, task.max_steps - done), values)
            if (done // STEPS_A_GRAPH) % 2 == 1 and not bool(self._state["alive"].any()):
                break
        returns, lengths, failures = (book[: len(task.returns)] for book in self._books)
        task.returns.copy_(returns).masked_fill_(failures != 0, torch.nan)
        task.lengths.copy_(lengths)
        task.failures.copy_(failures)

    def _begin(self, task: Task) -> None:
        """Set anew all that a task reads; x and acted are the first kernel's."""
        state = self._state
        for name in ("h", "c", "z", "alive"):
            state[name].zero_()
        begin(state, task)
        state["alive"][: len(task.returns)] = 1
        words = (task.first_candidate, task.first_episode, task.episode_stride, *task.keys)
        changing = (0, task.max_steps, *map(_signed, words))
        state["clock"].copy_(torch.tensor(changing, dtype=torch.int32))
        for name, value in task.params.items():
            self._params[name][: len(value)].copy_(value)
        for book in self._books:
            book.zero_()

    def _advance(self, steps: int, values: dict[str, Any]) -> None:
        """Advance all rollouts by some steps."""
        model = self._model
        chunks = model.sizes["HP"] // model.sizes["UNITS"]
        for offset in range(steps):
            at = values | {"step_offset": offset}
            launch(dream.advance_kernel, (self._tiles, chunks), at, model.settings)
            launch(dream.settle_kernel, (self._tiles,), at, model.settings)
        self._state["clock"][0].add_(steps)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """A graph of STEPS_A_GRAPH steps."""
        # Compiled and loaded before the capture, which allows neither.
        self._advance(1, self._values)
        graph = torch.cuda.CUDAGraph()
        # torch's own stream for captures is of the device that captured first, and its captures forbid other threads,
        # which dream on other devices, to allocate.
        stream = torch.cuda.Stream(self._model.device)
        with _capturing, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._advance(STEPS_A_GRAPH, self._values)
        return graph


KEPT_STEPPERS = 8
"""A race's rounds take turns, and those after the first differ in size from generation to generation."""


class Steppers:
    """Runs tasks in Steppers, and keeps the latest of them: sizes that take turns would capture a graph at each turn.

    Kept are KEPT_STEPPERS at most, of ``most_bytes`` at most together; the least recently used is let go of first. One
    that is larger by itself is not kept.
    """

    def __init__(self, model: Model, controllers: dict[str, Any], most_bytes: int) -> None:
        self._model, self._controllers, self._most_bytes = model, controllers, most_bytes
        self._kept: dict[Any, Stepper] = {}

    def run(self, task: Task) -> None:
        """Dream a task in the Stepper of its shape."""
        key = (
            tiles_of(self._model, len(task.returns)), task.episodes, task.temperature, task.survival, task.sample_done,
            task.common, task.record is not None, switches_of(task).STRIDED.value, task.params["controllers"].shape[1],
        )  # fmt: skip
        stepper = self._kept.pop(key, None) or Stepper(self._model, self._controllers, task)
        if stepper.nbytes <= self._most_bytes:
            self._kept[key] = stepper
        while len(self._kept) > KEPT_STEPPERS or sum(kept.nbytes for kept in self._kept.values()) > self._most_bytes:
            self._kept.pop(next(iter(self._kept)))
        stepper.run(task)

    def clear(self) -> None:
        """Let go of them all."""
        self._kept.clear()
