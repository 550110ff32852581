"""Student's intervals: closed forms at few degrees of freedom, the normal's at many."""

import math

import numpy as np
import pytest
from checker import check

from wm_engine.judge.intervals import student_interval, student_quantile


def test_quantiles_of_one_and_two_degrees_of_freedom_have_closed_forms():
    p = 0.95
    want = [math.tan(0.5 * math.pi * p), p * math.sqrt(2.0 / (1.0 - p * p))]
    check("quantiles", np.array([student_quantile(1), student_quantile(2)]), np.array(want), precision="fp32")


def test_quantiles_fall_towards_the_normal_s():
    quantiles = [student_quantile(n) for n in (1, 2, 3, 5, 10, 100, 1000)]
    assert quantiles == sorted(quantiles, reverse=True)
    assert 1.9599 < quantiles[-1] < 1.9630


def test_an_interval_is_around_the_mean_and_one_value_has_none():
    found = student_interval([1.0, 2.0, 6.0])
    half = student_quantile(2) * math.sqrt(7.0 / 3.0)
    check("interval", np.array([found.mean, found.low, found.high]), np.array([3.0, 3.0 - half, 3.0 + half]))
    single = student_interval([4.0])
    assert (single.mean, single.low, single.high) == (4.0, None, None)
    with pytest.raises(ValueError, match="at least one number"):
        student_interval([])
