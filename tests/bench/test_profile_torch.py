"""bench/profile_torch.py and what it counts with: bytes of operators as they are, kernels of a GPU from made events."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from wm_engine.bench import commands, profile_torch
from wm_engine.bench.check import WrongResultError
from wm_engine.bench.kernel_costs import DREAM_KERNELS, kernel_cost
from wm_engine.bench.operator_bytes import Argument, arguments, operator_bytes
from wm_engine.bench.profile_torch import bytes_by_call
from wm_engine.bench.profile_torch import profile_torch as profiled
from wm_engine.bench.provenance import provenance
from wm_engine.bench.rivals import Rival, rivals
from wm_engine.bench.roofs import Roofs
from wm_engine.bench.workload import Setup, Workload, prepare
from wm_engine.errors import MissingDependencyError
from wm_engine.ops import registered

ROOFS = Roofs(flops=1e12, memory=1e9, cache=None)


def stored(tensor: Tensor) -> int:
    """Bytes of the elements that a tensor is made of, each counted once."""
    expanded = [0 if stride == 0 else slice(None) for stride in tensor.stride()]
    return tensor.element_size() * tensor[tuple(expanded)].numel()


X, Y = torch.randn(6, 8), torch.randn(8, 10)
WIDE, HALF = torch.randn(6, 1).expand(6, 8), torch.randn(6, 8).bfloat16()
WHOLE, BITS = torch.arange(48).view(6, 8), torch.randn(6, 8) > 0
BATCH = torch.randn(3, 6, 8)
SQUARE = BATCH @ BATCH.mT
COUNTERS = torch.zeros(6, 3, dtype=torch.int64)
SHARED = (torch.randn(6, 1, 5), torch.randn(6, 4, 5), torch.randn(6, 4, 5))

# Of each: the operator, a call, and the tensors that it reads and writes.
CALLS: list[tuple[str, Callable[[], Any], tuple[Tensor, ...]]] = [
    ("aten::mm", lambda: X @ Y, (X, Y, X @ Y)),
    ("aten::mm", lambda: HALF @ HALF.T, (HALF, HALF, HALF @ HALF.T)),
    ("aten::addmm", lambda: torch.addmm(Y[0], X, Y), (Y[0], X, Y, X @ Y)),
    ("aten::bmm", lambda: torch.bmm(BATCH, BATCH.mT), (BATCH, BATCH, SQUARE)),
    ("aten::baddbmm", lambda: torch.baddbmm(SQUARE, BATCH, BATCH.mT), (SQUARE, BATCH, BATCH, SQUARE)),
    ("aten::add", lambda: X + WIDE, (X, WIDE[:, :1], X)),
    ("aten::mul", lambda: X * HALF, (X, HALF, X)),
    ("aten::mul", lambda: X * 2.0, (X, X)),
    ("aten::mul", lambda: BITS * BITS, (BITS, BITS, BITS)),
    ("aten::div", lambda: X / 3, (X, X)),
    ("aten::add_", lambda: X.clone().add_(BITS), (X, BITS, X)),
    ("aten::gt", lambda: X > WIDE, (X, WIDE[:, :1], BITS)),
    ("aten::bitwise_and", lambda: WHOLE.bitwise_and(3), (WHOLE, WHOLE)),
    ("aten::clamp", lambda: X.clamp(-7.0, 7.0), (X, X)),
    ("aten::tanh", lambda: X.tanh(), (X, X)),
    ("aten::where", lambda: torch.where(BITS, X, 0.0), (BITS, X, X)),
    ("aten::copy_", lambda: torch.empty(6, 8, dtype=torch.bfloat16).copy_(WIDE), (HALF, WIDE[:, :1])),
    ("aten::fill_", lambda: torch.empty(6, 8).fill_(1.0), (X,)),
    ("aten::_softmax", lambda: torch.softmax(X, -1), (X, X)),
    ("aten::cumsum", lambda: X.cumsum(-1), (X, X)),
    ("aten::sum", lambda: X.sum(-1), (X, X[:, 0])),
    ("aten::sum", lambda: BITS.sum(-1), (BITS, WHOLE[:, 0])),
    ("aten::all", lambda: BITS.all(-1), (BITS, BITS[:, 0])),
    ("aten::amax", lambda: X.amax(-1, keepdim=True), (X, X[:, :1])),
    ("aten::gather", lambda: X.gather(-1, WHOLE[:, :2] % 8), (X[:, :2], WHOLE[:, :2], X[:, :2])),
    ("wm_engine::mdn_nll", lambda: registered.mdn_nll(*SHARED, X[:, :4]), (*SHARED, X[:, :4], X[:, 0])),
    (
        "wm_engine::mdn_nll_backward",
        lambda: torch.ops.wm_engine.mdn_nll_backward(X[:, 0], *SHARED, X[:, :4]),
        (X[:, 0], *(*SHARED, X[:, :4]) * 2),
    ),
    (
        "wm_engine::mdn_sample",
        lambda: registered.mdn_sample(*SHARED, COUNTERS, 1, 1.0),
        (SHARED[0], SHARED[1][..., 0], SHARED[2][..., 0], COUNTERS, X[:, :4]),
    ),
]  # fmt: skip


def recorded(run: Callable[[], Any], path: Path) -> list[dict[str, Any]]:
    """The events of the profiler's trace of a run."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, acc_events=True) as record:
        run()
    record.export_chrome_trace(str(path))
    return list(json.loads(path.read_text())["traceEvents"])


@pytest.mark.parametrize(("name", "run", "moved"), CALLS, ids=lambda value: value if isinstance(value, str) else "")
def test_an_operators_bytes_are_those_of_its_tensors(
    name: str, run: Callable[[], Any], moved: tuple[Tensor, ...], tmp_path: Path
) -> None:
    calls = [event["args"] for event in recorded(run, tmp_path / "t.json") if event["name"] == name]
    found = {operator_bytes(name, arguments(call) or []) for call in calls}
    assert found - {None} == {sum(stored(tensor) for tensor in moved)}


def test_bytes_that_cannot_be_known_are_not_guessed(tmp_path: Path) -> None:
    def unknown() -> None:
        torch.cat([X, X])
        X[WHOLE[:, 0] % 6]
        WHOLE * 0.5
        WHOLE.tanh()
        torch.softmax(HALF, -1, dtype=torch.float32)
        X.sum()
        X.sum(-1, dtype=torch.float64)

    events = recorded(unknown, tmp_path / "t.json")
    names = ("aten::cat", "aten::index", "aten::mul", "aten::tanh", "aten::sum")
    calls = [(event["name"], event["args"]) for event in events if event["name"] in names]
    assert {name for name, _ in calls} == set(names)
    assert [operator_bytes(name, arguments(call) or []) for name, call in calls] == [None] * len(calls)
    assert arguments({"Input Dims": [[2]], "Input type": ["float"], "Concrete Inputs": [""]}) is None
    assert operator_bytes("aten::tanh", [Argument((2,), (1,), "c10::Float8_e4m3fn")]) is None
    assert operator_bytes("aten::tanh", []) is None
    assert operator_bytes("aten::tanh", [Argument((2, 3), (0, 1), "c10::Half")]) == 2 * 3 + 2 * 6


SIZES = {"candidates": 3, "episodes": 4, "steps": 20, "latent": 6, "hidden": 16, "mixtures": 3}


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("bf16", 2)])
def test_the_kernels_costs_are_those_of_their_tensors(mixture: str, precision: str, width: int) -> None:
    setup = prepare(Workload(**SIZES, mixture=mixture))
    weights = {name: value.numel() for name, value in setup.m.state_dict().items()}
    gates = width * (weights["lstm.weight_ih_l0"] + weights["lstm.weight_hh_l0"]) + 4 * weights["lstm.bias_ih_l0"]
    head = width * weights["head.weight"] + 4 * weights["head.bias"]
    controllers, h, c, z = 4 * setup.params.numel(), width * 12 * 16, 4 * 12 * 16, 4 * 12 * 6
    products = weights["lstm.weight_ih_l0"] + weights["lstm.weight_hh_l0"]

    inputs = width * 12 * (6 + 3)
    act, advance, settle = (
        kernel_cost(f"{name}_kernel", setup, precision, 1, 12) for name in ("act", "advance", "settle")
    )
    whole = kernel_cost("rollout_kernel", setup, precision, 1, 12 * 20)
    assert act is not None
    assert advance is not None
    assert settle is not None
    assert whole is not None
    assert act.bytes == h + z + controllers + inputs + 4 * 12
    assert advance.bytes == gates + 2 * (h + c) + inputs
    assert settle.bytes == head + h + z + controllers + inputs + 12 * (2 * 4 + 2 * 4 + 2 * 12)
    assert whole.bytes == gates + head + h + c + z + controllers + 12 * 12
    assert act.flops == 2 * 12 * 3 * (6 + 16)
    assert advance.flops == 2 * 12 * products
    assert settle.flops == 2 * 12 * weights["head.weight"] + act.flops
    assert whole.flops == 20 * (advance.flops + settle.flops)


def test_no_other_kernel_is_the_dreams() -> None:
    setup = prepare(Workload(**SIZES))
    assert kernel_cost("nll_kernel", setup, "fp32", 1, 1) is None
    dream = pytest.importorskip("wm_engine.kernels.dream", reason="Triton is not installed", exc_type=ImportError)
    for name in DREAM_KERNELS:
        assert hasattr(dream, name)


def event(name: str, number: int, micro: float, flops: int = 0, kernels: tuple[tuple[str, float], ...] = ()) -> Any:
    """An event of the profiler's: an operator with its kernels, or (with the number 0) a kernel of the device."""
    on_device = number == 0
    made = FunctionEvent(
        id=number, name=name, thread=1, start_us=0.0, end_us=micro, input_shapes=(), stack=[], flops=flops,
        use_device="cuda", device_type=DeviceType.CUDA if on_device else DeviceType.CPU,
    )  # fmt: skip
    for kernel, duration in kernels:
        made.append_kernel(kernel, 0, duration)
    return made


def operator(name: str, number: int, *inputs: tuple[list[int], str]) -> dict[str, Any]:
    """An operator in the profiler's trace, of contiguous inputs."""
    strides = [[math.prod(sizes[place + 1 :]) for place in range(len(sizes))] for sizes, _ in inputs]
    recorded = {
        "External id": number, "Input Dims": [sizes for sizes, _ in inputs], "Input Strides": strides,
        "Input type": [kind for _, kind in inputs], "Concrete Inputs": [""] * len(inputs),
    }  # fmt: skip
    return {"cat": "cpu_op", "name": name, "args": recorded}


PRODUCT = operator("aten::mm", 7, ([100, 200], "c10::BFloat16"), ([200, 50], "c10::BFloat16"))
COPY = operator("aten::copy_", 8, ([1000], "float"), ([1000], "float"))
UP = operator("aten::copy_", 9, ([1000], "float"), ([1000], "float"))
EVENTS = [
    event("aten::mm", 7, 50.0, flops=2_000_000, kernels=(("gemm", 4.0), ("splitKreduce", 1.0))),
    event("aten::mm", 7, 50.0, flops=2_000_000, kernels=(("gemm", 4.0), ("splitKreduce", 1.0))),
    event("aten::copy_", 8, 9.0, kernels=(("elementwise", 2.0),)),
    event("aten::copy_", 9, 9.0, kernels=(("Memcpy HtoD (Pageable -> Device)", 3.0),)),
    event("aten::nonsense", 10, 9.0, kernels=(("elementwise", 6.0),)),
    event("cudaGraphLaunch", 11, 9.0, kernels=(("advance_kernel", 20.0),)),
    event("cudaLaunchKernel", 7, 3.0, kernels=(("gemm", 4.0), ("splitKreduce", 1.0))),  # by its number alone
    event("cuLaunchKernelEx", 8, 3.0, kernels=(("elementwise", 2.0),)),
    event("gemm", 0, 4.0),
    event("gemm", 0, 4.0),
    event("splitKreduce", 0, 1.0),
    event("splitKreduce", 0, 1.0),
    event("elementwise", 0, 2.0),
    event("elementwise", 0, 6.0),
    event("elementwise", 0, 0.5),
    event("Memcpy HtoD (Pageable -> Device)", 0, 3.0),
    event("advance_kernel", 0, 20.0),
    event("advance_kernel", 0, 20.0),
    event("settle_kernel", 0, 10.0),
    event("settle_kernel", 0, 10.0),
    event("rollout_kernel", 0, 100.0),
]


class Recording:
    """A profiler of a GPU that has seen EVENTS."""

    def __init__(self, events: list[Any]) -> None:
        self._events = events

    def __call__(self, **options: Any) -> Recording:
        assert options["activities"] == [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        assert options["record_shapes"]
        assert options["with_flops"]
        return self

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def export_chrome_trace(self, path: str) -> None:
        # A tab in a name, which is no strict JSON.
        named = json.dumps({"traceEvents": [PRODUCT, COPY, UP, {"name": "TAB"}]}).replace("TAB", "a\tb")
        Path(path).write_text(named)

    def events(self) -> list[Any]:
        return self._events


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Any]], Rival]:
    """A rival that says it is on a GPU, and what the profiler sees of it."""

    def seen(events: list[Any]) -> Rival:
        monkeypatch.setattr(profile_torch, "profile", Recording(events))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        sound = next(rival for rival in rivals("cpu")[0] if rival.name == "torch bf16")
        return Rival("triton bf16", "engine", "cuda", "bf16", sound.build)

    return seen


def test_kernels_of_a_gpu_have_the_bytes_and_flops_that_can_be_known(
    gpu: Callable[[list[Any]], Rival], tmp_path: Path
) -> None:
    setup = prepare(Workload(**SIZES))
    rows = {(row.name, row.operator): row for row in profiled(gpu(EVENTS), setup, tmp_path / "t.json", ROOFS)}
    assert len(rows) == 8
    total = sum(each.time_range.elapsed_us() for each in EVENTS if each.device_type == DeviceType.CUDA)
    assert sum(row.seconds for row in rows.values()) == pytest.approx(1e-6 * total)
    assert sum(row.share for row in rows.values()) == pytest.approx(1.0)
    assert next(iter(rows)) == ("rollout_kernel", None)

    product = rows["gemm + splitKreduce", "aten::mm"]
    assert (product.calls, product.seconds) == (2, pytest.approx(10e-6))
    assert (product.flops, product.bytes) == (4e6, 2 * 2 * (100 * 200 + 200 * 50 + 100 * 50))
    assert product.of_peak == pytest.approx(4e6 / 10e-6 / 1e12)
    assert product.of_bandwidth == pytest.approx(140_000 / 10e-6 / 1e9)
    assert product.intensity == pytest.approx(4e6 / 140_000)
    copy = rows["elementwise", "aten::copy_"]
    assert (copy.flops, copy.bytes, copy.calls) == (None, 8000, 1)

    unknown = [("elementwise", "aten::nonsense"), ("elementwise", None)]
    unknown += [("Memcpy HtoD (Pageable -> Device)", "aten::copy_")]
    for key in unknown:
        row = rows[key]
        assert (row.flops, row.bytes, row.of_peak, row.of_bandwidth, row.intensity) == (None,) * 5
    assert rows["elementwise", None].seconds == pytest.approx(0.5e-6)

    lived = setup.lived_steps()
    for name, launches in (("advance_kernel", 2), ("settle_kernel", 2), ("rollout_kernel", 1)):
        cost, row = kernel_cost(name, setup, "bf16", launches, lived), rows[name, None]
        assert cost is not None
        assert (row.calls, row.flops, row.bytes) == (launches, cost.flops, cost.bytes)


def test_a_gpu_whose_kernels_cannot_be_recorded_is_an_error(gpu: Callable[[list[Any]], Rival], tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="recorded no kernel of the GPU"):
        profiled(gpu([event("aten::mm", 7, 50.0)]), prepare(Workload(**SIZES)), tmp_path / "t.json", ROOFS)


def test_a_wrong_backend_is_not_profiled(gpu: Callable[[list[Any]], Rival], tmp_path: Path) -> None:
    sound = gpu(EVENTS)

    def wrong(setup: Setup) -> Callable[[], Tensor]:
        return lambda: 1.5 * sound.build(setup)()

    rival = Rival(sound.name, sound.kind, sound.device, sound.precision, wrong)
    with pytest.raises(WrongResultError):
        profiled(rival, prepare(Workload(**SIZES)), tmp_path / "t.json", ROOFS)
    assert not (tmp_path / "t.json").exists()


def test_the_command_shows_a_gpus_kernels(
    gpu: Callable[[list[Any]], Rival], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival = gpu(EVENTS)
    monkeypatch.setattr(commands, "rivals", lambda *arguments: ([rival], {}))
    monkeypatch.setattr(commands, "measure_roofs", lambda *arguments: ROOFS)
    monkeypatch.setattr(commands, "provenance", lambda device, threads: provenance("cpu", threads))
    sizes = ["-P3", "-E4", "-T20", "-Z6", "-H16", "-K3", "--device=cuda", "--precision=bf16"]
    files = ["--out", str(tmp_path), "--json", str(tmp_path / "copy.json")]
    result = CliRunner().invoke(commands.profile, [*sizes, *files])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    head = next(line for line in lines if "of copy" in line)
    assert head.split()[-7:] == ["GB/s", "of", "copy", "GFLOP/s", "of", "peak", "flops/byte"]
    product = next(line for line in lines if line.startswith("4 aten::mm: gemm + splitKreduce"))
    assert product.split()[-9:] == ["2", "5.0", "14.0", "1400", "%", "400.0", "40", "%", "28.6"]
    written = {
        (row["name"], row["operator"]): row for row in json.loads((tmp_path / "profile.json").read_text())["operators"]
    }
    row = written["gemm + splitKreduce", "aten::mm"]
    assert row["bytes"] == 140_000
    assert row["of_peak"] == pytest.approx(0.4)
    assert {"gflops", "intensity", "of_bandwidth", "flops", "seconds", "share", "calls"} <= row.keys()
    assert written["elementwise", None]["bytes"] is None
    # The last line counts as the rows of the dream's kernels do.
    whole = kernel_cost("rollout_kernel", prepare(Workload(**SIZES, mixture="per_dim")), "bf16", 1, 3 * 4 * 20)
    assert whole is not None
    assert written["rollout_kernel", None]["flops"] == whole.flops
    rate = whole.flops / sum(row["seconds"] for row in written.values())
    said = f"{rate / 1e9:,.0f} GFLOP/s of dense products, {100 * rate / ROOFS.flops:.0f} % of the machine's peak"
    assert next(line for line in lines if line.startswith("all together")).endswith(said)
    assert (tmp_path / "roofline.png").stat().st_size > 0
    assert (tmp_path / "copy.json").read_text() == (tmp_path / "profile.json").read_text()


def test_operators_on_a_cpu_have_bytes_flops_and_fractions(tmp_path: Path) -> None:
    setup = prepare(Workload(**SIZES))
    rival = next(rival for rival in rivals("cpu")[0] if rival.name == "torch fp32")
    rows = {row.name: row for row in profiled(rival, setup, tmp_path / "t.json", ROOFS)}
    # [12, 16] x [16, 64]: h's product, once a step; torch fills small batches up to 16 rollouts.
    product = rows["aten::mm"]
    rollouts = 16
    assert product.calls == 20
    assert product.flops == 20 * 2 * rollouts * 16 * 64
    assert product.bytes == 20 * 4 * (rollouts * 16 + 16 * 64 + rollouts * 64)
    assert product.of_peak == pytest.approx(product.flops / product.seconds / 1e12)
    assert product.of_bandwidth == pytest.approx(product.bytes / product.seconds / 1e9)
    assert sum(row.share for row in rows.values()) == pytest.approx(1.0)
    assert rows["aten::cat"].bytes is None
    assert bytes_by_call(json.loads((tmp_path / "t.json").read_text())["traceEvents"])
