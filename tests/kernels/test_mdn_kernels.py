"""The mixture's kernels against float64, with poisoned outputs, and their place in the registered operators."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_heads
import pytest
import torch
from checker import check
from kernel_device import DEVICE, needs_device

from wm_engine.ops import mdn as reference
from wm_engine.ops import registered
from wm_engine.ops.mdn import HeadLayout
from wm_engine.rng import key_words

pytest.importorskip("triton", minversion="3.2", reason="Triton is not installed")
import triton

from wm_engine import kernels
from wm_engine.kernels import maths, mdn

pytestmark = needs_device
SIZES = [(1, 1, 1), (5, 3, 7), (32, 5, 33), (40, 9, 3)]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = ("nll", "logits", "means", "log_stds", "target", "z")


def heads(mixture: str, sizes: tuple[int, int, int], dtype: torch.dtype) -> tuple[list, list]:
    """Views of one head, with a log std beyond the clamp, and a target: in a dtype, and the same in float64."""
    Z, K, B = sizes
    layout = HeadLayout(Z, K, mixture)
    generator = torch.Generator().manual_seed(0)
    head = (torch.randn(B, layout.size, generator=generator) * 0.5).to(DEVICE, dtype)
    views = layout.split(head)
    views.log_stds[0, 0, 0] = 7.5
    target = torch.randn(B, Z, generator=generator).to(dtype)
    wide = layout.split(head.cpu().double())
    return (
        [views.logits, views.means, views.log_stds, target.to(DEVICE)],
        [wide.logits, wide.means, wide.log_stds, target.double()],
    )


def poisoned(*shapes: torch.Size, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return tuple(torch.full(shape, torch.nan, dtype=dtype, device=DEVICE) for shape in shapes)


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("precision", list(DTYPES))
def test_nll_is_float64s(mixture: str, sizes: tuple[int, int, int], precision: str) -> None:
    narrow, wide = heads(mixture, sizes, DTYPES[precision])
    (out,) = poisoned(narrow[3].shape[:1], dtype=DTYPES[precision])
    mdn.nll(*narrow, out=out)
    check("nll", out, reference.mdn_nll(*wide), reference.mdn_nll(*narrow), precision)


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("precision", list(DTYPES))
def test_gradients_are_float64s(mixture: str, sizes: tuple[int, int, int], precision: str) -> None:
    narrow, wide = heads(mixture, sizes, DTYPES[precision])
    grad = torch.linspace(-1, 2, sizes[2]).to(DTYPES[precision])
    out = poisoned(*(part.shape for part in narrow), dtype=DTYPES[precision])
    mdn.nll_backward(grad.to(DEVICE), *narrow, out=out)
    backward = torch.ops.wm_engine.mdn_nll_backward
    want, peer = backward(grad.double(), *wide), backward(grad, *(part.cpu() for part in narrow))
    for name, *values in zip(("logits", "means", "log_stds", "target"), out, want, peer, strict=True):
        check(name, *values, precision)


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sample_is_float64s(mixture: str, sizes: tuple[int, int, int], temperature: float, precision: str) -> None:
    narrow, wide = heads(mixture, sizes, DTYPES[precision])
    counters = torch.randint(0, 1 << 32, (sizes[2], 3), generator=torch.Generator().manual_seed(3))
    seed = (1 << 63) + 5
    (out,) = poisoned(narrow[3].shape, dtype=DTYPES[precision])
    mdn.sample(*narrow[:3], counters.to(DEVICE), key_words(seed), temperature, out=out)
    want = registered.mdn_sample(*wide[:3], counters, seed, temperature)
    peer = registered.mdn_sample(*(part.float().cpu() for part in narrow[:3]), counters, seed, temperature)
    check("z", out, want, peer.to(DTYPES[precision]), precision)


@pytest.mark.skipif(not kernels.interpreted(), reason="compiled kernels take what their Triton can")
@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_sampling_without_a_scan_is_the_same(mixture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As under Triton 3.2.
    narrow, _ = heads(mixture, (4, 5, 64), torch.float32)
    counters = torch.randint(0, 1 << 32, (64, 3), generator=torch.Generator().manual_seed(3))

    def sampled() -> torch.Tensor:
        return mdn.sample(*narrow[:3], counters, (1, 2), 1.0)

    want = sampled()
    monkeypatch.setattr(maths, "SCANS", triton.language.constexpr(False))
    assert torch.equal(sampled(), want)


def test_what_does_not_fit_is_named() -> None:
    assert mdn.fits(32, 5, torch.float32)
    assert not mdn.fits(32, 5, torch.float64)
    assert not mdn.fits(1 << 12, 64, torch.float32)
    with pytest.raises(ValueError, match=r"Z·K up to 65536, but Z was 4096 and K was 64"):
        mdn.blocks(1 << 12, 64)


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_nothing_is_asked_of_an_empty_batch(mixture: str) -> None:
    narrow, _ = heads(mixture, (4, 2, 3), torch.float32)
    assert mdn.nll(*(part[:0] for part in narrow)).shape == (0,)


def cuda_entries(parts: list[torch.Tensor], grad: torch.Tensor, counters: torch.Tensor) -> list[torch.Tensor]:
    """What the operators dispatch to on CUDA, called as it is: without a GPU, with tensors of the CPU."""
    gradients = registered._nll_backward_cuda(grad, *parts)
    return [registered._nll_cuda(*parts), *gradients, registered._sample_cuda(*parts[:3], counters, -5, 0.7)]


def plain_torch(parts: list[torch.Tensor], grad: torch.Tensor, counters: torch.Tensor) -> list[torch.Tensor]:
    gradients = registered._reference_gradients(grad, *parts)
    return [reference.mdn_nll(*parts), *gradients, registered._reference_sample(*parts[:3], counters, -5, 0.7)]


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize("precision", [*DTYPES, "fp64"])
def test_what_cuda_dispatches_to_is_float64s(mixture: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow, wide = heads(mixture, (6, 3, 9), DTYPES.get(precision, torch.float64))
    grad = torch.linspace(-1, 2, 9).to(narrow[0])
    counters = torch.randint(0, 1 << 32, (9, 3), generator=torch.Generator().manual_seed(3))
    exact = plain_torch(wide, grad.cpu().double(), counters)
    peer = plain_torch(narrow, grad, counters.to(DEVICE))

    def unwanted(*_: object) -> None:
        raise AssertionError("the torch reference ran")

    if precision in DTYPES:
        # The kernels draw in float32, whatever the heads' dtype.
        low = [part.float() for part in narrow[:3]]
        peer[-1] = registered._reference_sample(*low, counters.to(DEVICE), -5, 0.7).to(narrow[0])
        monkeypatch.setattr(reference, "mdn_nll", unwanted)
        monkeypatch.setattr(registered, "_reference_gradients", unwanted)
        monkeypatch.setattr(registered, "_reference_sample", unwanted)
    got = cuda_entries(narrow, grad, counters.to(DEVICE))
    for name, *values in zip(NAMES, got, exact, peer, strict=True):
        check(name, *values, precision)


ENTRIES = {
    "mdn_nll": (registered._nll_cuda, mdn.nll),
    "mdn_nll_backward": (registered._nll_backward_cuda, mdn.nll_backward),
    "mdn_sample": (registered._sample_cuda, mdn.sample),
}
RESULTS: dict[str, dict[str, tuple[int, ...]]] = {
    "mdn_nll": {"out": (8,)},
    "mdn_nll_backward": {"to_logits": (8, 4, 5), "to_means": (8, 4, 5), "to_log_stds": (8, 4, 5), "to_target": (8, 4)},
    "mdn_sample": {"out": (8, 4)},
}
"""Shapes of the results for the heads of bad_heads."""


def launch(operator: str, arguments: dict[str, Any], out: list[torch.Tensor]) -> None:
    """The kernel's host function, with an operator's arguments."""
    arguments = dict(arguments)
    if operator == "mdn_sample":
        arguments["keys"] = key_words(arguments.pop("seed"))
    ENTRIES[operator][1](**arguments, out=out[0] if len(out) == 1 else tuple(out))


@pytest.mark.parametrize(("operator", "name", "change", "error", "message"), bad_heads.CASES)
def test_what_does_not_fit_together_is_refused_unwritten(
    operator: str, name: str, change: Callable, error: type[Exception], message: str
) -> None:
    arguments = bad_heads.sound(operator, torch.float32, DEVICE)
    arguments[name] = change(arguments[name])
    with pytest.raises(error, match=message):
        ENTRIES[operator][0](**arguments)
    out = poisoned(*RESULTS[operator].values(), dtype=torch.float32)
    with pytest.raises(error, match=message):
        launch(operator, arguments, list(out))
    assert all(part.isnan().all() for part in out)


WRONG_RESULTS: list[tuple[Callable, type[Exception], str]] = [
    (lambda memory: memory[:5], ValueError, r"must have shape \[8.*\], but had \[5.*\]"),
    (lambda memory: memory[::2], ValueError, "must be contiguous, but had strides"),
    (lambda memory: memory[:8].double(), TypeError, r"must be torch\.float32, as means is, but was torch\.float64"),
    (lambda memory: memory[:8].to("meta"), ValueError, "must be on .*, as means is, but was on meta"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG_RESULTS)
@pytest.mark.parametrize(("operator", "name"), [(operator, name) for operator in RESULTS for name in RESULTS[operator]])
def test_places_that_do_not_fit_are_refused_unwritten(
    operator: str, name: str, wrong: Callable, error: type[Exception], message: str
) -> None:
    shapes = RESULTS[operator]
    memory = poisoned(*((16, *shape[1:]) for shape in shapes.values()), dtype=torch.float32)
    out = [wrong(part) if place == name else part[:8] for place, part in zip(shapes, memory, strict=True)]
    with pytest.raises(error, match=f"{name} {message}"):
        launch(operator, bad_heads.sound(operator, torch.float32, DEVICE), out)
    assert all(part.isnan().all() for part in memory)


def test_float64_is_none_of_the_kernels() -> None:
    _, wide = heads("shared", (4, 2, 3), torch.float32)
    with pytest.raises(TypeError, match=r"take float32, bfloat16 and float16, but the heads were torch\.float64"):
        mdn.nll(*(part.to(DEVICE) for part in wide))


@pytest.mark.skipif(DEVICE.type != "cuda", reason="kernels run on the CPU here; its operators' tests are tests/ops's")
@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_torch_finds_nothing_wrong_with_the_operators_on_a_gpu(mixture: str) -> None:
    narrow, _ = heads(mixture, (6, 3, 5), torch.float32)
    rows = tuple(part.detach().contiguous().requires_grad_() for part in narrow)
    torch.library.opcheck(torch.ops.wm_engine.mdn_nll, rows)
    detached = tuple(row.detach() for row in rows)
    torch.library.opcheck(torch.ops.wm_engine.mdn_nll_backward, (torch.randn(5, device="cuda"), *detached))
    counters = torch.zeros(5, 3, dtype=torch.int64, device="cuda")
    torch.library.opcheck(torch.ops.wm_engine.mdn_sample, (*(r.detach() for r in rows[:3]), counters, 1, 0.8))


COMPILES = DEVICE.type == "cuda" or (
    shutil.which(os.environ.get("CXX", "g++")) is not None and Path(sysconfig.get_path("include"), "Python.h").exists()
)


@pytest.mark.slow
@pytest.mark.skipif(not COMPILES, reason="torch.compile needs a C++ compiler and Python's headers on CPUs")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # as torch's compiler does when it is imported
@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_compiled_functions_hold_the_operators(mixture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    rows, _ = heads(mixture, (6, 3, 5), torch.float32)

    def loss(*parts: torch.Tensor) -> torch.Tensor:
        return registered.mdn_nll(*parts).mean()

    results = []
    with config.patch(compile_threads=1):  # more are processes, which outlive the test
        for function in (loss, torch.compile(loss, fullgraph=True)):
            leaves = [row.clone().requires_grad_() for row in rows]
            value = function(*leaves)
            results.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for name, plain, compiled in zip(NAMES[:5], *results, strict=True):
        check(name, compiled, plain.double(), plain)
