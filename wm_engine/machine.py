"""What this process may use of the machine: CPUs after affinity and container limits."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

_CGROUPS = Path("/sys/fs/cgroup")


def available_cpus() -> int:
    """How many CPUs this process may keep busy: the least of affinity (taskset, batch systems) and cgroup quota.

    ``os.cpu_count()`` knows neither, so a container limited to 2 CPUs of a 64-core host would start 64 threads that
    take turns.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_v2() or _quota_v1()
    return max(1, min(affinity, math.ceil(quota) if quota else affinity))


def use_threads(count: int) -> None:
    """Give torch ``count`` threads; 0: one for every CPU this process may keep busy."""
    torch.set_num_threads(count or available_cpus())


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch keeps to one thread while other processes need the CPUs.

    OpenMP's threads spin for milliseconds after each operation: beside gymnasium's worker processes they take the very
    CPUs that the next frames are waiting for.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _quota_v2() -> float | None:
    """CPUs granted by cgroup v2's ``cpu.max`` ("QUOTA PERIOD" in microseconds, or "max PERIOD")."""
    text = _read(_CGROUPS / "cpu.max").split()
    if len(text) != 2 or text[0] == "max":
        return None
    return _ratio(text[0], text[1])


def _quota_v1() -> float | None:
    """CPUs granted by cgroup v1's ``cpu.cfs_quota_us`` over ``cpu.cfs_period_us`` (-1: no limit)."""
    folder = _CGROUPS / "cpu"
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _ratio(quota: str, period: str) -> float | None:
    try:
        cpus = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return cpus if cpus > 0 else None
