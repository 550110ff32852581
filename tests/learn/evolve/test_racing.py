"""Races: who stops, what is filled in, and that neither follows from anything but the returns."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from fleets import PickledFleet
from torch import Tensor
from world import World

from wm_engine import DreamEngine
from wm_engine.cluster import DreamRecipe, FleetEngine
from wm_engine.learn.evolve import DreamFitness
from wm_engine.learn.evolve.racing import Race, race_rounds


@pytest.mark.parametrize(
    ("episodes", "first", "ends"),
    [(16, 2, [2, 4, 8, 16]), (16, 5, [5, 10, 16]), (3, 2, [2, 3])],
)
def test_rounds_double_what_was_dreamt(episodes: int, first: int, ends: list[int]) -> None:
    rounds = race_rounds(episodes, first)
    assert [part.stop for part in rounds] == ends
    assert [part.start for part in rounds] == [0, *ends[:-1]]


def test_one_episode_is_no_first_round() -> None:
    with pytest.raises(ValueError, match="first must be at least 2"):
        race_rounds(4, 1)


@pytest.mark.parametrize(("episodes", "first"), [(2, 2), (2, 8), (1, 2)])
def test_a_race_that_races_nothing_is_refused(world: World, episodes: int, first: int) -> None:
    with pytest.raises(ValueError, match=rf"first must be less than episodes \({episodes}\).*but was {first}"):
        race_rounds(episodes, first)
    with pytest.raises(ValueError, match="nothing is raced"):
        DreamFitness(DreamEngine(world.m, world.spec, backend="torch"), world.starts, episodes=episodes, race=first)


def returns(worth: Tensor, episodes: int, noise: float, spread: float = 5.0) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shared = spread * torch.randn(episodes, generator=generator)
    return worth.unsqueeze(1) + shared + noise * torch.randn(len(worth), episodes, generator=generator)


def finished(worth: Tensor, episodes: int, noise: float) -> tuple[Race, list[int]]:
    """A race to its end over the rows of a full table, and how many dreamt in each round."""
    table, race, running, counts = returns(worth, episodes, noise), Race(len(worth), episodes), None, []
    running = torch.arange(len(worth))
    for part in race_rounds(episodes, 2):
        counts.append(len(running))
        race.add(running, table[running, part.start : part.stop])
        running = race.unclear()
        if not len(running):
            break
    return race, counts


def test_an_effect_that_all_share_keeps_nobody_running() -> None:
    """Without noise of their own the ranks are known at once, however much the episodes differ."""
    worth = torch.randperm(40, generator=torch.Generator().manual_seed(0)).float()
    race, counts = finished(worth, 16, noise=1e-3)
    assert counts == [40]
    assert torch.equal(race.result().mean(dim=1).argsort(), worth.argsort())


def test_noise_keeps_the_unclear_running() -> None:
    _, counts = finished(torch.linspace(0.0, 1.0, 100), 16, noise=3.0)
    assert counts[0] == 100
    assert len(counts) >= 3
    assert all(later < earlier for earlier, later in pairwise(counts))


def test_the_best_run_longest() -> None:
    """Ranks 1 and 2 weigh as differently as 20 and 40: among equal gaps and noise, it is the best that go on."""
    worth = torch.linspace(0.0, 40.0, 400)
    table, race = returns(worth, 8, noise=20.0), Race(400, 8)
    race.add(torch.arange(400), table[:, :4])
    running = race.unclear()
    assert 0 < len(running) < 200
    stopped = torch.ones(400, dtype=torch.bool)
    stopped[running] = False
    assert worth[running].mean() > worth[stopped].mean()


@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0])
def test_ranks_are_bounded_pair_by_pair(noise: float) -> None:
    """Who is unclear after a second round, by the definition; with equals, failures, and some that stopped earlier."""
    worth = torch.arange(60.0).div(3).floor()
    table, race = returns(worth, 8, noise), Race(60, 8)
    table[::7] = torch.nan
    race.add(torch.arange(60), table[:, :4])
    running = race.unclear() if noise else torch.arange(30)
    race.add(running, table[running, 4:])

    dreamt = {number: race._returns[number] - race._effect for number in range(60) if number % 7}
    dreamt = {number: left[torch.isfinite(left)] for number, left in dreamt.items()}
    variances = {number: float(left.var()) for number, left in dreamt.items()}
    shared = sum(variances.values()) / len(variances)
    ends = {}
    for number, left in dreamt.items():
        error = 0.5 * ((variances[number] + shared) / 2 / len(left)) ** 0.5
        ends[number] = (float(race._worth[number]) - error, float(race._worth[number]) + error)
    unclear = []
    for number, (low, high) in ends.items():
        best = 1 + sum(other > high for other, _ in ends.values())
        worst = len(ends) - sum(other < low for _, other in ends.values())
        if number in running and math.log(worst / best) > 0.5 * math.log(60):
            unclear.append(number)
    assert race.unclear().tolist() == unclear


def test_what_was_not_dreamt_is_filled_with_worth_and_effect() -> None:
    worth = torch.tensor([1.0, 2.0, 3.0, 4.0])
    table = returns(worth, 6, noise=0.0)
    race = Race(4, 6)
    race.add(torch.arange(4), table[:, :2])
    race.add(torch.tensor([1, 3]), table[[1, 3], 2:])
    assert torch.allclose(race.result(), table, atol=torch.finfo(torch.float32).eps * 32)


def test_a_candidate_that_fails_leaves_the_race_and_nobody_notices() -> None:
    worth = torch.linspace(0.0, 3.0, 6)
    table = returns(worth, 8, noise=2.0)
    sound, broken = Race(6, 8), Race(7, 8)
    with_failure = torch.cat([table, torch.full((1, 8), torch.nan)])
    sound.add(torch.arange(6), table[:, :4])
    broken.add(torch.arange(7), with_failure[:, :4])
    assert torch.equal(broken.result()[:6], sound.result())
    assert torch.isnan(broken.result()[6]).all()
    assert 6 not in broken.unclear()
    broken.add(broken.unclear(), torch.full((len(broken.unclear()), 4), torch.inf))
    assert not len(broken.unclear())


def test_all_failed() -> None:
    race = Race(3, 4)
    race.add(torch.arange(3), torch.full((3, 2), torch.nan))
    assert not len(race.unclear())
    assert torch.isnan(race.result()).all()


@pytest.fixture(scope="module")
def world() -> World:
    return World(candidates=13, starts=6)


OPTIONS: dict[str, Any] = {"episodes": 8, "max_steps": 12, "done": "sample", "seed": 3}


def test_a_raced_generation_takes_fewer_steps_and_can_be_repeated(world: World) -> None:
    engine = DreamEngine(world.m, world.spec, backend="torch")
    full, raced = (DreamFitness(engine, world.starts, **OPTIONS, race=race) for race in (0, 2))
    full(world.params, 0)
    first = raced(world.params, 0)
    assert first.shape == (13, 8)
    assert first.dtype == torch.float32
    assert 0 < raced.steps < full.steps
    again = DreamFitness(engine, world.starts, **OPTIONS, race=2)
    again(world.params, 5)
    assert torch.equal(again(world.params, 0), first)
    assert full.dreamt is None
    assert raced.dreamt is not None
    assert raced.dreamt[:, :2].all()
    assert not raced.dreamt.all(), "some stopped early"
    effect = (first - torch.where(raced.dreamt, first, torch.nan).nanmean(dim=1, keepdim=True))[~raced.dreamt]
    assert torch.isfinite(effect).all()


def test_exact_ties_dream_all_rounds() -> None:
    """Nothing tells them apart, so no place is clear, however many episodes there are."""
    race, table = Race(64, 8), returns(torch.zeros(64), 8, noise=0.0)
    for part in race_rounds(8, 2):
        race.add(torch.arange(64), table[:, part.start : part.stop])
        assert len(race.unclear()) == 64


def test_a_race_on_any_number_of_workers_is_the_same(world: World) -> None:
    engine = DreamEngine(world.m, world.spec, backend="torch")
    alone = DreamFitness(engine, world.starts, **OPTIONS, race=2)
    want = [alone(world.params, generation) for generation in range(3)]
    for workers in (1, 3, 20):
        shared_out = FleetEngine(DreamRecipe(world.m, world.spec, "cpu", "torch", "fp32"), PickledFleet(workers))
        shared = DreamFitness(shared_out, world.starts, **OPTIONS, race=2)
        assert all(torch.equal(shared(world.params, generation), want[generation]) for generation in range(3))
        assert shared.steps == alone.steps
