"""The mixture's kernels against float64, with poisoned outputs, and their place in the registered operators."""

from __future__ import annotations

import pytest
import torch
from checker import check
from kernel_device import DEVICE, needs_device

from wm_engine.ops import mdn as reference
from wm_engine.ops import registered
from wm_engine.ops.mdn import HeadLayout
from wm_engine.rng import key_words

pytest.importorskip("triton", minversion="3.2", reason="Triton is not installed")
from wm_engine.kernels import mdn

pytestmark = needs_device
SIZES = [(1, 1, 1), (5, 3, 7), (32, 5, 33), (40, 9, 3)]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def heads(mixture: str, sizes: tuple[int, int, int], dtype: torch.dtype) -> tuple[list, list]:
    """Views of one head, with a log std beyond the clamp, and a target: in a dtype, and the same in float64."""
    Z, K, B = sizes
    layout = HeadLayout(Z, K, mixture)
    generator = torch.Generator().manual_seed(0)
    head = (torch.randn(B, layout.size, generator=generator) * 0.5).to(dtype)
    views = layout.split(head)
    views.log_stds[0, 0, 0] = 7.5
    target = torch.randn(B, Z, generator=generator).to(dtype)
    wide = layout.split(head.double())
    return (
        [part.to(DEVICE) if DEVICE != "cpu" else part for part in (views.logits, views.means, views.log_stds, target)],
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the CUDA entries of the operators need one")
@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_torch_finds_nothing_wrong_with_the_operators_on_a_gpu(mixture: str) -> None:
    narrow, _ = heads(mixture, (6, 3, 5), torch.float32)
    rows = tuple(part.detach().to("cuda").contiguous().requires_grad_() for part in narrow)
    torch.library.opcheck(torch.ops.wm_engine.mdn_nll, rows)
    detached = tuple(row.detach() for row in rows)
    torch.library.opcheck(torch.ops.wm_engine.mdn_nll_backward, (torch.randn(5, device="cuda"), *detached))
    counters = torch.zeros(5, 3, dtype=torch.int64, device="cuda")
    torch.library.opcheck(torch.ops.wm_engine.mdn_sample, (*(r.detach() for r in rows[:3]), counters, 1, 0.8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the CUDA entries of the operators need one")
@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_compiled_functions_on_a_gpu_hold_the_operators(mixture: str) -> None:
    narrow, _ = heads(mixture, (6, 3, 5), torch.float32)
    rows = [part.detach().to("cuda") for part in narrow]

    def loss(*parts: torch.Tensor) -> torch.Tensor:
        return registered.mdn_nll(*parts).mean()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        leaves = [row.clone().requires_grad_() for row in rows]
        value = function(*leaves)
        results.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for name, plain, compiled in zip(("loss", "logits", "means", "log_stds", "target"), *results, strict=True):
        check(name, compiled, plain.double(), plain)
