"""Compiles every kernel for GPUs that need not be there, and checks what came out: ``python -m wm_engine.kernels.aot``.

For each kernel and target: it compiles; matrix instructions are there where it has matrix products (wgmma on sm_90,
tcgen05 on sm_100, mma on sm_80, mfma on gfx942), and no two groups of warps make the same part of one; no trigonometry
with a slow path; no registers spilled; shared memory suffices. Prints registers, spills and shared memory; exit status
1 if anything falls short. The settings of other sizes (``--hidden``, ``--latent``) and of float32 (``--precision``)
have to fit, no more: spills and missing matrix instructions are no failures there. Nor are spills by versions of Triton
before NO_SPILLS_SINCE.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import dream, interpreted, launch, lstm, mdn, too_old_for, triton_release, triton_version

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
MATRIX_INSTRUCTIONS = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma", "gfx942": "v_mfma"}
SLOW_TRIGONOMETRY = re.compile(r"trig_reduction|__nv_(sin|cos)|__ocml_(sin|cos)|\b(sin|cos)\.approx")
# wgmma's layouts: a warp has 16 rows.
_WARPS_DOWN_A_PRODUCT = re.compile(r"nvidia_mma<\{versionMajor = 3[^}]*warpsPerCTA = \[(\d+)")
SHARED_MEMORY = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
NO_SPILLS_SINCE = (3, 9)
"""The version of Triton that the default settings were chosen with."""
_HIDDEN, _LATENT = 256, 32
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64"}


@dataclass(frozen=True)
class Case:
    """A kernel with the arguments of a launch, by name; whether its settings were chosen for speed, or just to fit."""

    label: str
    kernel: Any
    values: dict[str, Any]
    settings: launch.Settings
    multiplies: bool
    tuned: bool = True


@dataclass(frozen=True)
class Compiled:
    """What a compiler made of a case: registers and spilled bytes a thread, shared memory in bytes, assembly; and
    ``layouts``, Triton's intermediate code, which says how tiles are shared out among warps."""

    registers: int
    spilled: int
    shared: int
    assembly: str
    layouts: str


def cases(
    target: str, hidden: int = _HIDDEN, dtype: torch.dtype = torch.bfloat16, latent: int = _LATENT
) -> Iterator[Case]:
    """The kernels at the paper's sizes but for H and Z, products in ``dtype``, with the target's default settings."""
    action, mixtures, candidates, episodes = 3, 5, 4, 16
    gpu = TARGETS[target]
    settings = launch.default_settings(gpu.backend, gpu.arch, hidden, latent + action, dtype)
    tuned = (hidden, latent, dtype) == (_HIDDEN, _LATENT, torch.bfloat16)
    size_of = "".join(
        f" {name}={n}" for name, n, usual in (("H", hidden, _HIDDEN), ("Z", latent, _LATENT)) if n != usual
    )
    ints, longs, floats = (torch.zeros(64, dtype=dtype) for dtype in (torch.int32, torch.int64, torch.float32))
    for mixture, choices in (("shared", 1), ("per_dim", latent)):
        shapes = [(choices, mixtures), (latent, mixtures), (latent, mixtures), (), ()]
        model = launch.pack_model(
            torch.zeros(4 * hidden, latent + action, dtype=dtype),
            torch.zeros(4 * hidden, hidden, dtype=dtype),
            torch.zeros(4 * hidden),
            tuple(torch.zeros(hidden, *shape, dtype=dtype) for shape in shapes),  # type: ignore[arg-type]
            tuple(torch.zeros(shape) for shape in shapes),  # type: ignore[arg-type]
            settings,
        )
        shape = launch.Controllers(2, ("tanh", "sigmoid", "sigmoid"), 0)
        layers = [(torch.zeros(candidates, action, latent + hidden), torch.zeros(candidates, action))]
        task = launch.Task(
            shape.pack(model, layers), episodes, floats, floats, floats, floats, ints, ints, None, 64,
            1000, 1.0, (1, 2), 0, False, True, True,
        )  # fmt: skip
        values = launch.values_of(model, shape.values(model), task) | launch.scratch(model, 64)
        values |= {"alive": ints, "acted": ints, "clock": ints, "step_offset": 0}
        yield Case(f"rollout {mixture}{size_of}", dream.rollout_kernel, values, settings, True, tuned)
        yield Case(f"settle {mixture}{size_of}", dream.settle_kernel, values, settings, True, tuned)
        if mixture == "shared":
            yield Case(f"act{size_of}", dream.act_kernel, values, settings, False, tuned)
            yield Case(f"advance{size_of}", dream.advance_kernel, values, settings, True, tuned)
            state = dict.fromkeys(("inputs", "h_in", "c_in", "h_out", "c_out"), floats)
            sizes = model.sizes | {"inputs_size": latent + action, "DOT": settings.dot}
            rows, warps = lstm.tile_for(gpu.backend, gpu.arch, lstm.padded_hidden(hidden), dtype)
            step = values | state | sizes | {"ROWS": rows}
            yield Case(
                f"lstm step{size_of}", lstm.lstm_step_kernel, step, launch.Settings(rows, num_warps=warps), True, tuned
            )
        size = mdn.blocks(latent, mixtures)
        strides = {
            f"{part}_{axis}": 1 for part in ("logits", "means", "log_stds") for axis in ("row", "d", "choice", "k")
        }
        rows = dict.fromkeys(("logits", "means", "log_stds", "target", "grad", "out"), floats)
        rows |= {f"to_{name}": floats for name in ("logits", "means", "log_stds", "target")}
        head = {
            **rows, **strides, **size, "counters": longs, "target_row": latent, "target_d": 1, "rows": 64,
            "latent": latent, "mixtures": mixtures, "SHARED": mixture == "shared", "GREEDY": False,
            "key_low": 1, "key_high": 2, "temperature": 1.0,
        }  # fmt: skip
        plain = launch.Settings()
        yield Case(f"mdn nll {mixture}", mdn.nll_kernel, head, plain, False)
        yield Case(f"mdn nll backward {mixture}", mdn.nll_backward_kernel, head, plain, False)
        yield Case(f"mdn sample {mixture}", mdn.sample_kernel, head, plain, False)


def compile_case(case: Case, target: str) -> Compiled:
    """Compile ``case`` for a target of TARGETS."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    divisible: list[int] = []
    for place, parameter in enumerate(case.kernel.params):
        value = case.values[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + _TYPES[value.dtype]
            divisible.append(place)
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                divisible.append(place)
    source = ASTSource(case.kernel, signature, constants, _divisible_by_16(divisible))
    options = {
        "num_warps": case.settings.num_warps,
        "num_stages": case.settings.num_stages,
        "enable_fp_fusion": launch.FP_FUSION,
    }
    built = triton.compile(source, target=TARGETS[target], options=options)
    if TARGETS[target].backend == "hip":
        assembly = built.asm["amdgcn"]
        return Compiled(
            _number(r"\.vgpr_count:\s*(\d+)", assembly), 4 * _number(r"\.vgpr_spill_count:\s*(\d+)", assembly),
            built.metadata.shared, assembly, built.asm["ttgir"],
        )  # fmt: skip
    usage = _resource_usage(built.asm["cubin"])
    return Compiled(
        _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage), built.metadata.shared, built.asm["ptx"],
        built.asm["ttgir"],
    )  # fmt: skip


def shortfalls(case: Case, target: str, compiled: Compiled) -> list[str]:
    """What is wrong with what the compiler made of a case."""
    found = []
    if case.tuned and compiled.spilled > 0 and triton_release() >= NO_SPILLS_SINCE:
        found.append(f"{compiled.spilled} bytes a thread spilled, should be none")
    if compiled.shared > SHARED_MEMORY[target]:
        found.append(f"{compiled.shared} bytes of shared memory, the device has {SHARED_MEMORY[target]}")
    if case.tuned and case.multiplies and MATRIX_INSTRUCTIONS[target] not in compiled.assembly:
        found.append(f"no {MATRIX_INSTRUCTIONS[target]}")
    if any(16 * int(warps) > case.settings.rows for warps in _WARPS_DOWN_A_PRODUCT.findall(compiled.layouts)):
        found.append(f"groups of warps that make the same {case.settings.rows} rows of a product")
    if SLOW_TRIGONOMETRY.search(compiled.assembly):
        found.append("trigonometry with a slow path")
    return found


def _divisible_by_16(places: list[int]) -> Any:
    """That the parameters at these places are multiples of 16, as Triton is told it: by a class up to 3.2."""
    descriptor = getattr(triton.backends.compiler, "AttrsDescriptor", None)
    if descriptor is not None:
        return descriptor.from_hints(dict.fromkeys(places, 16))
    return {(place,): [["tt.divisibility", 16]] for place in places}


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"the compiler's report has nothing like {pattern!r}")
    return int(match.group(1))


def _resource_usage(cubin: bytes) -> str:
    """The report of cuobjdump, which Triton's package carries."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _examine(case: Case, target: str) -> tuple[str, bool]:
    """A row about one kernel on one target, and whether nothing falls short."""
    start = f"{target:<8}{case.label:<30}"
    try:
        compiled = compile_case(case, target)
    except Exception as error:  # whatever a compiler raises is what is to be said of it
        return f"{start}{'-':>10}{'-':>9}{'-':>9}  does not compile: {str(error).partition(chr(10))[0]}", False
    wrong = shortfalls(case, target, compiled)
    verdict = "; ".join(wrong) or ("ok" if compiled.spilled == 0 else "ok, but spills")
    return f"{start}{compiled.registers:>10}{compiled.spilled:>9}{compiled.shared:>9}  {verdict}", not wrong


def main(arguments: list[str] | None = None) -> int:
    """Compile and check; print a row for each kernel and target; 1 if one falls short."""
    parser = argparse.ArgumentParser(prog="python -m wm_engine.kernels.aot", description=__doc__.split("\n\n")[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="TARGET")
    parser.add_argument("--only", default="", help="only kernels whose label holds this")
    parser.add_argument("--hidden", type=int, nargs="+", default=[_HIDDEN], help="H of the dream's kernels")
    parser.add_argument("--latent", type=int, default=_LATENT, help="Z")
    parser.add_argument("--precision", choices=_PRECISIONS, default="bf16", help="of the dream's products")
    chosen = parser.parse_args(arguments)
    if interpreted():
        print("TRITON_INTERPRET is set, under which nothing is compiled: unset it", file=sys.stderr)
        return 1
    print(f"Triton {triton_version()}; bytes; registers and spills are a thread's")
    print(f"{'target':<8}{'kernel':<30}{'registers':>10}{'spilled':>9}{'shared':>9}  verdict")
    failed = 0
    for target in chosen.targets:
        too_old = too_old_for(TARGETS[target].backend, TARGETS[target].arch)
        if too_old is not None:
            print(f"{target:<8}{too_old}", flush=True)
            failed += 1
            continue
        sizes = ((hidden, _PRECISIONS[chosen.precision], chosen.latent) for hidden in chosen.hidden)
        wanted = (case for size in sizes for case in cases(target, *size))
        for case in wanted:
            if chosen.only not in case.label:
                continue
            row, sound = _examine(case, target)
            failed += not sound
            print(row, flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
