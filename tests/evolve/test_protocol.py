"""The ranking and the seeds that every optimiser and fitness share."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from wm_engine.evolve import BatchedCMAES, PycmaES, restore_optimizer
from wm_engine.evolve.protocol import Distribution, derive_seed, rank


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


def test_seeds_follow_the_documented_hash_and_differ() -> None:
    first_bytes = hashlib.sha256(b"1/dream/7").digest()[:8]
    assert derive_seed(1, "dream", 7) == int.from_bytes(first_bytes, "big") // 2
    seeds = {derive_seed(seed, kind, g) for seed in range(3) for kind in ("dream", "tracks") for g in range(100)}
    assert len(seeds) == 600
    assert all(0 <= seed < 2**63 for seed in seeds)


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


@pytest.mark.parametrize("kind", [PycmaES, BatchedCMAES])
@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (torch.eye(4), r"factor must have shape \[3\] or \[3, 3\], but had \[4, 4\]"),
        (torch.ones(3, 3), "lower triangular"),
        (torch.tensor([1.0, 0.0, 1.0]), "a diagonal above 0"),
        (torch.tensor([1.0, torch.nan, 1.0]), "finite"),
    ],
)
def test_a_factor_that_is_none_is_named(kind: Any, factor: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(torch.zeros(3), 0.1, 8, factor=factor)


def test_a_diagonal_search_begins_with_a_diagonal() -> None:
    stds = torch.tensor([1.0, 2.0, 3.0])
    search = BatchedCMAES(torch.zeros(3), 0.1, 8, variant="separable", factor=stds)
    assert torch.equal(search.distribution.factor, stds.double())
    with pytest.raises(ValueError, match=r"shape \[3\], but had \[3, 3\]"):
        BatchedCMAES(torch.zeros(3), 0.1, 8, variant="separable", factor=torch.eye(3))
