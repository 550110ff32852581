"""Where the tests of the kernels run them: in Triton's interpreter, on a GPU, or compiled and on an emulated GPU."""

from __future__ import annotations

import os

import pytest
import torch

from wm_engine import kernels

EMULATED = os.environ.get("WM_ENGINE_EMULATE")
DEVICE = torch.device("cpu" if kernels.interpreted() or EMULATED else "cuda")
DOT = "sums" if kernels.interpreted() else "ieee"


def device_of(backend: str) -> torch.device:
    """Where the tests run a backend of the engine's: the kernels on a GPU where they are to be tested there."""
    return DEVICE if backend == "triton" else torch.device("cpu")


needs_device = pytest.mark.skipif(
    DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="no GPU, and TRITON_INTERPRET is off"
)
needs_interpreter = pytest.mark.skipif(
    kernels.missing() is None and not kernels.interpreted(), reason="the interpreter alone runs kernels on the CPU"
)
