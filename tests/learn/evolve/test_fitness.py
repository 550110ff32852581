"""The fitnesses: common draws within a generation, fresh ones in the next, and the same ones when asked again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from wm_engine.dream import DreamEngine, Starts
from wm_engine.learn.base import Problem
from wm_engine.learn.evolve.fitness import DreamFitness, RealFitness, ThinnedDreams
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.policies.controller import Controllers, ControllerSpec
from wm_engine.rng import derive_seed, episode_seeds

SPEC = ControllerSpec(latent=4, hidden=6, action=2, features="zh", squash="tanh")


@pytest.fixture(scope="module")
def engine() -> DreamEngine:
    torch.manual_seed(0)
    m = MDNRNN(latent=4, action=2, hidden=6, mixtures=3, mixture="per_dim")
    return DreamEngine(m, SPEC, backend="torch")


@pytest.fixture(scope="module")
def starts() -> Starts:
    generator = torch.Generator().manual_seed(1)
    states = (torch.randn(10, size, generator=generator) for size in (4, 6, 6))
    return Starts(*states)


def population(count: int) -> Tensor:
    return torch.randn(count, SPEC.num_params, generator=torch.Generator().manual_seed(2))


def dream(engine: DreamEngine, starts: Starts, **options: int) -> DreamFitness:
    return DreamFitness(engine, starts, **({"episodes": 3, "max_steps": 12, "seed": 5} | options))  # type: ignore[arg-type]


def test_the_dream_gives_a_return_for_each_candidate_and_episode(engine: DreamEngine, starts: Starts) -> None:
    returns = dream(engine, starts)(population(5), 0)
    assert returns.shape == (5, 3)
    assert returns.dtype == torch.float32


def test_all_candidates_of_a_generation_meet_the_same_draws(engine: DreamEngine, starts: Starts) -> None:
    twins = population(1).repeat(5, 1)
    returns = dream(engine, starts)(twins, 3)
    assert torch.equal(returns, returns[:1].expand(5, 3))
    assert len(returns[0].unique()) == 3


def test_draws_are_fresh_in_each_generation_and_seed(engine: DreamEngine, starts: Starts) -> None:
    params, fitness = population(2), dream(engine, starts)
    draws = [fitness(params, generation) for generation in range(4)]
    draws += [dream(engine, starts, seed=6)(params, 0)]
    assert len({tuple(returns.flatten().tolist()) for returns in draws}) == len(draws)


def test_asked_again_it_answers_the_same(engine: DreamEngine, starts: Starts) -> None:
    params = population(4)
    first, second = dream(engine, starts), dream(engine, starts)
    second(params, 8)
    assert torch.equal(first(params, 2), second(params, 2))


def test_generations_dream_from_different_starts(engine: DreamEngine) -> None:
    """With one episode and starts that decide everything, the returns tell which start was used."""
    marked = Starts(10.0 * torch.arange(8.0)[:, None].expand(8, 4))
    fitness = dream(engine, marked, episodes=1, max_steps=1)  # one step's reward follows from its start alone
    seen = {float(fitness(population(1), generation)) for generation in range(60)}
    assert len(seen) == 8


def test_fewer_starts_than_episodes_are_used_in_turn(engine: DreamEngine, starts: Starts) -> None:
    assert dream(engine, Starts(starts.z[:2]), episodes=5)(population(2), 0).shape == (2, 5)


def test_dream_steps_are_counted(engine: DreamEngine, starts: Starts) -> None:
    fitness = dream(engine, starts)
    fitness(population(5), 0)
    assert 5 * 3 <= fitness.steps <= 5 * 3 * 12


class Road:
    """A real environment in which an episode is worth its seed and its controller's first bias, ten frames each."""

    def __init__(self, lanes: int = 100) -> None:
        self.frames, self._lanes = 70, lanes
        self.calls: list[tuple[list[int], int, int]] = []

    def returns(
        self, policy: Callable[[np.ndarray], Controllers], seeds: list[int], max_frames: int, patience: int
    ) -> np.ndarray:
        self.calls.append((seeds, max_frames, patience))
        found = []
        for first in range(0, len(seeds), self._lanes):
            numbers = np.arange(first, min(first + self._lanes, len(seeds)))
            driving = policy(numbers)
            biases = driving.params[driving.candidate][:, -SPEC.action]
            found.append(biases + torch.tensor([seeds[number] % 1000 for number in numbers]))
            assert len(driving.params) <= len(numbers), "a batch carries its own candidates only"
            self.frames += 10 * len(numbers)
        return torch.cat(found).numpy().astype(np.float32)


def test_real_returns_of_each_candidate_on_each_seed() -> None:
    road, params = Road(), population(4)
    fitness = RealFitness(road, SPEC, episodes=3, max_frames=80, patience=7, seed=5)
    returns = fitness(params, 2)
    own = episode_seeds(derive_seed(5, "tracks", 2), 3)
    assert returns.shape == (4, 3)
    assert returns.dtype == torch.float32
    offsets = torch.tensor([seed % 1000 for seed in own])
    assert torch.equal(returns, params[:, -SPEC.action].unsqueeze(1) + offsets)
    assert road.calls == [(own * 4, 80, 7)]


@pytest.mark.parametrize("lanes", [1, 2, 5, 7])
def test_any_number_of_lanes_gives_the_same_returns(lanes: int) -> None:
    params = population(4)
    want = RealFitness(Road(), SPEC, episodes=3, seed=5)(params, 0)
    assert torch.equal(RealFitness(Road(lanes), SPEC, episodes=3, seed=5)(params, 0), want)


def test_real_episodes_are_fresh_in_each_generation_and_seed_and_the_same_when_asked_again() -> None:
    params, fitness = population(2), RealFitness(Road(), SPEC, episodes=2, seed=5)
    draws = [fitness(params, generation) for generation in range(3)]
    draws.append(RealFitness(Road(), SPEC, episodes=2, seed=6)(params, 0))
    assert len({tuple(returns.flatten().tolist()) for returns in draws}) == len(draws)
    assert torch.equal(fitness(params, 1), draws[1])


def test_frames_are_counted_from_where_it_began() -> None:
    road = Road()
    first = RealFitness(road, SPEC, episodes=2)
    assert first.steps == 0
    first(population(3), 0)
    assert first.steps == 60
    second = RealFitness(road, SPEC, episodes=2)
    assert second.steps == 0
    second(population(1), 0)
    assert (first.steps, second.steps) == (80, 20)


def test_a_candidate_that_gives_no_action_has_no_return() -> None:
    params = population(3)
    params[1] = torch.nan
    returns = RealFitness(Road(), SPEC, episodes=2)(params, 0)
    assert torch.isnan(returns[1]).all()
    assert torch.isfinite(returns[[0, 2]]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"max_frames": 0}, "max_frames must be at least 1"),
        ({"patience": -1}, "patience must be at least 0"),
    ],
)
def test_impossible_real_episodes_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RealFitness(Road(), SPEC, **options)


def test_an_early_end_is_paid_what_the_setting_says(starts: Starts) -> None:
    m = MDNRNN(latent=4, action=2, hidden=6, mixtures=3)
    with torch.no_grad():
        m.head.bias[-1] = 9.0  # every dream ends with its first step
    ending = DreamEngine(m, SPEC, backend="torch")
    plain, paid = (dream(ending, starts, end_reward=reward)(population(2), 0) for reward in (0.0, -100.0))  # type: ignore[arg-type]
    assert torch.equal(paid, plain - 100.0)


def test_thinned_dreams_share_out_masks_alike_among_candidates(engine: DreamEngine, starts: Starts) -> None:
    torch.manual_seed(0)
    m = MDNRNN(latent=4, action=2, hidden=6, mixtures=3).eval()

    def make(spec: ControllerSpec, world: MDNRNN) -> DreamEngine:
        return DreamEngine(world, spec, backend="torch")

    problem = Problem(0, 0, m, starts, make)
    thinned = ThinnedDreams(engine, problem, SPEC, 0.5, masks=2)
    assert (thinned.backend, thinned.device) == (engine.backend, engine.device)
    fitness = dream(thinned, starts, episodes=5)  # type: ignore[arg-type]
    twins = fitness(population(1).repeat(3, 1), 0)
    assert twins.shape == (3, 5)
    assert torch.equal(twins, twins[:1].expand(3, 5))
    assert torch.equal(fitness(population(1), 0), twins[:1])
    assert not torch.equal(fitness(population(1), 1), twins[:1])
