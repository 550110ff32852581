"""The checker must catch what it is for: a planted error of each kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checker import FLOORS, check


@pytest.fixture
def reference() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(7, 5))


def test_equal_and_rounded_results_pass(reference: np.ndarray) -> None:
    check("equal", reference, reference, precision="fp64")
    check("rounded", torch.from_numpy(reference).float(), reference)
    check("as good as torch", reference + 1e-4, reference, peer=reference + 0.6e-4)


@pytest.mark.parametrize("planted", [np.nan, np.inf, -np.inf, 1.0, 1e-4])
def test_one_wrong_entry_is_caught(reference: np.ndarray, planted: float) -> None:
    wrong = reference.copy()
    wrong[3, 2] += planted
    with pytest.raises(AssertionError, match=r"1 of 35 entries off(.|\n)*\(3, 2\)"):
        check("planted", wrong, reference, peer=torch.from_numpy(reference).float())


def test_a_wrong_sign_order_or_shape_is_caught(reference: np.ndarray) -> None:
    for wrong in (-reference, reference[::-1], np.roll(reference, 1, axis=1)):
        with pytest.raises(AssertionError, match="entries off"):
            check("planted", wrong, reference)
    with pytest.raises(AssertionError, match="shape"):
        check("planted", reference.T, reference)


def test_an_error_beyond_twice_torchs_is_caught(reference: np.ndarray) -> None:
    with pytest.raises(AssertionError, match="entries off"):
        check("planted", reference + 3e-3, reference, peer=reference + 1e-4)


def test_a_missing_nan_or_infinity_is_caught(reference: np.ndarray) -> None:
    for special in (np.nan, np.inf):
        other = reference.copy()
        other[0, 0] = special
        check("same special", other, other)
        with pytest.raises(AssertionError, match="entries off"):
            check("planted", reference, other)


def test_a_broken_yardstick_is_refused(reference: np.ndarray) -> None:
    with pytest.raises(AssertionError, match="yardstick"):
        check("planted", reference, reference, peer=np.full_like(reference, np.nan))


def test_floors_are_a_few_units_in_the_last_place() -> None:
    assert FLOORS["fp32"] <= 4 * torch.finfo(torch.float32).eps
    assert FLOORS["fp64"] <= 1e-6 * FLOORS["fp32"]
    assert FLOORS["bf16"] <= 4 * torch.finfo(torch.bfloat16).eps
