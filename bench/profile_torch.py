"""torch.profiler over a dream: operators on a CPU, kernels on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from .check import check
from .rivals import Rival
from .workload import Setup


@dataclass(frozen=True)
class OperatorTime:
    """An operator or kernel: calls, seconds of its own, its share of all, and the flops that torch knows of it."""

    name: str
    calls: int
    seconds: float
    share: float
    gflops: float | None


def profile_torch(rival: Rival, setup: Setup, trace: Path) -> list[OperatorTime]:
    """Check the backend, dream the setup once to warm up and once for the record; the trace goes to ``trace``.

    Longest first. On a GPU the time is the kernels' on the device, else the operators' own on the CPU. Raises
    WrongResultError where the backend is wrong.
    """
    check(rival, setup)
    run = rival.build(setup)
    run()
    on_gpu = rival.device == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities, with_flops=True, acc_events=True) as record:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    trace.parent.mkdir(parents=True, exist_ok=True)
    record.export_chrome_trace(str(trace))
    found = []
    for event in record.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if microseconds > 0 and (not on_gpu or event.device_type == torch.autograd.DeviceType.CUDA):
            found.append((event.key, event.count, microseconds / 1e6, event.flops))
    total = sum(seconds for _, _, seconds, _ in found) or 1.0
    found.sort(key=lambda row: -row[2])
    return [
        OperatorTime(name, calls, seconds, seconds / total, flops / seconds / 1e9 if flops else None)
        for name, calls, seconds, flops in found
    ]
