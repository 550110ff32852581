"""The ranking that every optimiser shares, and their states."""

from __future__ import annotations

import inspect
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from wm_engine.errors import CorruptFileError
from wm_engine.learn.evolve import BatchedCMAES, PycmaES, restore_optimizer
from wm_engine.learn.evolve.protocol import Distribution, rank


def test_greater_is_better() -> None:
    assert rank([1.0, 3.0, 2.0, -5.0], 4, seed=0, generation=0).order.tolist() == [1, 2, 0, 3]


def test_nonfinite_returns_rank_worst_and_are_counted() -> None:
    ranking = rank([np.nan, 1.0, np.inf, -np.inf, 2.0, -1e300], 6, seed=0, generation=0)
    assert ranking.order[:3].tolist() == [4, 1, 5]
    assert set(ranking.order[3:].tolist()) == {0, 2, 3}
    assert ranking.nonfinite == 3
    assert not ranking.flat


def test_any_kind_of_vector_ranks_alike() -> None:
    plain = [0.5, -1.0, 2.0, 0.0]
    orders = [rank(kind(plain), 4, 0, 0).order.tolist() for kind in (list, tuple, np.array, torch.tensor)]
    assert orders == [[2, 0, 3, 1]] * 4


def test_ties_fall_at_random_but_the_same_way_each_time() -> None:
    flat = [rank(np.ones(8), 8, seed=3, generation=g) for g in range(400)]
    assert all(ranking.flat for ranking in flat)
    # Each candidate's mean place is 3.5 with a standard error of sqrt(21/4)/20 = 0.11 over 400 generations.
    places = np.mean([np.argsort(ranking.order) for ranking in flat], axis=0)
    assert np.all(np.abs(places - 3.5) < 5 * 0.115)
    assert np.array_equal(rank(np.ones(8), 8, 3, 7).order, flat[7].order)


@pytest.mark.parametrize("returns", [[1.0, 2.0], np.ones((4, 1)), torch.ones(5), 1.0])
def test_wrong_shapes_are_errors(returns: object) -> None:
    with pytest.raises(ValueError, match=r"returns must have shape \[4\]"):
        rank(returns, 4, 0, 0)  # type: ignore[arg-type]


def test_no_numbers_are_an_error() -> None:
    with pytest.raises(TypeError, match="returns must be 2 numbers"):
        rank(["a", "b"], 2, 0, 0)  # type: ignore[list-item]


@pytest.mark.parametrize(
    "returns",
    [
        ["1", "2"],
        [None, 1.0],
        [1j, 2.0],
        [True, False],
        np.array(["1", "2"]),
        np.array([1.0, None]),
        np.ones(2, np.complex128),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, dtype=torch.bool),
        [[1.0], [1.0, 2.0]],
        [10**400, 1],
    ],
)
def test_what_is_no_vector_of_numbers_is_an_error(returns: Any) -> None:
    with pytest.raises(TypeError, match="returns must be 2 numbers, but were"):
        rank(returns, 2, 0, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.uint8])
def test_tensors_of_any_real_dtype_are_ranked(dtype: torch.dtype) -> None:
    assert rank(torch.tensor([3, 1, 2], dtype=dtype), 3, 0, 0).order.tolist() == [0, 2, 1]


def test_numbers_of_any_kind_are_ranked() -> None:
    assert rank([Fraction(1, 3), 2, 10**30], 3, 0, 0).order.tolist() == [2, 1, 0]
    assert rank([torch.tensor(1.0), torch.tensor(2.0)], 2, 0, 0).order.tolist() == [1, 0]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("returns", "flat"),
    [([1.0, 1.0, 1.0], True), ([np.nan] * 3, True), ([1.0, np.nan, 1.0], True), ([1.0, np.nan, 2.0], False)],
)
def test_a_ranking_is_flat_where_no_finite_returns_differ(returns: list[float], flat: bool) -> None:
    assert rank(returns, 3, 0, 0).flat is flat


@pytest.mark.parametrize("kind", [PycmaES, BatchedCMAES])
@pytest.mark.parametrize("x0", [["1", "2"], [1j, 1.0], torch.ones(3, dtype=torch.complex64), "abc", None])
def test_a_first_mean_of_no_numbers_is_named(kind: Any, x0: Any) -> None:
    with pytest.raises(TypeError, match="x0 must be D numbers, but was"):
        kind(x0, 0.1, 8)


@pytest.mark.parametrize("kind", [PycmaES, BatchedCMAES])
def test_a_first_mean_in_bfloat16_is_taken(kind: Any) -> None:
    assert kind(torch.full((3,), 0.5, dtype=torch.bfloat16), 0.1, 8).mean.tolist() == [0.5] * 3


@pytest.mark.parametrize("kind", [PycmaES, BatchedCMAES])
@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        (1e39, r"sigma must be at most 1e\+30, but was 1e\+39"),
        (1e-310, "sigma must be greater than 0, at least 1e-30, but was 1e-310"),
        (float("inf"), "sigma must be finite"),
    ],
)
def test_a_step_size_that_no_search_can_begin_with_is_named(kind: Any, sigma: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(torch.zeros(3), sigma, 8)


@pytest.mark.parametrize("kind", [PycmaES, BatchedCMAES])
@pytest.mark.parametrize("sigma", [1e-30, 1e-12, 1e12])
def test_at_the_ends_of_the_step_sizes_a_search_goes_on(kind: Any, sigma: float) -> None:
    search = kind(torch.zeros(3), sigma, 8)
    for _ in range(20):
        search.tell(-(search.ask().float() / sigma - 1.0).square().sum(dim=1))
    assert torch.isfinite(search.ask().float()).all()


@pytest.mark.parametrize("kind", [PycmaES, BatchedCMAES])
def test_a_new_search_draws_from_an_earlier_ones_distribution(kind: type[PycmaES] | type[BatchedCMAES]) -> None:
    """Mean, scales and correlations: whitened by the earlier distribution, the first candidates are white noise."""
    scales = 10.0 ** torch.arange(4, dtype=torch.float64)
    earlier = kind(torch.ones(4), 0.5, 20, 3)
    for _ in range(25):
        candidates = earlier.ask()
        earlier.tell(-(scales * (candidates + candidates.roll(1, dims=1)) ** 2).sum(dim=1))
    found = Distribution.of(earlier.distribution.tensors())
    assert found.factor is not None
    assert float(found.factor.diagonal().max() / found.factor.diagonal().min()) > 10

    later = kind(found.mean, found.sigma, 4000, 5, factor=found.factor)
    steps = (later.ask() - found.mean).T / found.sigma
    white = torch.linalg.solve_triangular(found.factor, steps, upper=False)
    error = white @ white.T / 4000 - torch.eye(4, dtype=torch.float64)
    assert float(error.abs().max()) < 6 / 4000**0.5  # six standard errors of a correlation


@pytest.mark.parametrize("kind", [PycmaES, BatchedCMAES])
def test_a_search_from_a_distribution_survives_its_state(kind: type[PycmaES] | type[BatchedCMAES]) -> None:
    factor = torch.tensor([[2.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.1, 0.2, 0.3]])
    search = kind(torch.ones(3), 0.2, 8, 1, factor=factor)
    for _ in range(5):
        search.tell(-(search.ask() ** 2).sum(dim=1))
    again = restore_optimizer(*search.state())
    assert torch.equal(again.ask(), search.ask())
    assert torch.equal(again.distribution.mean, search.distribution.mean)


@pytest.mark.usefixtures("threads_kept")
@pytest.mark.parametrize(("kind", "of_ask"), [(PycmaES, "as_float64"), (BatchedCMAES, "derive_seed")])
def test_torchs_threads_rest_while_blas_works(
    kind: type[PycmaES] | type[BatchedCMAES], of_ask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenMP's spin on after each operation, on the CPUs that BLAS's threads wait for."""
    module, seen = inspect.getmodule(kind), {}

    def watch(name: str) -> None:
        called = getattr(module, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            seen[name] = torch.get_num_threads()
            return called(*arguments, **named)

        monkeypatch.setattr(module, name, watched)

    watch(of_ask)
    watch("rank")
    torch.set_num_threads(2)
    optimizer = kind(torch.zeros(4), 0.5, 6)
    optimizer.ask()
    optimizer.tell(torch.arange(6.0))
    assert seen == {of_ask: 1, "rank": 1}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("kind", [PycmaES, BatchedCMAES])
def test_a_state_that_lacks_something_is_corrupt(kind: type[PycmaES] | type[BatchedCMAES]) -> None:
    tensors, values = kind(torch.ones(3), 0.2, 8, 1).state()
    with pytest.raises(CorruptFileError, match=f"of kind '{values['kind']}', lacks 'seed'"):
        restore_optimizer(tensors, {name: value for name, value in values.items() if name != "seed"})
    with pytest.raises(CorruptFileError, match=f"of kind '{values['kind']}', lacks"):
        restore_optimizer({}, {name: values[name] for name in ("kind", "layout") if name in values})
    with pytest.raises(CorruptFileError, match="names kind 'guess'; known are pycma, batched"):
        restore_optimizer(tensors, values | {"kind": "guess"})


@pytest.mark.parametrize("kind", [PycmaES, BatchedCMAES])
@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (torch.eye(4), r"factor must have shape \[3\] or \[3, 3\], but had \[4, 4\]"),
        (torch.ones(3, 3), "lower triangular"),
        (torch.tensor([1.0, 0.0, 1.0]), "a diagonal above 0"),
        (torch.tensor([1.0, torch.nan, 1.0]), "finite"),
        (torch.ones(3, dtype=torch.complex64), "factor must be a floating tensor"),
    ],
)
def test_a_factor_that_is_none_is_named(kind: Any, factor: torch.Tensor, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        kind(torch.zeros(3), 0.1, 8, factor=factor)


def test_a_diagonal_search_begins_with_a_diagonal() -> None:
    stds = torch.tensor([1.0, 2.0, 3.0])
    search = BatchedCMAES(torch.zeros(3), 0.1, 8, variant="separable", factor=stds)
    assert torch.equal(search.distribution.factor, stds.double())
    with pytest.raises(ValueError, match=r"shape \[3\], but had \[3, 3\]"):
        BatchedCMAES(torch.zeros(3), 0.1, 8, variant="separable", factor=torch.eye(3))
