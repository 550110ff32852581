"""Triton kernels, installed as ``wm_engine.kernels``: maths and random numbers, ``mdn``, ``lstm``, ``dream``.

Nothing outside this package imports Triton, which exists on Linux alone and is optional there.
"""

from __future__ import annotations

import importlib.util
import os

OLDEST_TRITON = (3, 2)
MOST = {"hidden": 1024, "latent + action": 128, "mixtures": 64, "action": 64, "hidden_units": 128}
"""The largest sizes of M and C that the dream's kernels take."""


def missing() -> str | None:
    """Why the kernels cannot be used in this Python environment, or None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: on Linux, `pip install 'wm-engine[triton]'`"
    import triton

    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
        return f"Triton {triton.__version__} is too old: it must be {'.'.join(map(str, OLDEST_TRITON))} or newer"
    return None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on any device, instead of being compiled for a GPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def beyond_limits(sizes: dict[str, int]) -> str | None:
    """Which of ``sizes``, named as in MOST, the kernels cannot take, or None."""
    for name, most in MOST.items():
        if sizes[name] > most:
            return f"the kernels take {name} up to {most}, but it was {sizes[name]}"
    return None
