"""Random numbers and maths of the kernels: words to the bit, functions to their stated bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_device import DEVICE, needs_device

from wm_engine.rng import StepDraws, philox

triton = pytest.importorskip("triton", minversion="3.2", reason="Triton is not installed")
import triton.language as tl  # noqa: E402

from wm_engine.kernels import maths  # noqa: E402
from wm_engine.kernels import philox as device_philox  # noqa: E402
from wm_engine.kernels.launch import FP_FUSION  # noqa: E402

pytestmark = needs_device
OPTIONS = {"enable_fp_fusion": FP_FUSION}


@triton.jit
def words_kernel(counters, out, key_low, key_high, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    c0 = device_philox.as_word(tl.load(counters + 4 * at))
    c1 = device_philox.as_word(tl.load(counters + 4 * at + 1))
    c2 = device_philox.as_word(tl.load(counters + 4 * at + 2))
    c3 = device_philox.as_word(tl.load(counters + 4 * at + 3))
    key_low, key_high = device_philox.as_word(key_low), device_philox.as_word(key_high)
    w0, w1, w2, w3 = device_philox.words(c0, c1, c2, c3, key_low, key_high)
    tl.store(out + 4 * at, w0.to(tl.int64))
    tl.store(out + 4 * at + 1, w1.to(tl.int64))
    tl.store(out + 4 * at + 2, w2.to(tl.int64))
    tl.store(out + 4 * at + 3, w3.to(tl.int64))


@pytest.mark.parametrize("seed", [0, 7, (1 << 63) + 12345, (1 << 64) - 1])
def test_words_are_the_contracts_to_the_bit(seed: int) -> None:
    counters = torch.randint(0, 1 << 32, (64, 4), generator=torch.Generator().manual_seed(seed % 99))
    counters[0], counters[1] = 0, (1 << 32) - 1
    out = torch.full((64, 4), -1, device=DEVICE)
    low, high = (word - (1 << 32) if word >= 1 << 31 else word for word in (seed & 0xFFFFFFFF, seed >> 32))
    words_kernel[(1,)](counters.to(DEVICE), out, low, high, SIZE=64, **OPTIONS)
    assert out.cpu().numpy().astype(np.uint32).tolist() == philox(counters.numpy().astype(np.uint32), seed).tolist()


@triton.jit
def draws_kernel(normal, uniform, end, quads, step, ROWS: tl.constexpr, QUADS: tl.constexpr):
    row = tl.arange(0, ROWS)
    word = device_philox.as_word(row)
    step, low, high = (
        device_philox.as_word(step),
        device_philox.as_word(quads * 0 + 5),
        device_philox.as_word(quads * 0),
    )
    column = tl.arange(0, 4 * QUADS)[None, :]
    place = row[:, None] * (4 * QUADS) + column
    n = device_philox.normals(0, step, word[:, None], word[:, None] * 0, low, high, ROWS, QUADS)
    u = device_philox.uniforms(quads, step, word[:, None], word[:, None] * 0, low, high, ROWS, QUADS)
    tl.store(normal + place, n)
    tl.store(uniform + place, u)
    tl.store(end + row, device_philox.first_uniform(2 * quads, step, word, word * 0, low, high))


def test_numbers_are_the_contracts() -> None:
    rows, quads, step = 64, 4, 9
    normal, uniform = (torch.full((rows, 4 * quads), torch.nan, device=DEVICE) for _ in range(2))
    end = torch.full((rows,), torch.nan, device=DEVICE)
    draws_kernel[(1,)](normal, uniform, end, quads, step, ROWS=rows, QUADS=quads, **OPTIONS)
    source = StepDraws(5, torch.zeros(1, dtype=torch.int64), torch.arange(rows), 4 * quads, "per_dim", torch.float64)
    want_normal, want_uniform, want_end = (value[0] for value in source.at(step))
    assert torch.equal(uniform.cpu().double(), want_uniform)
    assert torch.equal(end.cpu().double(), want_end)
    # The radius is at most sqrt(-2 log 2**-24) = 5.8, and cosine and sine are right to 2**-22.
    assert (normal.cpu().double() - want_normal).abs().max() <= 6.0 * 2.0**-21


@triton.jit
def functions_kernel(x, sigmoid, tanh, finite, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    value = tl.load(x + at)
    tl.store(sigmoid + at, maths.sigmoid(value))
    tl.store(tanh + at, maths.tanh(value))
    tl.store(finite + at, maths.finite(value).to(tl.int32))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_functions_keep_their_bounds() -> None:
    edges = torch.tensor([0.0, -0.0, 1e-20, 88.0, -88.0, 89.5, -89.5, 1e4, -1e4, 3e38, -3e38, torch.inf, -torch.inf])
    x = torch.cat([edges, torch.linspace(-30, 30, 4096 - len(edges))])
    sigmoid, tanh = (torch.full_like(x, torch.nan, device=DEVICE) for _ in range(2))
    finite = torch.full(x.shape, -1, dtype=torch.int32, device=DEVICE)
    functions_kernel[(1,)](x.to(DEVICE), sigmoid, tanh, finite, SIZE=4096, **OPTIONS)
    assert (sigmoid.cpu().double() - torch.sigmoid(x.double())).abs().max() <= 2.0**-22
    assert (tanh.cpu().double() - torch.tanh(x.double())).abs().max() <= 2.0**-21
    assert finite.cpu().bool().tolist() == torch.isfinite(x).tolist()


@triton.jit
def reciprocals_kernel(x, exact, fast, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    value = tl.load(x + at)
    tl.store(exact + at, maths.reciprocal(value, True))
    tl.store(fast + at, maths.reciprocal(value, False))


def test_reciprocals_keep_their_bounds() -> None:
    # As far as the cell's denominators go, three factors of up to 1 + 2**40 each.
    x = torch.cat([torch.tensor([1.0, 2.0**121, torch.inf]), torch.logspace(0, 36, 1021)])
    exact, fast = (torch.full_like(x, torch.nan, device=DEVICE) for _ in range(2))
    reciprocals_kernel[(1,)](x.to(DEVICE), exact, fast, SIZE=1024, **OPTIONS)
    want = 1.0 / x.double()
    for got, bound in ((exact, 2.0**-22), (fast, 2.0**-21)):
        assert ((got.cpu().double() - want).abs() <= bound * want).all()


@triton.jit
def turns_kernel(u, cos, sin, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    c, s = maths.cos_sin_turns(tl.load(u + at))
    tl.store(cos + at, c)
    tl.store(sin + at, s)


def test_turns_keep_their_bounds() -> None:
    size = 1 << 15
    words = torch.arange(size, dtype=torch.int64) * ((1 << 32) // size)
    words[-1] = (1 << 32) - 1
    u = (((words >> 9).double() + 0.5) * 2.0**-23).float()
    u[:8] = torch.arange(8) / 8
    u[8] = 1.0
    cos, sin = (torch.full_like(u, torch.nan, device=DEVICE) for _ in range(2))
    turns_kernel[(1,)](u.to(DEVICE), cos, sin, SIZE=size, **OPTIONS)
    angle = 2.0 * torch.pi * u.double()
    assert (cos.cpu().double() - torch.cos(angle)).abs().max() <= 2.0**-22
    assert (sin.cpu().double() - torch.sin(angle)).abs().max() <= 2.0**-22
