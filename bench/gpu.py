"""The GPU's table: ``python -m bench.gpu`` checks every way to dream on this device, then times those that passed.

Writes gpu.json and gpu.md, anew after every row, so that what was measured survives whatever comes later: the device's
measured ceilings, ask and tell of the optimisers, the mixture's kernels in bytes per second, memory of a million
rollouts, parity with float64, dream steps per second at several population sizes as fractions of the ceilings. Each
rival is checked and then timed, at every H and mixture first those that the targets rest on: our forms and torch eager
in bf16. A rival whose result is wrong gets no speed; one that fails, or for which no time is left, gets a row that says
so.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wm_engine import kernels
from wm_engine.dream.triton_backend import TritonBackend, missing
from wm_engine.dream.types import DreamOutput
from wm_engine.files import write_json, write_text
from wm_engine.ops import mdn, registered
from wm_engine.ops.mdn import HeadLayout
from wm_engine.rng import StepDraws

from . import optimizers, targets
from .check import WrongResultError, check, check_draws, check_values
from .forced import check_steps
from .kernel_costs import FORMS, form_cost
from .provenance import provenance
from .rivals import Rival, rivals
from .workload import Setup, Workload, prepare

DEVICE = "cuda"
ROLLOUTS = (1 << 10, 1 << 12, 1 << 14, 1 << 16)
EPISODES = 16
_REPEATS = 5
_FORMS = ("persistent", "steps")
_STANDARD_ERRORS = 3.0
# Candidates that are held to float64 on the CPU; the mean return is compared over 16 times as many.
_CHECKED = 64
_YARDSTICK = "torch fp32"
_NO_TIME = "no time was left"


def synchronize() -> None:
    """Wait for the device."""
    torch.cuda.synchronize()


def quantiles(run: Callable[[], Any], repeats: int = _REPEATS) -> dict[str, float]:
    """p20, p50, p80 of the seconds that ``run`` takes by the clock, after one run that warms up."""
    times = []
    for _ in range(repeats + 1):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return _cuts(times[1:])


def device_quantiles(run: Callable[[], Any], repeats: int = _REPEATS, at_once: int = 20) -> dict[str, float]:
    """As :func:`quantiles` on the device's own clock, of ``at_once`` runs in a row, which hide their launches."""
    run()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(at_once):
            run()
        end.record()
        end.synchronize()
        times.append(1e-3 * start.elapsed_time(end) / at_once)
    return _cuts(times)


def _cuts(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=10, method="inclusive")
    return {"p20": cuts[1], "p50": cuts[4], "p80": cuts[7]}


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most of torch's device memory that a run takes beyond what was taken before."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    synchronize()
    return torch.cuda.max_memory_allocated() - before


def ceilings() -> dict[str, float]:
    """What the device reaches: multiply-adds (8192^3 product in bf16) and bytes copied (read and written) a second."""
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return {
        "bf16_macs_per_second": 8192**3 / device_quantiles(lambda: a @ b)["p50"],
        "copy_bytes_per_second": 2 * source.numel() / device_quantiles(lambda: target.copy_(source))["p50"],
    }


def forms(precision: str) -> list[Rival]:
    """The Triton backend in each of its forms, by name, as rivals."""

    def prepared(form: str, setup: Setup, record: bool) -> Callable[[], DreamOutput]:
        backend = TritonBackend(setup.m, setup.spec, torch.device(DEVICE), precision, form)
        params, plan = setup.params.to(DEVICE), replace(setup.plan, record=record)
        return lambda: backend.rollout(params, setup.starts, plan)

    def rival(form: str) -> Rival:
        def build(setup: Setup) -> Callable[[], Tensor]:
            dream = prepared(form, setup, record=False)
            return lambda: dream().returns.cpu()

        name = f"triton {form} {precision}"
        return Rival(
            name, "engine", DEVICE, precision, build, record=lambda setup: prepared(form, setup, record=True)()
        )

    return [rival(form) for form in _FORMS]


def awaited(rival: Rival) -> bool:
    """Whether a target rests on it: our forms in bf16, and torch eager in bf16, which they are to beat."""
    return rival.name in {targets.EAGER, *(f"{targets.OURS}{form} bf16" for form in _FORMS)}


def contestants() -> tuple[list[Rival], dict[str, str]]:
    """Everything that can dream on the device but the one-rollout loop, and why the others cannot.

    Those that are awaited come first, then what else is ours, then the peers, and of each bf16 first.
    """
    here, reasons = rivals(DEVICE)
    here = [rival for rival in here if rival.sample is None]
    if missing() is None:
        here = [rival for precision in ("bf16", "fp32") for rival in forms(precision)] + here

    def place(rival: Rival) -> tuple[bool, ...]:
        ours = rival.name.startswith(targets.OURS)
        return not awaited(rival), not ours, rival.kind != "peer", rival.precision != "bf16"

    return sorted(here, key=place), reasons


def parity(setup: Setup, rival: Rival, yardstick: Tensor) -> dict[str, Any]:
    """Single steps and short dreams against float64, whole dreams twice to the bit and their mean return.

    yardstick : returns [P, E] that the mean is compared with, in standard errors

    Peers, which give returns alone, take no single steps.
    """
    try:
        steps = None if rival.record is None else check_steps(rival, setup)
        comparison = check(rival, setup.resized(candidates=min(_CHECKED, setup.workload.candidates)))
    except WrongResultError as error:
        return {"passed": False, "reason": str(error)}
    run = rival.build(setup)
    once, again = run(), run()
    error = (once.var() / once.numel() + yardstick.var() / yardstick.numel()).sqrt()
    distance = float((once.mean() - yardstick.mean()).abs() / error)
    twice = torch.equal(once, again)
    passed = distance <= _STANDARD_ERRORS and (twice or rival.kind == "peer")
    reason = "" if passed else f"mean return {distance:.1f} standard errors off, equal to the bit twice: {twice}"
    return {
        "passed": passed,
        "reason": reason,
        "errors": None if comparison is None else comparison.errors,
        "allowed": None if comparison is None else comparison.allowed,
        "steps": None if steps is None else asdict(steps),
        "equal_twice": twice,
        "standard_errors": distance,
    }


def speed(setup: Setup, rival: Rival, limits: dict[str, float]) -> dict[str, Any]:
    """Dream steps per second, the shares of the ceilings that they use, and torch's device memory a rollout.

    The share of the copy's bandwidth is that of the least that a form of ours must move; others' is not known.
    """
    work = setup.workload
    # Beyond a number of shapes torch.compile would quietly run as plain torch.
    torch.compiler.reset()
    seconds: dict[str, float] = {}
    taken = peak_bytes(lambda: seconds.update(quantiles(rival.build(setup))))
    steps = work.rollouts * work.steps
    macs = steps * sum(work.macs_per_step().values())
    form = rival.name.split()[1]
    moved = form_cost(form, setup, rival.precision).bytes if form in FORMS else None
    return {
        "steps": work.steps, "seconds": seconds, "steps_per_second": steps / seconds["p50"],
        "of_matrix_ceiling": macs / seconds["p50"] / limits["bf16_macs_per_second"],
        "of_copy": None if moved is None else moved / seconds["p50"] / limits["copy_bytes_per_second"],
        "bytes_per_rollout": taken / work.rollouts,
    }  # fmt: skip


def million() -> dict[str, Any]:
    """Device memory that 2^20 rollouts take in bf16 at the paper's size, over a few steps."""
    setup = prepare(Workload((1 << 20) // EPISODES, EPISODES, 4))
    backend = TritonBackend(setup.m, setup.spec, torch.device(DEVICE), "bf16", "persistent")
    params = setup.params.to(DEVICE)
    return {"gigabytes": 1e-9 * peak_bytes(lambda: backend.rollout(params, setup.starts, setup.plan))}


@dataclass(frozen=True)
class Mixture:
    """Rows that the mixture's operators are timed on: logits, means, log standard deviations and targets.

    The parts are views of one head, as the model makes them.
    """

    name: str
    layout: HeadLayout
    parts: list[Tensor]
    target: Tensor

    @property
    def read(self) -> int:
        """Bytes of a row's parts."""
        return 4 * sum(part[0].numel() for part in self.parts)


Operator = tuple[Callable[[], Any], Callable[[], Any], float]
"""A checked operator, torch in its place, and the bytes a row that must move."""


def _loss(on: Mixture) -> Operator:
    def gradients(loss: Callable[..., Tensor], parts: list[Tensor], target: Tensor) -> list[Tensor]:
        leaves = [part.detach().requires_grad_() for part in (*parts, target)]
        value = loss(*leaves)
        return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]

    few, target = [part[:4096] for part in on.parts], on.target[:4096]
    exact = gradients(mdn.mdn_nll, [part.double() for part in few], target.double())
    values, plain = (gradients(loss, few, target) for loss in (registered.mdn_nll, mdn.mdn_nll))
    check_values(f"nll {on.name}", values, exact, plain)
    ours, theirs = (
        functools.partial(gradients, loss, on.parts, on.target) for loss in (registered.mdn_nll, mdn.mdn_nll)
    )
    return ours, theirs, 3 * (on.read + 4 * 32) + 2 * 4


def _sample(on: Mixture) -> Operator:
    """Of a shared mixture's means and log standard deviations a draw needs the chosen component's alone: the sectors of
    memory that they lie in. Of per_dim's, whose components lie side by side, it needs every one.
    """
    batch, needed = len(on.target), 4 * 32
    counters = torch.zeros(batch, 3, dtype=torch.int64, device=DEVICE)
    counters[:, 1] = torch.arange(batch, device=DEVICE)
    few = [part[:4096] for part in on.parts]

    def reference(dtype: torch.dtype) -> Tensor:
        episodes = torch.arange(len(few[0]), device=DEVICE)
        draws = StepDraws(1, torch.zeros(1, dtype=torch.int64, device=DEVICE), episodes, 32, on.name, dtype)
        normals, uniforms, _ = draws.at(0)
        return mdn.mdn_sample(*(part.to(dtype) for part in few), uniforms[0], normals[0], 1.0)

    check_draws(f"sample {on.name}", registered.mdn_sample(*few, counters[: len(few[0])], 1, 1.0), reference)
    normals, uniforms = torch.randn_like(on.target), torch.rand(batch, on.layout.choices, device=DEVICE)
    drawn = _sectors(on.layout) if on.name == "shared" else on.read
    return (
        lambda: registered.mdn_sample(*on.parts, counters, 1, 1.0),
        lambda: mdn.mdn_sample(*on.parts, uniforms, normals, 1.0),
        drawn + needed + 3 * 8,
    )


def _sectors(layout: HeadLayout, rows: int = 4096, seed: int = 0) -> float:
    """Bytes a row of the sectors that a draw reads, the components chosen evenly: rows and components begin anywhere in
    them."""
    places = layout.split(torch.arange(rows * layout.size).view(rows, layout.size))
    numbers = torch.Generator().manual_seed(seed)
    chosen = torch.randint(layout.mixtures, (rows, 1, 1), generator=numbers).expand(rows, layout.latent, 1)
    read = [places.logits, places.means.gather(-1, chosen), places.log_stds.gather(-1, chosen)]
    floats = torch.cat([part.flatten() for part in read])
    return _SECTOR * len((4 * floats // _SECTOR).unique()) / rows


OPERATORS: dict[str, Callable[[Mixture], Operator]] = {"nll forward and backward": _loss, "sample": _sample}
"""The mixture's operators, by name: each function checks one and says what is to be timed."""


# Rows. A launch must take the device longer than the host: a draw is soon done.
_BATCHES = {"nll forward and backward": 1 << 19, "sample": 1 << 21}
_SECTOR = 32  # bytes, the least that a GPU reads of its memory


def mixture_speed(op: str, mixture: str, limits: dict[str, float], batch: int) -> dict[str, Any]:
    """One of OPERATORS beside torch: bytes that must move a second, as a share of the copy's.

    Raises WrongResultError where it is wrong.
    """
    layout = HeadLayout(32, 5, mixture)
    numbers = torch.Generator(DEVICE).manual_seed(0)
    views = layout.split(0.5 * torch.randn(batch, layout.size, device=DEVICE, generator=numbers))
    target = torch.randn(batch, 32, device=DEVICE, generator=numbers)
    ours, theirs, moved = OPERATORS[op](Mixture(mixture, layout, [views.logits, views.means, views.log_stds], target))
    fast, slow = device_quantiles(ours), device_quantiles(theirs, at_once=2)
    return {
        "batch": batch, "seconds": fast, "torch_seconds": slow,
        "of_copy": batch * moved / fast["p50"] / limits["copy_bytes_per_second"],
        "times_torch": slow["p50"] / fast["p50"],
    }  # fmt: skip


def origin() -> dict[str, Any]:
    """Device, versions, commit, date."""
    properties = torch.cuda.get_device_properties(0)
    device = (
        f"{properties.name}, {properties.multi_processor_count} multiprocessors, "
        f"{properties.total_memory / 2**30:.0f} GiB"
    )
    return provenance(DEVICE, None) | {"device": device}


def markdown(result: dict[str, Any]) -> str:
    """The result, or what there is of it, as Markdown tables."""
    named = (f"{name} {value}" for name, value in result["provenance"].items() if value is not None)
    lines = [", ".join(named), ""]
    limits = result["ceilings"]
    lines.append(
        f"Ceilings measured in this run: {2e-12 * limits['bf16_macs_per_second']:.0f} TFLOP/s in bf16, "
        f"{1e-12 * limits['copy_bytes_per_second']:.2f} TB/s copied."
    )
    if "gigabytes" in result["million"]:
        lines += ["", f"2^20 rollouts in bf16 take {result['million']['gigabytes']:.1f} GB of the device."]
    elif "error" in result["million"]:
        lines += ["", f"2^20 rollouts in bf16: {result['million']['error']}"]
    lines += optimizers.table(result["optimizers"])
    lines += ["", "| op | mixture | of the copy's bandwidth | times torch |", "| --- | --- | --- | --- |"]
    for row in result["mixture"]:
        if "error" in row:
            lines.append(f"| {row['op']} | {row['mixture']} | {row['error']} | |")
        else:
            lines.append(f"| {row['op']} | {row['mixture']} | {row['of_copy']:.0%} | {row['times_torch']:.1f} |")
    lines += ["", "| rival | H | mixture | right | a step's errors: z, actions, rewards (allowed) | why not |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for row in sorted(result["parity"], key=_size):
        right = {True: "yes", False: "no", None: "-"}[row["passed"]]
        steps = row.get("steps") or {"errors": {}, "allowed": {}}
        pairs = zip(steps["errors"].values(), steps["allowed"].values(), strict=True)
        shown = ", ".join(f"{error:.1e} ({allowed:.1e})" for error, allowed in pairs)
        cells = (row["rival"], row["hidden"], row["mixture"], right, shown, row["reason"])
        lines.append(f"| {' | '.join(map(str, cells))} |".replace("  ", " "))
    lines += [f"| {name} | | | - | | {reason} |" for name, reason in result["absent"].items()]
    lines += [
        "",
        "| H | mixture | rollouts | rival | M steps/s | of the matrix ceiling | of the copy | bytes a rollout |",
    ]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in sorted(result["speeds"], key=_size):
        start = f"| {row['hidden']} | {row['mixture']} | {row['rollouts']} | {row['rival']} | "
        if "error" in row:
            lines.append(f"{start}{row['error']} | | | |")
            continue
        share, size = row["of_matrix_ceiling"], row["bytes_per_rollout"]
        copied = "" if row["of_copy"] is None else f"{row['of_copy']:.1%} "
        lines.append(f"{start}{1e-6 * row['steps_per_second']:.1f} | {share:.1%} | {copied}| {size:.0f} |")
    lines += targets.lines(result)
    return "\n".join(lines) + "\n"


def _size(row: dict[str, Any]) -> tuple[Any, ...]:
    """Where a rival's row stands among the others: they are measured in another order."""
    return row["hidden"], mdn.MIXTURES.index(row["mixture"]), row.get("rollouts")


def measure(
    hidden: list[int],
    rollouts: list[int],
    mixtures: list[str],
    steps: int,
    keep: Callable[[dict[str, Any]], None],
    left: Callable[[], float],
) -> dict[str, Any]:
    """Everything; see the module.

    keep : is given the result after every row
    left : seconds; what begins when there are none left is named instead of measured
    """
    result: dict[str, Any] = {"provenance": origin(), "ceilings": ceilings(), "million": {}, "mixture": []}
    result |= {"optimizers": [], "parity": [], "speeds": []}
    here, result["absent"] = contestants()
    keep(result)

    def put(row: dict[str, Any], to: str) -> None:
        if to == "million":
            result[to] = row
        else:
            result[to].append(row)
        print(json.dumps({"of": to} | row), flush=True)
        keep(result)

    def tried(measured: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        # Whatever a peer or a driver raises: the others are still to be measured.
        if left() <= 0.0:
            return {"error": _NO_TIME}
        try:
            return measured(*arguments)
        except Exception as error:
            kind = "out of memory" if isinstance(error, torch.OutOfMemoryError) else type(error).__name__
            return {"error": f"{kind}: {str(error).partition(chr(10))[0]}"}

    @functools.cache
    def sample(size: int, mixture: str) -> tuple[Setup, Tensor]:
        setup = prepare(Workload(1 << 10, EPISODES, steps, hidden=size, mixture=mixture, early_end=0.5))
        return setup, next(rival for rival in here if rival.name == _YARDSTICK).build(setup)()

    def judged(rival: Rival, size: int, mixture: str) -> dict[str, Any]:
        setup, yardstick = sample(size, mixture)
        return parity(setup, rival, yardstick)

    def timed(rival: Rival, count: int, size: int, mixture: str) -> dict[str, Any]:
        setup = prepare(Workload(count // EPISODES, EPISODES, steps, hidden=size, mixture=mixture))
        return speed(setup, rival, result["ceilings"])

    def compete(rival: Rival, size: int, mixture: str) -> None:
        where = {"hidden": size, "mixture": mixture}
        verdict = tried(judged, rival, size, mixture)
        if "error" in verdict:
            passed_over = verdict["error"] == _NO_TIME
            verdict = {"passed": None if passed_over else False, "reason": verdict["error"]}
        put({"rival": rival.name, "kind": rival.kind} | verdict | where, "parity")
        for count in rollouts if verdict["passed"] else ():
            put({"rival": rival.name, "rollouts": count} | where | tried(timed, rival, count, size, mixture), "speeds")

    for name, (kind, device) in optimizers.contestants(DEVICE).items():
        row = {"optimizer": name, "device": device}
        put(row | tried(optimizers.generation, kind, device, quantiles), "optimizers")
    if missing() is None:
        for mixture in mdn.MIXTURES:
            for op in OPERATORS:
                row = {"op": op, "mixture": mixture}
                put(row | tried(mixture_speed, op, mixture, result["ceilings"], _BATCHES[op]), "mixture")
        put(tried(million), "million")
    for first in (True, False):
        for size in hidden:
            for mixture in mixtures:
                for rival in here:
                    if awaited(rival) == first:
                        compete(rival, size, mixture)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write gpu.json and gpu.md; 2 without a GPU, 1 if anything of ours is wrong or raised."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path(), help="folder of gpu.json and gpu.md")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--rollouts", type=int, nargs="+", default=list(ROLLOUTS))
    parser.add_argument("--mixtures", nargs="+", choices=mdn.MIXTURES, default=list(mdn.MIXTURES))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after this time")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("python -m bench.gpu measures a GPU, and torch finds none here", file=sys.stderr)
        return 2
    if kernels.interpreted():
        print("TRITON_INTERPRET is set, under which no kernel runs on the GPU: unset it", file=sys.stderr)
        return 2
    # JAX would take three quarters of the device's memory for itself.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    chosen.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60.0 * chosen.minutes

    def keep(result: dict[str, Any]) -> None:
        write_json(chosen.out / "gpu.json", result)
        write_text(chosen.out / "gpu.md", markdown(result))

    result = measure(
        chosen.hidden, chosen.rollouts, chosen.mixtures, chosen.steps, keep, lambda: end - time.monotonic()
    )
    keep(result)
    print(markdown(result))
    return int(wrong(result))


def wrong(result: dict[str, Any]) -> bool:
    """Whether anything but a peer failed its check or raised; that no time was left for it is no failure."""
    engines = [row for row in result["parity"] if row["kind"] == "engine"]
    names = {row["rival"] for row in engines}
    rows = [*result["mixture"], result["million"], *result["optimizers"]]
    rows += [row for row in result["speeds"] if row["rival"] in names]
    failed = any(row.get("error", _NO_TIME) != _NO_TIME for row in rows)
    return failed or any(row["passed"] is False for row in engines)


if __name__ == "__main__":
    raise SystemExit(main())
