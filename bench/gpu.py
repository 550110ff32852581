"""The GPU's table: ``python -m bench.gpu`` checks every way to dream on this device, then times those that passed.

Writes gpu.json and gpu.md: the device's measured ceilings, parity with float64, dream steps per second at several
population sizes as fractions of the ceilings, the mixture's kernels in bytes per second, memory a rollout. A rival
whose result is wrong gets no speed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wm_engine import kernels
from wm_engine.dream.triton_backend import TritonBackend, missing
from wm_engine.ops import mdn
from wm_engine.ops.mdn import HeadLayout
from wm_engine.rng import key_words

from .check import WrongResultError, check
from .rivals import Rival, rivals
from .workload import Setup, Workload, prepare

DEVICE = "cuda"
ROLLOUTS = (1 << 10, 1 << 12, 1 << 14, 1 << 16)
EPISODES = 16
_REPEATS = 5
_FORMS = ("persistent", "steps")
_STANDARD_ERRORS = 3.0


def quantiles(run: Callable[[], Any], repeats: int = _REPEATS) -> dict[str, float]:
    """p20, p50, p80 of the seconds that ``run`` takes on the device, after one run that warms up."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    cuts = statistics.quantiles(times[1:], n=10, method="inclusive")
    return {"p20": cuts[1], "p50": cuts[4], "p80": cuts[7]}


def ceilings() -> dict[str, float]:
    """What the device reaches: multiply-adds (8192^3 product in bf16) and bytes copied (read and written) a second."""
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return {
        "bf16_macs_per_second": 8192**3 / quantiles(lambda: a @ b)["p50"],
        "copy_bytes_per_second": 2 * source.numel() / quantiles(lambda: target.copy_(source))["p50"],
    }


def forms(precision: str) -> list[Rival]:
    """The Triton backend in each of its forms, by name, as rivals."""

    def build(form: str) -> Callable[[Setup], Callable[[], Tensor]]:
        def prepared(setup: Setup) -> Callable[[], Tensor]:
            backend = TritonBackend(setup.m, setup.spec, torch.device(DEVICE), precision, form)
            params = setup.params.to(DEVICE)
            return lambda: backend.rollout(params, setup.starts, setup.plan).returns.cpu()

        return prepared

    return [Rival(f"triton {form} {precision}", "engine", DEVICE, precision, build(form)) for form in _FORMS]


def contestants() -> tuple[list[Rival], dict[str, str]]:
    """Everything that can dream on the device but the one-rollout loop, and why the others cannot."""
    here, reasons = rivals(DEVICE)
    here = [rival for rival in here if rival.sample is None]
    if missing() is None:
        here += [rival for precision in ("fp32", "bf16") for rival in forms(precision)]
    return here, reasons


def parity(setup: Setup, rival: Rival) -> dict[str, Any]:
    """Short dreams against float64, twice to the bit, and the mean return against torch's in float32."""
    verdict: dict[str, Any] = {"rival": rival.name}
    try:
        comparison = check(rival, setup)
    except WrongResultError as error:
        return verdict | {"passed": False, "reason": str(error)}
    run = rival.build(setup)
    once, again = run(), run()
    yardstick = next(r for r in rivals(DEVICE)[0] if r.name == "torch fp32").build(setup)()
    error = (once.var() / once.numel() + yardstick.var() / yardstick.numel()).sqrt()
    distance = float((once.mean() - yardstick.mean()).abs() / error)
    twice = torch.equal(once, again)
    passed = distance <= _STANDARD_ERRORS and (twice or rival.kind == "peer")
    reason = "" if passed else f"mean return {distance:.1f} standard errors off, equal to the bit twice: {twice}"
    return verdict | {
        "passed": passed,
        "reason": reason,
        "errors": comparison.errors,
        "allowed": comparison.allowed,
        "equal_twice": twice,
        "standard_errors": distance,
    }


def speed(setup: Setup, rival: Rival, limits: dict[str, float]) -> dict[str, Any]:
    """Dream steps per second, the share of the matrix ceiling that they use, and memory a rollout."""
    work = setup.workload
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run = rival.build(setup)
    seconds = quantiles(run)
    steps = work.rollouts * work.steps
    macs = steps * sum(work.macs_per_step().values())
    return {
        "rival": rival.name, "rollouts": work.rollouts, "hidden": work.hidden, "mixture": work.mixture,
        "steps": work.steps, "seconds": seconds, "steps_per_second": steps / seconds["p50"],
        "of_matrix_ceiling": macs / seconds["p50"] / limits["bf16_macs_per_second"],
        "bytes_per_rollout": torch.cuda.max_memory_allocated() / work.rollouts,
    }  # fmt: skip


def mixture_speeds(limits: dict[str, float], batch: int = 1 << 19) -> list[dict[str, Any]]:
    """The mixture's kernels beside torch: bytes that must move a second, as a share of the copy's."""
    from wm_engine.kernels import mdn as fused

    rows = []
    for mixture in mdn.MIXTURES:
        layout = HeadLayout(32, 5, mixture)
        head = layout.split(torch.randn(batch, layout.size, device=DEVICE))
        parts = [part.contiguous() for part in (head.logits, head.means, head.log_stds)]
        target, grad = torch.randn(batch, 32, device=DEVICE), torch.ones(batch, device=DEVICE)
        counters = torch.zeros(batch, 3, dtype=torch.int64, device=DEVICE)
        read = sum(part.numel() for part in parts) * 4
        leaves = [value.clone().requires_grad_() for value in (*parts, target)]
        normals, uniforms = torch.randn_like(target), torch.rand(batch, layout.choices, device=DEVICE)

        def loss(leaves: list[Tensor] = leaves) -> None:
            mdn.mdn_nll(*leaves).sum().backward()

        def both(parts: list[Tensor] = parts, target: Tensor = target, grad: Tensor = grad) -> None:
            fused.nll(*parts, target)
            fused.nll_backward(grad, *parts, target)

        cases = {
            "nll forward and backward": (both, loss, 3 * (read + 4 * target.numel()) + 8 * batch),
            "sample": (
                lambda parts=parts, counters=counters: fused.sample(*parts, counters, key_words(1), 1.0),
                lambda parts=parts, u=uniforms, n=normals: mdn.mdn_sample(*parts, u, n, 1.0),
                read + 4 * target.numel() + 24 * batch,
            ),
        }
        for name, (ours, theirs, moved) in cases.items():
            fast, slow = quantiles(ours), quantiles(theirs)
            row = {
                "op": name, "mixture": mixture, "batch": batch, "seconds": fast, "torch_seconds": slow,
                "of_copy": moved / fast["p50"] / limits["copy_bytes_per_second"],
                "times_torch": slow["p50"] / fast["p50"],
            }  # fmt: skip
            rows.append(row)
    return rows


def provenance() -> dict[str, str]:
    """Device, versions, commit, date."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    properties = torch.cuda.get_device_properties(0)
    found = {
        "device": f"{properties.name}, {properties.multi_processor_count} multiprocessors, "
        f"{properties.total_memory / 2**30:.0f} GiB",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": git.stdout.strip() or "unknown",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if kernels.missing() is None:
        import triton

        found["triton"] = triton.__version__
    return found


def markdown(result: dict[str, Any]) -> str:
    """The result as Markdown tables."""
    limits = result["ceilings"]
    lines = [", ".join(f"{name} {value}" for name, value in result["provenance"].items()), ""]
    lines.append(
        f"Ceilings measured in this run: {2e-12 * limits['bf16_macs_per_second']:.0f} TFLOP/s in bf16, "
        f"{1e-12 * limits['copy_bytes_per_second']:.2f} TB/s copied."
    )
    lines += ["", "| rival | right | why not |", "| --- | --- | --- |"]
    lines += [f"| {row['rival']} | {'yes' if row['passed'] else 'no'} | {row['reason']} |" for row in result["parity"]]
    lines += [f"| {name} | - | {reason} |" for name, reason in result["absent"].items()]
    lines += ["", "| H | mixture | rollouts | rival | M steps/s | of the matrix ceiling | bytes a rollout |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for row in result["speeds"]:
        start = f"| {row['hidden']} | {row['mixture']} | {row['rollouts']} | {row['rival']} | "
        if "error" in row:
            lines.append(f"{start}{row['error']} | | |")
            continue
        share, size = row["of_matrix_ceiling"], row["bytes_per_rollout"]
        lines.append(f"{start}{1e-6 * row['steps_per_second']:.1f} | {share:.1%} | {size:.0f} |")
    lines += ["", "| op | mixture | of the copy's bandwidth | times torch |", "| --- | --- | --- | --- |"]
    for row in result["mixture"]:
        lines.append(f"| {row['op']} | {row['mixture']} | {row['of_copy']:.0%} | {row['times_torch']:.1f} |")
    return "\n".join(lines) + "\n"


def measure(hidden: list[int], rollouts: list[int], mixtures: list[str], steps: int) -> dict[str, Any]:
    """Everything; see the module."""
    result: dict[str, Any] = {"provenance": provenance(), "ceilings": ceilings(), "parity": [], "speeds": []}
    here, result["absent"] = contestants()
    for mixture in mixtures:
        for size in hidden:
            sample = prepare(Workload(1 << 10, EPISODES, steps, hidden=size, mixture=mixture, early_end=0.5))
            passed = []
            for rival in here:
                verdict = parity(sample, rival) | {"hidden": size, "mixture": mixture}
                result["parity"].append(verdict)
                print(f"{mixture} H={size} {rival.name}: {verdict['reason'] or 'right'}", flush=True)
                if verdict["passed"]:
                    passed.append(rival)
            for count in rollouts:
                setup = prepare(Workload(count // EPISODES, EPISODES, steps, hidden=size, mixture=mixture))
                for rival in passed:
                    where = {"rival": rival.name, "rollouts": count, "hidden": size, "mixture": mixture}
                    try:
                        row = speed(setup, rival, result["ceilings"])
                    except torch.OutOfMemoryError as error:
                        row = where | {"error": f"out of memory: {str(error).splitlines()[0]}"}
                    result["speeds"].append(row)
                    print(json.dumps(row), flush=True)
    result["mixture"] = mixture_speeds(result["ceilings"]) if kernels.missing() is None else []
    return result


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write gpu.json and gpu.md; 2 without a GPU, 1 if a rival of ours is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path(), help="folder of gpu.json and gpu.md")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--rollouts", type=int, nargs="+", default=list(ROLLOUTS))
    parser.add_argument("--mixtures", nargs="+", choices=mdn.MIXTURES, default=list(mdn.MIXTURES))
    parser.add_argument("--steps", type=int, default=200)
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("python -m bench.gpu measures a GPU, and torch finds none here", file=sys.stderr)
        return 2
    if kernels.interpreted():
        print("TRITON_INTERPRET is set, under which no kernel runs on the GPU: unset it", file=sys.stderr)
        return 2
    result = measure(chosen.hidden, chosen.rollouts, chosen.mixtures, chosen.steps)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "gpu.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (chosen.out / "gpu.md").write_text(markdown(result), encoding="utf-8")
    print(markdown(result))
    wrong = [row for row in result["parity"] if not row["passed"] and row["rival"].startswith(("triton", "torch"))]
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
