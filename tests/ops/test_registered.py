"""The registered operators: to the references, to autograd and to torch's own checks of an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bad_heads
import numpy as np
import pytest
import torch
from checker import check
from oracle import Oracle
from torch import Tensor

from wm_engine.core import core
from wm_engine.ops import mdn, registered
from wm_engine.ops.mdn import HeadLayout

CORE, REASON = core()
MIXTURES = ["shared", "per_dim"]


def parts(
    mixture: str, batch: int, latent: int, mixtures: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, ...]:
    """Logits, means, log_stds, as views of a head, drawn in float64."""
    layout = HeadLayout(latent, mixtures, mixture)
    whole = torch.randn(batch, layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    head = layout.split(whole.to(dtype))
    return head.logits, head.means, head.log_stds


@pytest.mark.parametrize("mixture", MIXTURES)
def test_nll_is_the_references_at_any_leading_shape(mixture: str) -> None:
    rows = parts(mixture, 6, 5, 3)
    target = torch.randn(6, 5, dtype=torch.float64)
    want = mdn.mdn_nll(*rows, target)
    got = registered.mdn_nll(*(part.unflatten(0, (2, 3)) for part in rows), target.unflatten(0, (2, 3)))
    assert torch.equal(got, want.unflatten(0, (2, 3)))


@pytest.mark.parametrize("mixture", MIXTURES)
def test_nll_gradient(mixture: str) -> None:
    """The formulas in torch and the registration with autograd; float64 never enters the C++ code (the next test)."""
    inputs = [part.detach().requires_grad_() for part in parts(mixture, 3, 4, 2)]
    target = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(registered.mdn_nll, (*inputs, target))


@pytest.mark.skipif(CORE is None, reason=REASON or "built")
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("sizes", [(3, 4, 2), (5, 33, 5), (2, 7, 17)])
def test_nll_gradient_of_the_core(mixture: str, sizes: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 through autograd and the C++ code, against finite differences of the float64 reference's loss."""
    rows = parts(mixture, *sizes)
    target = torch.randn(*sizes[:2], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weight = torch.randn(sizes[0], dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    single = [value.float() for value in (*rows, target)]
    exact = [value.double() for value in single]  # the same numbers, so that only the arithmetic differs
    weights = weight.float()

    assert CORE is not None
    entered, backward = [], CORE.mdn_nll_backward

    def counted(*arguments: Any, **options: Any) -> None:
        entered.append(arguments)
        backward(*arguments, **options)

    monkeypatch.setattr(CORE, "mdn_nll_backward", counted)
    got = gradients(registered.mdn_nll, single, weights)
    assert len(entered) == 1
    peers = gradients(mdn.mdn_nll, single, weights)
    for name, value, peer, at in zip(("logits", "means", "log_stds", "target"), got, peers, range(4), strict=True):
        check(name, value, differences(exact, weights.double(), at), peer)


def gradients(function: Callable[..., Tensor], inputs: list[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    """Of the weighted sum of the losses, to every input."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    return torch.autograd.grad((function(*leaves) * weights).sum(), leaves)


def differences(inputs: list[Tensor], weights: Tensor, at: int) -> Tensor:
    """The same gradient to ``inputs[at]`` in float64: central differences of two steps, extrapolated (Richardson).

    With h = 2^-12 they miss the float64 gradient by 1e-11 at most (a larger h truncates more, a smaller one rounds
    more), far below float32's 6e-8: the checker judges the gradient, not the differences.
    """
    row = torch.arange(len(weights))

    def slope(column: int, h: float) -> Tensor:
        # Losses of rows are independent: one column of all rows is moved at once.
        ends = []
        for step in (h, -h):
            moved = inputs[at].flatten(1).clone()
            moved[row, column] += step
            there = [*inputs[:at], moved.view_as(inputs[at]), *inputs[at + 1 :]]
            ends.append(mdn.mdn_nll(*there))
        return (ends[0] - ends[1]) / (2 * h)

    columns = range(inputs[at][0].numel())
    h = 2.0**-12
    slopes = torch.stack([(4 * slope(i, h / 2) - slope(i, h)) / 3 for i in columns], dim=1)
    return (weights[:, None] * slopes).view_as(inputs[at])


@pytest.mark.parametrize("mixture", MIXTURES)
def test_gradient_of_the_clamp_is_the_references(mixture: str) -> None:
    target = torch.randn(4, 3, dtype=torch.float64)
    gradients = []
    for function in (mdn.mdn_nll, registered.mdn_nll):
        logits, means, log_stds = (part.detach().clone().requires_grad_() for part in parts(mixture, 4, 3, 2))
        (scaled := log_stds * 8.0).retain_grad()
        function(logits, means, scaled, target).sum().backward()
        assert (scaled.detach().abs() > mdn.LOG_STD_LIMIT).any()
        gradients.append((logits.grad, means.grad, scaled.grad))
    for name, want, got in zip(("logits", "means", "log_stds"), *gradients, strict=True):
        check(name, got, want, precision="fp64")


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("seed", [3, (1 << 64) - 5])
def test_sample_is_the_oracles(mixture: str, temperature: float, seed: int) -> None:
    Z, K = 6, 3
    layout, oracle = HeadLayout(Z, K, mixture), Oracle({}, Z, 1, 1, K, mixture, "z", "tanh")
    raw = torch.randn(20, layout.size, dtype=torch.float64)
    head = layout.split(raw)
    counters = torch.randint(0, 1 << 32, (20, 3))
    got = registered.mdn_sample(head.logits, head.means, head.log_stds, counters, seed, temperature)
    draws = [oracle.draws(seed, *row) for row in counters.tolist()]
    want = [oracle.sample(raw[i].numpy(), draws[i][0], draws[i][1], temperature) for i in range(20)]
    check("z", got, np.stack(want), precision="fp64")


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("views", [True, False])
def test_torch_finds_nothing_wrong_with_the_operators(mixture: str, dtype: torch.dtype, views: bool) -> None:
    """Views of a head, as M makes them, too: what comes back must lie in memory as the shapes' function says."""
    rows = parts(mixture, 3, 6, 3, dtype)
    rows = rows if views else tuple(part.contiguous() for part in rows)
    assert all(part.is_contiguous() != views for part in rows[1:])
    target = torch.randn(3, 6, dtype=dtype)
    differentiable = tuple(value.detach().requires_grad_() for value in (*rows, target))
    torch.library.opcheck(torch.ops.wm_engine.mdn_nll, differentiable)
    torch.library.opcheck(torch.ops.wm_engine.mdn_nll_backward, (torch.randn(3, dtype=dtype), *rows, target))
    torch.library.opcheck(torch.ops.wm_engine.mdn_sample, (*rows, torch.randint(0, 9, (3, 3)), 1, 0.8))


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_operators_are_taken_into_compiled_functions_whole(mixture: str, dtype: torch.dtype) -> None:
    # fullgraph: whatever cannot be traced is an error. The backend leaves out the code that it would take long to make.
    rows = [part.to(dtype).detach() for part in parts(mixture, 5, 4, 3)]
    target = torch.randn(5, 4, dtype=dtype)
    counters = torch.randint(0, 9, (5, 3))

    def step(
        logits: Tensor, means: Tensor, log_stds: Tensor, target: Tensor, counters: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss = registered.mdn_nll(logits * 1.5, means, log_stds, target).mean()
        return loss, registered.mdn_sample(logits.detach(), means.detach(), log_stds.detach(), counters, 7, 0.8)

    whole = torch.compile(step, fullgraph=True, backend="aot_eager")
    for batch in (5, 3):  # the second is compiled for any batch
        results = []
        for function in (step, whole):
            leaves = [part[:batch].clone().requires_grad_() for part in rows]
            loss, z = function(*leaves, target[:batch], counters[:batch])
            results.append([loss.detach(), z.detach(), *torch.autograd.grad(loss, leaves)])
        for plain, compiled in zip(*results, strict=True):
            assert torch.equal(plain, compiled)


def test_bad_seeds_and_temperatures_are_named() -> None:
    rows = parts("shared", 2, 3, 2)
    counters = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\*\*64\), but was -1"):
        registered.mdn_sample(*rows, counters, -1, 1.0)
    with pytest.raises(ValueError, match="temperature must be finite and at least 0, but was nan"):
        registered.mdn_sample(*rows, counters, 1, float("nan"))
    with pytest.raises(ValueError, match=r"temperature must be at most 3\.4028235e\+38, but was 1e\+39"):
        registered.mdn_sample(*rows, counters, 1, 1e39)


@pytest.mark.parametrize("implementation", ["core", "reference", "shapes alone"])
@pytest.mark.parametrize(("operator", "name", "change", "error", "message"), bad_heads.CASES)
def test_what_does_not_fit_together_is_named(
    implementation: str, operator: str, name: str, change: Callable, error: type[Exception], message: str
) -> None:
    dtype = torch.float64 if implementation == "reference" else torch.float32
    arguments = bad_heads.sound(operator, dtype, torch.device("meta" if implementation == "shapes alone" else "cpu"))
    call = getattr(torch.ops.wm_engine, operator)
    call(**arguments)
    arguments[name] = change(arguments[name])
    with pytest.raises(error, match=message):
        call(**arguments)


def test_leading_shapes_that_differ_are_named() -> None:
    parts = [part.unflatten(0, (2, 4)) for part in list(bad_heads.sound("mdn_nll").values())]
    assert registered.mdn_nll(*parts).shape == (2, 4)
    with pytest.raises(ValueError, match=r"target must have shape \[2, 4, 4\], but had \[4, 2, 4\]"):
        registered.mdn_nll(*parts[:3], parts[3].view(4, 2, 4))
    with pytest.raises(
        ValueError, match=r"logits must have shape \[2, 4, 1, 5\] or \[2, 4, 4, 5\], but had \[8, 4, 5\]"
    ):
        registered.mdn_nll(parts[0].flatten(0, 1), *parts[1:])
    with pytest.raises(ValueError, match=r"means must have shape \[\.\.\., Z, K\], but had \[5\]"):
        registered.mdn_nll(parts[0], parts[1][0, 0, 0], *parts[2:])
    with pytest.raises(TypeError, match=r"target must be torch\.float32, as means is, but was torch\.float64"):
        registered.mdn_nll(*parts[:3], parts[3].double())
