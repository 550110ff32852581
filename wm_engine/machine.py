"""What this process may use of the machine: CPUs after affinity and container limits, and libraries' threads."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy  # noqa: F401  (its BLAS must be in the process to be found)
import torch
from threadpoolctl import threadpool_info, threadpool_limits

_log = logging.getLogger(__name__)
_CPUINFO = Path("/proc/cpuinfo")
_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def available_cpus() -> int:
    """Count the CPUs that this process may keep busy: the least of affinity (taskset, batch systems) and cgroup quotas.

    ``os.cpu_count()`` knows neither, so a container limited to 2 CPUs of a 64-core host would start 64 threads that
    take turns.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(math.ceil(quota) for quota in _quotas())]))


def use_threads(count: int) -> None:
    """Give torch and NumPy's BLAS ``count`` threads each; 0: one for every CPU this process may keep busy.

    A BLAS by itself knows nothing of quotas, and takes a thread for every CPU that it sees.
    """
    threads = count or available_cpus()
    torch.set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")


def describe_blas() -> tuple[str, int]:
    """NumPy's BLAS with its version and the CPU it is made for, and how many threads it takes; ("unknown", 0) where the
    library is none that can be asked (Apple's Accelerate)."""
    there = [found for found in threadpool_info() if found["user_api"] == "blas"]
    if not there:
        return "unknown", 0
    found = next((one for one in there if "numpy" in one["filepath"]), there[0])  # SciPy brings another one
    words = (found["internal_api"], found["version"], found.get("architecture"))
    return " ".join(word for word in words if word), found["num_threads"]


def has_bf16(device: torch.device) -> bool:
    """Say whether bfloat16 products have instructions of their own there; emulated, they take many times as long.

    On CPUs that is AVX512_BF16, AMX or Arm's bf16: V trained at 16 frames/s in bfloat16 on a processor without, where
    float32 made 194.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and not _cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """The features of the first processor that the kernel lists; none where it lists none."""
    for line in _read(_CPUINFO).split("\n"):
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(words.split())
    return frozenset()


@functools.cache
def choose_precision(setting: str, wanted: str, device: torch.device) -> str:
    """Return the precision that a setting comes to on a device: "auto" takes bf16 where it is fast, else fp32.

    What auto takes is logged once.
    """
    if wanted != "auto":
        return wanted
    chosen = "bf16" if has_bf16(device) else "fp32"
    _log.info("%s: %s on %s (auto: bf16 where there are instructions for it)", setting, chosen, device)
    return chosen


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch keeps to one thread while other processes, or NumPy's BLAS, need the CPUs.

    OpenMP's threads spin for milliseconds after each operation. Beside gymnasium's worker processes they take the very
    CPUs that the next frames are waiting for, and beside the threads of NumPy's BLAS those that its next product needs:
    an optimiser with two threads of each on two CPUs took up to six times as long as with one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _quotas() -> Iterator[float]:
    """CPUs granted by every limited cgroup over this process; what cannot be read or understood limits nothing.

    A quota binds all below it, so a process in a systemd slice or a batch system's job obeys its own cgroup's and every
    ancestor's. Lines of ``/proc/self/cgroup`` are "ID:CONTROLLERS:PATH" (cgroups(7)); v2's has ID 0 and no controllers.
    A container's mount may begin at its own cgroup while the path still names the host's: its folders are then missing,
    and the mount's root holds the limit.
    """
    yield from _quota_v2(_CGROUPS)
    yield from _quota_v1(_CGROUPS / "cpu")
    for line in _read(_MEMBERSHIP).split("\n"):
        controllers, _, path = line.partition(":")[2].partition(":")
        if not path.startswith("/") or ".." in path.split("/"):  # "..": outside what this process's namespace shows
            continue
        for folder in _folders(path):
            if line.startswith("0::"):
                yield from _quota_v2(_CGROUPS / folder)
            elif "cpu" in controllers.split(","):
                for mount in {"cpu", controllers}:  # as a rule one is a link to the other
                    yield from _quota_v1(_CGROUPS / mount / folder)


def _folders(path: str) -> list[PurePosixPath]:
    """A cgroup and all its ancestors, relative to the hierarchy's mount."""
    own = PurePosixPath(path.lstrip("/"))
    return [own, *own.parents]


def _quota_v2(folder: Path) -> Iterator[float]:
    """CPUs granted by cgroup v2's ``cpu.max`` ("QUOTA PERIOD" in microseconds, or "max PERIOD"), if it is limited."""
    text = _read(folder / "cpu.max").split()
    if len(text) == 2:
        yield from _ratio(text[0], text[1])


def _quota_v1(folder: Path) -> Iterator[float]:
    """CPUs granted by cgroup v1's ``cpu.cfs_quota_us`` over ``cpu.cfs_period_us`` (-1: no limit), if it is limited."""
    yield from _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()  # a cgroup's name may be any bytes
    except (OSError, ValueError):
        return ""


def _ratio(quota: str, period: str) -> Iterator[float]:
    with contextlib.suppress(ValueError, ArithmeticError):
        cpus = int(quota) / int(period)
        if cpus > 0:
            yield cpus
