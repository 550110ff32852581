"""A GPU in the place of the real one: Triton compiles for it, and :mod:`ptx` runs what came out on CPU tensors.

``WM_ENGINE_EMULATE=sm_90 pytest tests/kernels`` asks the tests of the kernels of it.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import ptx
import torch
import triton
from triton.backends.compiler import GPUTarget

from wm_engine import kernels

TARGETS = ("sm_80", "sm_90", "sm_100")

ORDER = ptx.Order()
"""How the launches that follow take their turns."""

TALLIES: dict[str, tuple[ptx.Program, np.ndarray]] = {}
"""Of the kernels that were launched, by their assembly: how many warps took each instruction."""

_programs: dict[str, ptx.Program] = {}


class _Driver:
    """As much of Triton's driver as compiling asks for."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, ptx.WARP)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def install(name: str) -> None:
    """From now on, kernels are compiled for a target of TARGETS, and run here."""
    if name not in TARGETS:
        raise ValueError(f"WM_ENGINE_EMULATE must be one of {', '.join(TARGETS)}, but was {name!r}")
    arch = int(name.removeprefix("sm_"))
    triton.runtime.driver.set_active(_Driver(arch))
    kernels.target_of = lambda device: ("cuda", arch)
    compiling = triton.runtime.jit.JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = compiling(self, *args, grid=grid, warmup=True, **options)
        if not warmup:
            values = {name: value for name, value in options.items() if name in self.arg_names}
            bound = inspect.signature(self.fn).bind(*args, **values).arguments
            kinds = compiled.src.signature
            # Numbers that are 1 are constants too, which Triton 3.2 says elsewhere.
            folded = {name for name in compiled.src.constants if isinstance(name, str)}
            passed = [name for name in self.arg_names if kinds.get(name, "constexpr") != "constexpr"]
            arguments = [_argument(bound[name]) for name in passed if name not in folded]
            text = compiled.asm["ptx"]
            if text not in _programs:
                _programs[text] = ptx.parse(text)
            program = _programs[text]
            _, tally = TALLIES.setdefault(text, (program, np.zeros(len(program.code), np.int64)))
            ptx.launch(program, grid, arguments, compiled.metadata.shared, ORDER, tally)
        return compiled

    triton.runtime.jit.JITFunction.run = run


def _argument(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    storage = value.untyped_storage()
    memory = torch.empty(0, dtype=torch.uint8).set_(storage)
    return ptx.Pointer(memory.numpy(), value.data_ptr() - storage.data_ptr())
