"""torch.profiler over a dream: operators on a CPU, kernels on a GPU, with the bytes and flops that can be known."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from wm_engine.errors import MissingDependencyError

from .check import check
from .kernel_costs import DREAM_KERNELS, kernel_cost
from .operator_bytes import arguments, operator_bytes
from .rivals import Rival
from .roofs import Roofs
from .workload import Setup

_A_CALL = re.compile("(cuda|cu|hip)[A-Z]")  # of the GPU's own interface


@dataclass(frozen=True)
class OperatorTime:
    """A kernel of a GPU, or an operator on a CPU, over all of its calls; None where something cannot be known.

    name : the kernel's, or, where one call of an operator launches several, all of theirs with " + " between
    operator : of torch, that launched the kernel; on a CPU the same as ``name``
    seconds : on the device, or of the operator's own on the CPU; share : of all
    flops, bytes : of all calls; bytes are the least that must move (docs/profiling.md), not counted by hardware
    of_peak, of_bandwidth : flops and bytes a second over those of the measured roofs
    intensity : flops a byte
    """

    name: str
    operator: str | None
    calls: int
    seconds: float
    share: float
    flops: float | None
    bytes: float | None
    of_peak: float | None
    of_bandwidth: float | None

    @property
    def label(self) -> str:
        """Operator and kernel in one."""
        return self.name if self.operator in (None, self.name) else f"{self.operator}: {self.name}"

    @property
    def gflops(self) -> float | None:
        """10^9 flops a second."""
        return None if self.flops is None else self.flops / self.seconds / 1e9

    @property
    def intensity(self) -> float | None:
        """Flops a byte."""
        return self.flops / self.bytes if self.flops and self.bytes else None

    def row(self) -> dict[str, Any]:
        """A flat JSON-able record."""
        return vars(self) | {"gflops": self.gflops, "intensity": self.intensity}


@dataclass
class Tally:
    """Calls of a kernel or operator: flops and bytes of all of them, None once those of one are unknown."""

    calls: int = 0
    seconds: float = 0.0
    flops: float | None = 0.0
    bytes: float | None = 0.0

    def add(self, microseconds: float, flops: float | None, moved: float | None) -> None:
        """Count a call. The profiler gives 0 flops to an operator that it knows none of."""
        self.calls += 1
        self.seconds += 1e-6 * microseconds
        self.flops = self.flops + flops if self.flops is not None and flops else None
        self.bytes = self.bytes + moved if self.bytes is not None and moved is not None else None


Key = tuple[str, str | None]
"""A kernel, or an operator on a CPU, and the operator that launched it, where one did."""

# Between host and device: such a copy's bytes are no matter of the device's memory.
_OVER_THE_BUS = ("Memcpy HtoD", "Memcpy DtoH")


def profile_torch(rival: Rival, setup: Setup, trace: Path, roofs: Roofs) -> list[OperatorTime]:
    """Check the backend, dream the setup once to warm up and once for the record; the trace goes to ``trace``.

    Longest first. Raises WrongResultError where the backend is wrong, MissingDependencyError where the device's kernels
    cannot be recorded.
    """
    check(rival, setup)
    run = rival.build(setup)
    run()
    on_gpu = rival.device == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities, record_shapes=True, with_flops=True, acc_events=True) as record:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    trace.parent.mkdir(parents=True, exist_ok=True)
    record.export_chrome_trace(str(trace))
    # Strict JSON forbids control characters in strings, which names of kernels are not kept from.
    written = json.loads(trace.read_text(encoding="utf-8", errors="replace"), strict=False)
    moved = bytes_by_call(written["traceEvents"])
    tallies = kernels(record.events(), moved) if on_gpu else operators(record.events(), moved)
    if not tallies:
        raise MissingDependencyError(
            "torch.profiler recorded no kernel of the GPU: this torch was built without CUPTI (or roctracer), another "
            "profiler holds the device, or its driver lets administrators alone profile it"
        )
    lived = setup.lived_steps()
    for (name, _), tally in tallies.items():
        cost = kernel_cost(name, setup, rival.precision, tally.calls, lived)
        if cost is not None:
            tally.flops, tally.bytes = cost.flops, cost.bytes
    return evaluate(tallies, roofs)


def bytes_by_call(trace: Iterable[dict[str, Any]]) -> dict[int, int]:
    """Bytes of the operators' calls whose bytes can be known, by the number that events give the call.

    trace : the ``traceEvents`` of the profiler's Chrome trace, which holds strides and types in every version
    """
    found = {}
    for event in trace:
        if event.get("cat") != "cpu_op":
            continue
        recorded = event.get("args", {})
        call = arguments(recorded)
        moved = None if call is None else operator_bytes(event["name"], call)
        if moved is not None:
            found[recorded["External id"]] = moved
    return found


def operators(events: Iterable[Any], moved: Mapping[int, int]) -> dict[Key, Tally]:
    """The operators' time of their own, of a profiler's events on a CPU."""
    tallies: dict[Key, Tally] = defaultdict(Tally)
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue
        tally = tallies[event.name, event.name]
        if any(child.name == event.name for child in event.cpu_children):
            # The same operator in another form, to which it leaves the work.
            tally.seconds += 1e-6 * event.self_cpu_time_total
        else:
            tally.add(event.self_cpu_time_total, event.flops, moved.get(event.id))
    return tallies


def kernels(events: Iterable[Any], moved: Mapping[int, int]) -> dict[Key, Tally]:
    """The kernels' time on the device, of a profiler's events on a GPU.

    What an operator computes and moves is done by all the kernels that one call of it launches, which therefore stand
    together. Of kernels that no operator launched (those of graphs, and of Triton) nothing is known here. Calls of the
    GPU's own interface are events too, with numbers that may be those of operators: torch then gives them kernels that
    they did not launch.
    """
    tallies: dict[Key, Tally] = defaultdict(Tally)
    # Every kernel is an event of its own, too, which does not say in all versions of torch which operator it is of.
    alone: dict[str, Tally] = defaultdict(Tally)
    for event in events:
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
            alone[event.name].add(event.time_range.elapsed_us(), None, None)
        elif event.device_type == DeviceType.CPU and not _A_CALL.match(event.name):
            launched = [kernel for kernel in event.kernels if kernel.name not in DREAM_KERNELS]
            for kernel in launched:
                alone[kernel.name].calls -= 1
                alone[kernel.name].seconds -= 1e-6 * kernel.duration
            if launched:
                names = [kernel.name for kernel in launched]
                known = None if any(name.startswith(_OVER_THE_BUS) for name in names) else moved.get(event.id)
                duration = sum(kernel.duration for kernel in launched)
                tallies[" + ".join(names), event.name].add(duration, event.flops, known)
    for name, tally in alone.items():
        if tally.calls > 0:
            tallies[name, None] = Tally(tally.calls, tally.seconds, None, None)
    return tallies


def evaluate(tallies: Mapping[Key, Tally], roofs: Roofs) -> list[OperatorTime]:
    """Shares and rates, the longest first."""
    total = sum(tally.seconds for tally in tallies.values())
    found = []
    for (name, operator), tally in sorted(tallies.items(), key=lambda item: -item[1].seconds):
        if tally.seconds > 0.0:
            peak = None if tally.flops is None or not roofs.flops else tally.flops / tally.seconds / roofs.flops
            bandwidth = None if tally.bytes is None else tally.bytes / tally.seconds / roofs.memory
            found.append(
                OperatorTime(
                    name, operator, tally.calls, tally.seconds, tally.seconds / total, tally.flops, tally.bytes, peak,
                    bandwidth,
                )
            )  # fmt: skip
    return found
