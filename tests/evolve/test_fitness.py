"""The fitnesses: common luck within a generation, fresh luck in the next, and the same luck when asked again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wm_engine.controller import ControllerSpec
from wm_engine.dream import DreamEngine, Starts
from wm_engine.envs import EnvSettings
from wm_engine.evolve.fitness import CHOOSE, SCORE, DreamFitness, RealFitness
from wm_engine.memory.model import MDNRNN
from wm_engine.rollouts import RolloutStore
from wm_engine.vision.model import VAE

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


def test_all_candidates_of_a_generation_meet_the_same_luck(engine: DreamEngine, starts: Starts) -> None:
    twins = population(1).repeat(5, 1)
    returns = dream(engine, starts)(twins, 3)
    assert torch.equal(returns, returns[:1].expand(5, 3))
    assert len(returns[0].unique()) == 3


def test_luck_is_fresh_in_each_generation_stream_and_seed(engine: DreamEngine, starts: Starts) -> None:
    params, fitness = population(2), dream(engine, starts)
    draws = [fitness(params, generation) for generation in range(4)]
    draws += [fitness.fresh(params, 3, stream) for stream in (CHOOSE, SCORE)]
    draws += [dream(engine, starts, seed=6)(params, 0)]
    assert len({tuple(returns.flatten().tolist()) for returns in draws}) == len(draws)


def test_asked_again_it_answers_the_same(engine: DreamEngine, starts: Starts) -> None:
    params = population(4)
    first, second = dream(engine, starts), dream(engine, starts)
    second(params, 8)
    assert torch.equal(first(params, 2), second(params, 2))
    assert torch.equal(first.fresh(params, 6, CHOOSE), second.fresh(params, 6, CHOOSE))


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


@pytest.fixture(scope="module")
def parts() -> tuple[VAE, MDNRNN, ControllerSpec]:
    torch.manual_seed(0)
    spec = ControllerSpec(latent=4, hidden=6, action=3, features="zh", squash=("tanh", "sigmoid", "sigmoid"))
    return VAE(4), MDNRNN(latent=4, action=3, hidden=6, mixtures=3, mixture="per_dim"), spec


def real(parts: tuple[VAE, MDNRNN, ControllerSpec], **options: Any) -> RealFitness:
    return RealFitness(EnvSettings(), *parts, **({"episodes": 2, "max_steps": 12, "lanes": 5, "seed": 5} | options))


def drivers(parts: tuple[VAE, MDNRNN, ControllerSpec], count: int) -> Tensor:
    """Controllers that differ in how they steer, most of them with the foot on the gas."""
    params = 0.5 * torch.randn(count, parts[2].num_params, generator=torch.Generator().manual_seed(3))
    params[:, -2:] = torch.tensor([2.0, -4.0])
    return params


def test_real_returns_of_each_candidate_on_each_track(parts: tuple[VAE, MDNRNN, ControllerSpec]) -> None:
    fitness = real(parts)
    returns = fitness(drivers(parts, 4), 0)
    assert returns.shape == (4, 2)
    assert fitness.steps == 4 * 2 * 12
    twins = fitness(drivers(parts, 1).repeat(4, 1), 1)
    assert torch.equal(twins, twins[:1].expand(4, 2))
    assert twins[0, 0] != twins[0, 1]
    fitness.close()


def test_real_luck_is_fresh_in_each_generation_and_the_same_when_asked_again(
    parts: tuple[VAE, MDNRNN, ControllerSpec],
) -> None:
    params, fitness = drivers(parts, 2), real(parts, max_steps=20)
    draws = [fitness(params, generation) for generation in range(2)]
    draws += [fitness.fresh(params, 2, stream) for stream in (CHOOSE, SCORE)]
    assert len({tuple(returns.flatten().tolist()) for returns in draws}) == len(draws)
    assert torch.equal(fitness(params, 1), draws[1])
    assert torch.equal(real(parts, max_steps=20)(params, 1), draws[1])


def test_patience_ends_lost_causes_but_not_finals(parts: tuple[VAE, MDNRNN, ControllerSpec]) -> None:
    params = drivers(parts, 2)
    params[:, -2:] = torch.tensor([-9.0, 9.0])  # brakes: no tile is reached after the first steps
    fitness = real(parts, max_steps=40, patience=5, final_steps=20)
    fitness(params, 0)
    assert fitness.steps < 2 * 2 * 20
    fitness.steps = 0
    fitness.fresh(params, 2, SCORE)
    assert fitness.steps == 2 * 2 * 20


def test_a_candidate_that_gives_no_action_has_no_return(parts: tuple[VAE, MDNRNN, ControllerSpec]) -> None:
    params = drivers(parts, 3)
    params[1] = torch.nan
    returns = real(parts)(params, 0)
    assert torch.isnan(returns[1]).all()
    assert torch.isfinite(returns[[0, 2]]).all()


def test_stored_episodes_are_complete_and_never_stored_twice(
    parts: tuple[VAE, MDNRNN, ControllerSpec], tmp_path: Path
) -> None:
    """A run that was cut in the middle of generation 1 leaves the same store as one that was not."""
    params = drivers(parts, 4)

    def fitness(name: str) -> RealFitness:
        return real(parts, store=RolloutStore.open(tmp_path / name), store_episodes=6, iteration=2)

    whole = fitness("whole")
    returns = [whole(params, generation) for generation in range(2)]
    cut = fitness("cut")
    cut(params, 0)
    cut(params, 1)
    RolloutStore.open(tmp_path / "cut").keep(8)
    fitness("cut")(params, 1)
    fitness("cut")(params, 1)

    stores = [RolloutStore.open(tmp_path / name) for name in ("whole", "cut")]
    assert [len(store) for store in stores] == [12, 12]
    for index in range(12):
        ours, theirs = (store.read(index) for store in stores)
        assert np.array_equal(ours.frames, theirs.frames)
        assert np.array_equal(ours.actions, theirs.actions)
        assert (ours.policy, ours.iteration, ours.seed) == ("evolve", 2, theirs.seed)
    totals = [stores[0].info(index).total_reward for index in range(12)]
    expected = torch.cat([generation.flatten()[:6] for generation in returns])
    assert np.allclose(totals, expected.numpy(), rtol=1e-6)


def test_it_starts_wider_environments_when_a_call_needs_them(parts: tuple[VAE, MDNRNN, ControllerSpec]) -> None:
    fitness = real(parts, lanes=8)
    narrow = fitness(drivers(parts, 1), 0)
    wide = fitness(drivers(parts, 4), 0)
    assert wide.shape == (4, 2)
    assert torch.allclose(narrow[0], wide[0], rtol=1e-4)
