"""Triton kernels, installed as ``wm_engine.kernels``: maths and random numbers, ``mdn``, ``lstm``, ``dream``.

Nothing outside this package imports Triton, which exists on Linux alone and is optional there.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch

OLDEST_TRITON = (3, 2)
OLDEST_TRITON_FOR_SM_100 = (3, 3)
"""Triton 3.2 ends the process where it is to multiply matrices on an NVIDIA GPU of compute capability 10 or more."""
MOST = {"hidden": 1024, "latent + action": 128, "mixtures": 64, "action": 64, "hidden_units": 128}
"""The largest sizes of M and C that the dream's kernels take."""


def missing() -> str | None:
    """Why the kernels cannot be used in this Python environment, or None where they can."""
    if triton_version() is None:
        return "Triton is not installed: on Linux, `pip install 'wm-engine[triton]'`"
    reason = too_old_for("cuda", 0)
    if reason is None and torch.version.hip is None:
        for device in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(device)
            reason = reason or too_old_for("cuda", 10 * major + minor)
    return reason


def unfit(device: torch.device) -> str | None:
    """Why kernels that are not missing cannot run on ``device`` even so, or None where they can."""
    if device.type != "cuda":
        return None
    if interpreted():
        return "TRITON_INTERPRET is set, under which the kernels run on the CPU alone"
    return _driver_fault()


@cache
def _driver_fault() -> str | None:
    """Why Triton cannot begin to use a GPU, or None: it builds its driver with a C compiler when it is first asked."""
    import triton

    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # whatever keeps it from starting
        return f"Triton's driver does not start: {error}"
    return None


def triton_version() -> str | None:
    """Triton's version, as the module has it: packages of several names bring it. None where it is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    import triton

    return str(triton.__version__)


def triton_release() -> tuple[int, ...]:
    """Triton's version as far as the minor one, () where it is not installed."""
    return tuple(int(part) for part in (triton_version() or "").split(".")[:2] if part)


def too_old_for(backend: str, arch: int | str) -> str | None:
    """Why this Triton cannot compile for a target, named as Triton does, or None where it can."""
    sm_100 = backend == "cuda" and int(arch) >= 100
    oldest = OLDEST_TRITON_FOR_SM_100 if sm_100 else OLDEST_TRITON
    if triton_release() >= oldest:
        return None
    target = f" for sm_{arch}" if sm_100 else ""
    return f"Triton {triton_version()} is too old{target}: it must be {'.'.join(map(str, oldest))} or newer"


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on any device, instead of being compiled for a GPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def target_of(device: torch.device) -> tuple[str, int | str]:
    """What kernels on ``device`` are compiled for, as Triton has it: backend and architecture, of the interpreter 0.

    RuntimeError where there are none.
    """
    if interpreted():
        return "interpreter", 0
    if device.type != "cuda":
        raise RuntimeError("backend 'triton' dreams on cuda; on cpu only with TRITON_INTERPRET=1, for checking")
    if torch.version.hip is not None:
        return "hip", torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return "cuda", 10 * major + minor


def beyond_limits(sizes: dict[str, int]) -> str | None:
    """Which of ``sizes``, named as in MOST, the kernels cannot take, or None."""
    for name, most in MOST.items():
        if sizes[name] > most:
            return f"the kernels take {name} up to {most}, but it was {sizes[name]}"
    return None
