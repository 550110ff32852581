"""Calibration in a world whose rule is known: what a perfect model promises is what the road paid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from checker import check
from models.drift import Drift

from wm_engine.data.sequences import EncodedEpisode
from wm_engine.judge.calibration import calibrate

WALL = 5.0


class ByLane:
    """In lane i always moves by ``steps[i]``."""

    features = "z"

    def __init__(self, steps):
        self.steps = torch.tensor(steps, dtype=torch.float32)

    def act(self, features, lanes):
        return self.steps[lanes].unsqueeze(1)


def driven(step, most, begin=0.0, price=1.0, bonus=0.0, wall=WALL):
    """An episode of the known world: constant steps to the right, up to the wall or a limit."""
    places, terminated = [begin], False
    while len(places) <= most and not terminated:
        places.append(places[-1] + step)
        terminated = places[-1] > wall
    mu = torch.tensor(places).unsqueeze(1).expand(-1, 2).contiguous()
    count = len(places) - 1
    actions = torch.full((count, 1), step)
    return EncodedEpisode(mu, torch.full_like(mu, -300.0), actions, price * actions[:, 0] + bonus, terminated)


def calibrated(world, steps, episodes, horizon=6, starts=100, **options):
    plain = {"temperature": 1.0, "seed": 3}
    return calibrate(world, ByLane(steps), episodes, horizon=horizon, starts=starts, **(plain | options))


STEPS = [0.25, 0.5, 1.0, 0.125]
EPISODES = [driven(step, 40) for step in STEPS]


def test_a_perfect_model_promises_what_is_paid():
    assert [episode.terminated for episode in EPISODES] == [True, True, True, False]
    found = calibrated(Drift(wall=WALL), STEPS, EPISODES, horizon=30)
    assert found.horizons[0] == 1
    assert found.horizons[-1] == 30
    assert (np.diff(found.horizons) > 0).all()
    assert found.starts == sum(episode.steps for episode in EPISODES[:3]) + (40 - 30 + 1)
    assert np.array_equal(found.promised, found.paid)
    assert found.paid[0] > 0
    assert (np.diff(found.paid) > 0).all()


def test_the_sums_are_over_the_next_decisions_of_every_start():
    found = calibrated(Drift(), STEPS, EPISODES, horizon=8)
    wanted = []
    for length in found.horizons:
        sums = []
        for episode in EPISODES:
            last = episode.steps if episode.terminated else episode.steps - 8 + 1
            sums += [float(episode.rewards[start : start + length].double().sum()) for start in range(last)]
        wanted.append(np.mean(sums))
    check("paid", found.paid, np.array(wanted), precision="fp64")


def test_a_reward_that_is_promised_too_high_shows_by_how_much():
    plain, shifted = (calibrated(Drift(bonus=bonus), STEPS[3:], EPISODES[3:]) for bonus in (0.0, 0.75))
    assert np.array_equal(shifted.paid, plain.paid)
    check("shift", shifted.promised - shifted.paid, 0.75 * plain.horizons, precision="fp64")


def test_a_price_that_is_promised_too_high_shows_by_what_factor():
    plain, double = (calibrated(Drift(wall=WALL, price=price), STEPS, EPISODES) for price in (1.0, 2.0))
    check("factor", double.promised, 2.0 * plain.paid, precision="fp64")


def test_an_end_that_the_model_misses_is_promised_beyond():
    """The road pays nothing after an end; a dream that goes on promises more, but over one step."""
    blind, seeing = (calibrated(Drift(wall=wall), STEPS[:3], EPISODES[:3]) for wall in (1e9, WALL))
    assert np.array_equal(seeing.promised, seeing.paid)
    assert np.array_equal(blind.paid, seeing.paid)
    assert blind.promised[0] == blind.paid[0]
    assert (blind.promised[1:] > blind.paid[1:]).all()


@pytest.mark.parametrize("steps", [3, 6, 7, 11])
def test_an_episode_that_a_limit_cut_is_never_used_beyond_its_end(steps):
    """What it would have paid nobody knows: only states with the whole horizon behind them count."""
    cut = driven(0.5, steps, wall=1e9)
    assert not cut.terminated
    found = calibrated(Drift(), [0.5], [cut], horizon=6)
    if steps < 6:
        assert found is None
    else:
        assert found.starts == steps - 6 + 1
        assert np.array_equal(found.paid, 0.5 * found.horizons)
        assert np.array_equal(found.promised, found.paid)


def test_an_episode_that_ended_for_good_is_used_to_its_end():
    short = driven(1.0, 40, begin=3.0)
    assert (short.steps, short.terminated) == (3, True)
    found = calibrated(Drift(wall=WALL), [1.0], [short], horizon=6)
    assert found.starts == 3
    assert found.paid[0] == 1.0
    assert found.paid[-1] == (3 + 2 + 1) / 3
    assert np.array_equal(found.promised, found.paid)


def test_episodes_that_are_all_too_short_say_nothing():
    assert calibrated(Drift(), [0.5], [driven(0.5, 5, wall=1e9)], horizon=6) is None


@pytest.mark.parametrize("starts", [1, 4, 1000])
def test_each_episode_gives_so_many_starts_at_most(starts):
    found = calibrated(Drift(wall=WALL), STEPS, EPISODES, horizon=6, starts=starts)
    there = [episode.steps if episode.terminated else episode.steps - 5 for episode in EPISODES]
    assert found.starts == sum(min(starts, count) for count in there)
    assert np.array_equal(found.promised, found.paid)


def test_each_lane_is_dreamt_by_the_policy_that_drove_there():
    """Were lanes mixed up, episodes of different steps would promise each other's."""
    order = [2, 0, 3, 1]
    found = calibrated(Drift(wall=WALL), [STEPS[index] for index in order], [EPISODES[index] for index in order])
    assert np.array_equal(found.promised, found.paid)
    mixed = calibrated(Drift(wall=WALL), STEPS, [EPISODES[index] for index in order])
    assert not np.array_equal(mixed.promised, mixed.paid)


def test_survival_is_worth_1_a_step():
    found = calibrated(Drift(wall=WALL), STEPS[:1], EPISODES[:1], horizon=6, survival=True)
    assert np.array_equal(found.promised, found.paid)
    assert found.paid[0] == 1.0
    steps = EPISODES[0].steps
    assert found.paid[-1] == np.mean([min(6, steps - start) for start in range(steps)])


def test_the_rank_is_that_of_promises_beside_whole_returns():
    """Who moves faster is promised more; what the road paid for it as a whole is another thing here."""
    steps = [0.25, 0.5, 0.125, 0.75]
    alike = [driven(step, 20, wall=1e9) for step in steps]
    assert calibrated(Drift(), steps, alike).rank == 1.0
    against = [driven(step, 20, price=1.0 / step**2, wall=1e9) for step in steps]
    assert calibrated(Drift(), steps, against).rank == -1.0
    # Of four ranks two neighbours change places: 1 - 6 * 2 / (4 * 15).
    longer = [driven(step, 50 if step == 0.25 else 20, wall=1e9) for step in steps]
    assert [float(episode.rewards.sum()) for episode in longer] == [12.5, 10.0, 2.5, 15.0]
    check("rank", np.array(calibrated(Drift(), steps, longer).rank), np.array(0.8), precision="fp64")


def test_fewer_than_three_episodes_have_no_rank():
    assert math.isnan(calibrated(Drift(wall=WALL), STEPS[:2], EPISODES[:2]).rank)
    assert not math.isnan(calibrated(Drift(wall=WALL), STEPS[:3], EPISODES[:3]).rank)
    short = [*EPISODES[:2], driven(0.5, 5, wall=1e9)]
    assert math.isnan(calibrated(Drift(wall=WALL), [*STEPS[:2], 0.5], short).rank), (
        "one that gives no start does not count"
    )


def test_a_dream_that_is_not_finite_has_no_rank_and_stops_nothing():
    found = calibrated(Drift(bonus=math.inf), STEPS, EPISODES)
    assert not np.isfinite(found.promised).any()
    assert np.isfinite(found.paid).all()
    assert math.isnan(found.rank)


def test_equal_seeds_say_the_same():
    world = Drift(spread=0.5, wall=WALL)
    one, same, other = (calibrated(world, STEPS, EPISODES, starts=4, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(one.promised, same.promised)
    assert np.array_equal(one.paid, same.paid)
    assert not np.array_equal(one.promised, other.promised)


def test_states_are_burnt_in_over_what_came_before():
    """This model counts its steps in h, and here the policy acts on it."""
    seen = []

    class Counting:
        features = "h"

        def act(self, features, lanes):
            seen.append(features[:, 0].tolist())
            return torch.full((len(lanes), 1), 0.5)

    calibrate(Drift(hidden=1), Counting(), [driven(0.5, 9, wall=1e9)], horizon=3, starts=100, temperature=1.0, seed=0)
    assert seen == [[float(start + ahead) for start in range(7)] for ahead in range(3)]
