"""The mixture's operations of the C++ core: every level against float64, with poisoned outputs, and at the edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from checker import check
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle
from torch import Tensor

from wm_engine.core import core
from wm_engine.ops import mdn, registered
from wm_engine.ops.mdn import LOG_STD_LIMIT, HeadLayout

_C, _REASON = core()
if _C is None:
    pytest.skip(_REASON, allow_module_level=True)
LEVELS = _C.isa_levels()
MIXTURES = ["shared", "per_dim"]
NAMES = ("logits", "means", "log_stds", "target")


def head(mixture: str, rows: int, latent: int, mixtures: int, seed: int = 0) -> list[Tensor]:
    """Logits, means and log_stds as views of a head, and a target, float32; log_stds on both sides of the clamp."""
    layout = HeadLayout(latent, mixtures, mixture)
    generator = torch.Generator().manual_seed(seed)
    parts = layout.split(torch.randn(rows, layout.size, generator=generator) * 2.0)
    log_stds = parts.log_stds * torch.where(torch.rand(parts.log_stds.shape, generator=generator) < 0.1, 5.0, 0.5)
    return [parts.logits, parts.means, log_stds, torch.randn(rows, latent, generator=generator)]


def arrays(values: Sequence[Tensor]) -> list[np.ndarray]:
    return [value.numpy() for value in values]


def native_nll(values: Sequence[Tensor], isa: str, threads: int = 1) -> Tensor:
    out = torch.full(values[3].shape[:1], torch.nan)
    _C.mdn_nll(*arrays(values), out.numpy(), num_threads=threads, isa=isa)
    return out


def native_gradients(grad: Tensor, values: Sequence[Tensor], isa: str, threads: int = 1) -> list[Tensor]:
    out = [torch.full(value.shape, torch.nan) for value in values]
    _C.mdn_nll_backward(grad.numpy(), *arrays(values), *arrays(out), num_threads=threads, isa=isa)
    return out


def native_draw(
    values: Sequence[Tensor], counters: Tensor, seed: int, temperature: float, isa: str, threads: int = 1
) -> Tensor:
    out = torch.full(values[1].shape[:2], torch.nan)
    _C.mdn_sample(
        *arrays(values[:3]), counters.numpy(), seed, temperature, out.numpy(), num_threads=threads, isa=isa
    )  # fmt: skip
    return out


def reference_gradients(grad: Tensor, values: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves = [value.to(dtype).requires_grad_() for value in values]
    return list(torch.autograd.grad(mdn.mdn_nll(*leaves), leaves, grad.to(dtype)))


SIZES = [(1, 1), (1, 3), (5, 3), (16, 1), (17, 18), (32, 5)]


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize(("latent", "mixtures"), SIZES)
def test_nll_and_its_gradients_are_the_references(isa: str, mixture: str, latent: int, mixtures: int) -> None:
    values = head(mixture, 33, latent, mixtures)
    grad = torch.randn(33, generator=torch.Generator().manual_seed(1))
    double = [value.double() for value in values]
    check("nll", native_nll(values, isa), mdn.mdn_nll(*double), mdn.mdn_nll(*values))
    got = native_gradients(grad, values, isa)
    exact, peer = (reference_gradients(grad, values, dtype) for dtype in (torch.float64, torch.float32))
    for name, *each in zip(NAMES, got, exact, peer, strict=True):
        check(f"gradient to {name}", *each)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize(("latent", "mixtures"), SIZES)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_draws_are_the_oracles(isa: str, mixture: str, latent: int, mixtures: int, temperature: float) -> None:
    values = head(mixture, 40, latent, mixtures)
    values[0] = values[0] * 30.0  # components far from equal: rounding tips no choice over
    counters = torch.randint(0, 1 << 32, (40, 3), generator=torch.Generator().manual_seed(3))
    seed = (1 << 64) - 5
    oracle = Oracle({}, latent, 1, 1, mixtures, mixture, "z", "tanh")
    # The oracle takes a head as M gives it: component-major where shared.
    order = [value.double().transpose(1, 2) if mixture == "shared" else value.double() for value in values[1:3]]
    raw = torch.cat([part.flatten(1) for part in (values[0].double(), *order)], dim=1).numpy()
    draws = [oracle.draws(seed, *row) for row in counters.tolist()]
    want = np.stack([oracle.sample(raw[i], draws[i][0], draws[i][1], temperature) for i in range(40)])
    peer = registered._reference_sample(*values[:3], counters, seed, temperature)
    check("z", native_draw(values, counters, seed, temperature, isa), want, peer)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_threads_and_company_do_not_change_a_bit(isa: str, mixture: str) -> None:
    values = head(mixture, 700, 32, 5)
    grad, counters = torch.randn(700), torch.arange(2100).view(700, 3)

    def everything(rows: slice, threads: int) -> list[Tensor]:
        some = [value[rows] for value in values]
        gradients = native_gradients(grad[rows], some, isa, threads)
        return [
            native_nll(some, isa, threads),
            *gradients,
            native_draw(some, counters[rows].contiguous(), 1, 1.0, isa, threads),
        ]

    whole = everything(slice(None), 1)
    for threads in (2, 5):
        for one, many in zip(whole, everything(slice(None), threads), strict=True):
            assert torch.equal(one, many)
    for rows in (slice(0, 1), slice(63, 65), slice(699, 700)):
        for one, part in zip(whole, everything(rows, 1), strict=True):
            assert torch.equal(one[rows], part)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_float32_on_cpus_goes_to_the_core(mixture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [value.requires_grad_() for value in head(mixture, 9, 5, 3)]

    def unwanted(*_: Any) -> None:
        raise AssertionError("the torch reference ran")

    for name in ("_reference_gradients", "_reference_sample"):
        monkeypatch.setattr(registered, name, unwanted)
    monkeypatch.setattr(mdn, "mdn_nll", unwanted)
    loss = registered.mdn_nll(*values)
    plain = [value.detach() for value in values]
    assert torch.equal(loss.detach(), native_nll(plain, "auto"))
    gradients = torch.autograd.grad(loss.sum(), values)
    for got, want in zip(gradients, native_gradients(torch.ones(9), plain, "auto"), strict=True):
        assert torch.equal(got, want)
    counters = torch.arange(27).view(9, 3)
    assert torch.equal(
        registered.mdn_sample(*values[:3], counters, 4, 1.0).detach(), native_draw(plain, counters, 4, 1.0, "auto")
    )


@pytest.mark.parametrize("mixture", MIXTURES)
def test_torch_finds_nothing_wrong_with_the_core_as_an_operator(mixture: str) -> None:
    values = [value.contiguous().requires_grad_() for value in head(mixture, 3, 4, 2)]
    rows = tuple(value.detach() for value in values)
    torch.library.opcheck(torch.ops.wm_engine.mdn_nll, tuple(values))
    torch.library.opcheck(torch.ops.wm_engine.mdn_nll_backward, (torch.randn(3), *rows))
    torch.library.opcheck(torch.ops.wm_engine.mdn_sample, (*rows[:3], torch.randint(0, 9, (3, 3)), 1, 0.8))


def test_an_empty_batch() -> None:
    values = [value[:0].requires_grad_() for value in head("per_dim", 1, 5, 3)]
    loss = registered.mdn_nll(*values)
    assert loss.shape == (0,)
    assert [g.shape for g in torch.autograd.grad(loss.sum(), values)] == [value.shape for value in values]
    assert registered.mdn_sample(*values[:3], torch.zeros(0, 3, dtype=torch.int64), 1, 1.0).shape == (0, 5)


BAD: list[tuple[str, Any, type[Exception], str]] = [
    ("means", np.zeros((3, 4), np.float32), ValueError, r"means must have shape \[N, N, N\], but had \[3, 4\]"),
    ("means", np.zeros((3, 0, 2), np.float32), ValueError, r"means.shape\[1\] must be from 1 to 65536, but was 0"),
    ("means", [1.0], TypeError, "means must be a float32 array .*but was list"),
    ("logits", np.zeros((3, 2, 2), np.float32), ValueError, r"logits must have shape \[3, 1, 2\] or \[3, 4, 2\]"),
    ("log_stds", np.zeros((3, 4, 3), np.float32), ValueError, r"log_stds must have shape \[3, 4, 2\]"),
    ("log_stds", np.zeros((3, 4, 2)), TypeError, "log_stds must be a float32 array .*but was float64"),
    ("log_stds", np.zeros((3, 4, 2), ">f4"), TypeError, "log_stds must be a float32 array .*but was >f4"),
    ("target", np.zeros((2, 4), np.float32), ValueError, r"target must have shape \[3, 4\], but had \[2, 4\]"),
    ("target", np.zeros((3, 4), "f4,i1")["f0"], ValueError, "target must have strides of whole floats"),
    ("out", np.zeros((6,), np.float32)[::2], ValueError, "out must be C-contiguous and writable"),
    ("out", np.broadcast_to(np.float32(0), (3,)), ValueError, "out must be C-contiguous and writable"),
    ("out", np.zeros(4, np.float32), ValueError, r"out must have shape \[3\], but had \[4\]"),
    ("num_threads", 0, ValueError, "num_threads must be from 1"),
    ("isa", "mmx", ValueError, "isa must be a level"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD)
def test_bad_arguments_are_named(name: str, value: Any, error: type[Exception], message: str) -> None:
    good = dict(zip(NAMES, arrays(head("per_dim", 3, 4, 2)), strict=True))
    good |= {"out": np.empty(3, np.float32), "num_threads": 1}
    with pytest.raises(error, match=message):
        _C.mdn_nll(**good | {name: value})


BAD_DRAWS: list[tuple[str, Any, type[Exception], str]] = [
    ("counters", np.zeros((3, 2), np.int64), ValueError, r"counters must have shape \[3, 3\], but had \[3, 2\]"),
    ("counters", np.zeros((3, 3), np.int32), TypeError, "counters must be a int64 array .*but was int32"),
    ("temperature", -0.5, ValueError, "temperature must be finite and at least 0"),
    ("temperature", np.inf, ValueError, "temperature must be finite and at least 0"),
    ("seed", -1, TypeError, "incompatible function arguments"),
    ("out", np.zeros((3, 3), np.float32), ValueError, r"out must have shape \[3, 4\]"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD_DRAWS)
def test_bad_draws_are_named(name: str, value: Any, error: type[Exception], message: str) -> None:
    good = dict(zip(NAMES[:3], arrays(head("per_dim", 3, 4, 2)), strict=False))
    good |= {"counters": np.zeros((3, 3), np.int64), "seed": 0, "temperature": 1.0}
    good |= {"out": np.empty((3, 4), np.float32), "num_threads": 1}
    with pytest.raises(error, match=message):
        _C.mdn_sample(**good | {name: value})


FAR = st.sampled_from([0.0, 1e-45, -1e-40, 1e-30, 1.0, -7.0, 7.0, 100.0, -100.0, 1e4, -1e4])
WILD = st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -3e38])
PLACE = st.tuples(st.sampled_from(range(4)), st.integers(0, 1 << 16))
SHAPES = {
    "mixture": st.sampled_from(MIXTURES),
    "sizes": st.tuples(st.integers(1, 7), st.integers(1, 35), st.integers(1, 18)),
    "isa": st.sampled_from(LEVELS),
    "equal": st.booleans(),
}


def odd_strides(values: list[Tensor]) -> list[Tensor]:
    """The same values with other strides: every second row of a larger tensor, the last two axes swapped."""
    return [value.movedim(0, -1).repeat_interleave(2, dim=-1).movedim(-1, 0)[::2] for value in values]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(**SHAPES, planted=st.lists(st.tuples(PLACE, FAR), max_size=6))
def test_far_values_have_the_references_answer(
    mixture: str, sizes: tuple[int, int, int], isa: str, equal: bool, planted: list[tuple[tuple[int, int], float]]
) -> None:
    values = [value.contiguous() for value in head(mixture, *sizes)]
    if equal:
        values[0].fill_(1.0)
    for (part, place), value in planted:
        values[part].view(-1)[place % values[part].numel()] = value
    grad = torch.linspace(-1.0, 1.0, sizes[0])
    exact, plain = mdn.mdn_nll(*(value.double() for value in values)), mdn.mdn_nll(*values)
    strided = odd_strides(values)
    check("nll", native_nll(strided, isa), exact, plain)
    # Likelihoods so small that float32 cannot tell those of the components apart leave no digit of the gradients.
    told_apart = exact * sizes[1] < 2.0**10
    got = native_gradients(grad, strided, isa)
    wants = (reference_gradients(grad, values, dtype) for dtype in (torch.float64, torch.float32))
    for name, result, *references in zip(NAMES, got, *wants, strict=True):
        check(f"gradient to {name}", result[told_apart], *(each[told_apart] for each in references))
        assert torch.isfinite(result).all()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(**SHAPES, wild=st.lists(st.tuples(PLACE, WILD), min_size=1, max_size=3))
def test_wild_values_spoil_no_other_row(
    mixture: str, sizes: tuple[int, int, int], isa: str, equal: bool, wild: list[tuple[tuple[int, int], float]]
) -> None:
    values = [value.contiguous() for value in head(mixture, *sizes)]
    if equal:
        values[0].fill_(1.0)
    grad, counters = torch.linspace(-1.0, 1.0, sizes[0]), torch.arange(3 * sizes[0]).view(-1, 3)

    def everything() -> list[Tensor]:
        draws = [native_draw(values, counters, 7, temperature, isa) for temperature in (0.0, 1e-45, 1.0, 1e30)]
        return [native_nll(values, isa), *native_gradients(grad, values, isa), *draws]

    sound = everything()
    spoiled = torch.zeros(sizes[0], dtype=torch.bool)
    for (part, place), value in wild:
        index = place % values[part].numel()
        spoiled[index // values[part][0].numel()] = True
        values[part].view(-1)[index] = value
    got = everything()
    for before, after in zip(sound, got, strict=True):
        assert torch.equal(before[~spoiled], after[~spoiled])
    nll = mdn.mdn_nll(*values)
    assert torch.equal(torch.isfinite(got[0]), torch.isfinite(nll))
    assert torch.equal(torch.isnan(got[0]), torch.isnan(nll))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    **SHAPES,
    planted=st.lists(st.tuples(PLACE, FAR), max_size=6),
    temperature=st.sampled_from([0.0, 1e-45, 1e-30, 1e-3]),
)
def test_cold_draws_are_the_likeliest_components(
    mixture: str, sizes: tuple[int, int, int], isa: str, equal: bool,
    planted: list[tuple[tuple[int, int], float]], temperature: float,
) -> None:  # fmt: skip
    values = [value.contiguous() for value in head(mixture, *sizes)]
    values[0] = values[0].round()  # apart by 1 or equal: no temperature of these leaves a doubt, but between equals
    if equal:
        values[0].fill_(1.0)
    for (part, place), value in planted:
        if part:
            values[part].view(-1)[place % values[part].numel()] = value
    counters = torch.arange(3 * sizes[0]).view(-1, 3)
    got = native_draw(odd_strides(values), counters, 7, temperature, isa)
    logits = values[0].expand(-1, sizes[1], -1)
    if temperature == 0.0:
        assert torch.equal(got, values[1].gather(2, logits.argmax(2, keepdim=True)).squeeze(2))
        return
    # Between equals the numbers decide, but it is one of them, within a few deviations of its mean.
    likeliest = logits == logits.amax(2, keepdim=True)
    reach = 8.0 * temperature**0.5 * values[2].clamp(-LOG_STD_LIMIT, LOG_STD_LIMIT).double().exp()
    near = (got.unsqueeze(2).double() - values[1].double()).abs() <= reach * (1.0 + 2.0**-20) + 2.0**-20
    assert (near & likeliest).any(dim=2).all()
