"""Rank correlation against hand-worked examples and the closed formula; the mix of controllers; the measurement."""

import json
import math

import numpy as np
import pytest
import torch

from wm_engine.judge.dream_real_correlation import (
    AROUND_BEST,
    EARLIER,
    RANDOM,
    average_ranks,
    controller_mix,
    correlation_scalars,
    dream_real_correlation,
    spearman,
)


def test_ties_share_the_mean_of_their_ranks():
    assert average_ranks([3.0, 5.0, 5.0, 1.0]).tolist() == [2.0, 3.5, 3.5, 1.0]
    assert average_ranks([7.0, 7.0, 7.0]).tolist() == [2.0, 2.0, 2.0]
    assert average_ranks([-np.inf, 0.0, np.inf]).tolist() == [1.0, 2.0, 3.0]


def test_spearman_of_worked_examples():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 400]) == 1.0
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == -1.0
    # Ranks (1, 2, 3, 4, 5) and (5, 3, 1, 4, 2): the squared differences sum to 16 + 1 + 4 + 0 + 9 = 30.
    assert spearman([10, 20, 30, 40, 50], [9, 6, 1, 7, 5]) == pytest.approx(1 - 6 * 30 / (5 * 24))
    # With a tie, ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4): covariance 4.5, variances 4.5 and 5.
    assert spearman([0, 1, 1, 2], [0, 1, 2, 3]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@pytest.mark.parametrize("seed", range(5))
def test_spearman_without_ties_equals_the_closed_formula(seed):
    generator = np.random.default_rng(seed)
    x, y = generator.permutation(31), generator.permutation(31)
    differences = (x - y).astype(float)
    expected = 1 - 6 * (differences**2).sum() / (31 * (31**2 - 1))
    assert spearman(np.exp(x / 10), y**3) == pytest.approx(expected)


def test_spearman_of_a_constant_is_undefined():
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [([1, 2], [1, 2, 3], "same length"), ([1], [1], "at least 2"), ([1, float("nan")], [1, 2], "NaN")],
)
def test_spearman_refuses_what_has_no_answer(x, y, message):
    with pytest.raises(ValueError, match=message):
        spearman(x, y)


def test_the_mix_holds_every_kind():
    best, earlier = torch.full((10,), 5.0), torch.arange(200.0).reshape(20, 10)
    mix = controller_mix(best, earlier, count=48, sigma=0.1)
    assert mix.params.shape == (48, 10)
    assert mix.params.dtype == torch.float32
    assert {name: mix.groups.count(name) for name in mix.groups} == {RANDOM: 16, AROUND_BEST: 24, EARLIER: 8}
    assert torch.equal(mix.params[16], best)
    assert mix.params[:16].abs().max() < 1.0
    spread = [(mix.params[17 + i :: 3][:7] - best).std().item() for i in range(3)]
    assert spread[2] < spread[0] < spread[1], "distances 0.5, 1.0, 0.25 in this order after the best itself"
    assert torch.equal(mix.params[40], earlier[0])
    assert torch.equal(mix.params[47], earlier[19])


def test_without_earlier_winners_their_places_go_to_neighbours_of_the_best():
    mix = controller_mix(torch.zeros(4), None, count=48)
    assert mix.groups.count(AROUND_BEST) == 32
    assert len(set(map(tuple, mix.params.tolist()))) == 48


def test_the_mix_refuses_other_shapes():
    with pytest.raises(ValueError, match="earlier must have shape"):
        controller_mix(torch.zeros(4), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="distances"):
        controller_mix(torch.zeros(4), None, distances=())


def _truth(params, generation):
    return params.sum(1, keepdim=True) + torch.tensor([[0.0, 1.0, 2.0, 3.0]])


def test_a_perfect_dream_scores_one_and_an_inverted_one_minus_one():
    mix = controller_mix(torch.ones(6), torch.ones(8, 6) * torch.arange(8)[:, None], seed=1)
    perfect = dream_real_correlation(lambda p, g: 2 * _truth(p, g) + 1, _truth, mix, resamples=200)
    assert perfect["rho"] == perfect["low"] == perfect["high"] == 1.0
    assert perfect["real_of_dream_best"] == perfect["real_best"]
    assert perfect["real_reliability"] == pytest.approx(1.0)
    assert dream_real_correlation(lambda p, g: -_truth(p, g), _truth, mix, resamples=200)["rho"] == -1.0


def test_an_unrelated_dream_scores_about_nothing():
    mix = controller_mix(torch.ones(6), None, count=200, seed=1)
    generator = torch.Generator().manual_seed(0)
    result = dream_real_correlation(lambda p, g: torch.randn(200, 3, generator=generator), _truth, mix, resamples=400)
    assert result["low"] < 0 < result["high"]
    assert result["high"] - result["low"] == pytest.approx(4 / math.sqrt(200), rel=0.3)


def test_telling_the_clouds_apart_is_not_ordering_the_neighbours():
    # The dream sees which cloud a controller comes from and nothing within it.
    mix = controller_mix(torch.full((8,), 3.0), None, count=60, sigma=0.1)
    result = dream_real_correlation(lambda p, g: p.sum(1, keepdim=True).div(24).round(), _truth, mix, resamples=200)
    assert result["rho"] > 0.75
    assert math.isnan(result["groups"][AROUND_BEST]["rho"])


def test_a_failed_controller_ranks_worst_and_is_counted():
    mix = controller_mix(torch.ones(3), None, count=12)

    def dream(params, generation):
        returns = _truth(params, generation).clone()
        returns[4, 2] = float("nan")
        return returns

    result = dream_real_correlation(dream, _truth, mix, resamples=100)
    assert result["dream_failed"] == 1
    assert result["real_failed"] == 0
    assert result["dream"][4] is None
    expected = [-np.inf if value is None else value for value in result["dream"]]
    assert result["rho"] == spearman(expected, result["real"])


def test_the_result_is_plain_json_and_repeats():
    mix = controller_mix(torch.ones(3), torch.zeros(1, 3), count=12)
    noise = torch.randn(12, 2, generator=torch.Generator().manual_seed(3))
    first, second = (dream_real_correlation(lambda p, g: noise, _truth, mix, resamples=100, seed=7) for _ in range(2))
    assert json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    scalars = correlation_scalars(first)
    assert scalars["rho"] == first["rho"]
    assert "around_the_best_rho" in scalars
    assert correlation_scalars(first | {"rho": None})["rho"] is None


def test_a_fitness_of_another_shape_is_refused():
    mix = controller_mix(torch.ones(3), None, count=12)
    with pytest.raises(ValueError, match=r"real must return a tensor \[12, E\]"):
        dream_real_correlation(_truth, lambda p, g: torch.zeros(3, 4), mix)
