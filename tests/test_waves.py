"""Waves driven by a fleet leave what waves driven here leave: the same returns, the same stores, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fleets import PickledFleet
from toy_env import ToyEnv

from wm_engine import waves
from wm_engine.agent import Agent
from wm_engine.collect import CollectSettings, collect
from wm_engine.controller import ControllerSpec
from wm_engine.envs import EnvSettings
from wm_engine.evaluate import EvaluateSettings, evaluate_agent, evaluate_random
from wm_engine.evolve import RealFitness
from wm_engine.memory.model import MDNRNN
from wm_engine.rollouts import RolloutStore
from wm_engine.vision.model import VAE

ENV = EnvSettings(id="Toy-v0", num_envs=4)


@pytest.fixture(scope="module")
def parts() -> tuple[VAE, MDNRNN, ControllerSpec]:
    torch.manual_seed(0)
    spec = ControllerSpec(latent=4, hidden=6, action=3, features="zh", squash=("tanh", "sigmoid", "sigmoid"))
    return VAE(4), MDNRNN(latent=4, action=3, hidden=6, mixtures=3, mixture="per_dim"), spec


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> list[ToyEnv]:
    made: list[ToyEnv] = []

    def make(settings: EnvSettings, lanes: int, max_steps: int) -> ToyEnv:
        made.append(ToyEnv(lanes, max_steps))
        return made[-1]

    monkeypatch.setattr(waves, "make_env", make)
    return made


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("policy", ["random", "agent"])
def test_a_collection_leaves_the_same_store(tmp_path: Path, toys: Any, parts: Any, policy: str) -> None:
    settings = CollectSettings(policy=policy, episodes=10, max_steps=7, patience=5)

    def store(name: str, fleet: PickledFleet | None) -> dict[str, bytes]:
        agent = Agent(*parts, torch.zeros(1, parts[2].num_params)) if policy == "agent" else None
        opened = RolloutStore.open(tmp_path / name, chunk_steps=3)
        collect(opened, ENV, settings, 5, agent=agent, fleet=fleet)
        return contents(tmp_path / name)

    alone = store("alone", None)
    assert len(alone) > 10
    assert store("two", PickledFleet(2)) == alone
    assert store("five", PickledFleet(5)) == alone


def test_a_population_has_the_same_returns_and_store(tmp_path: Path, toys: Any, parts: Any) -> None:
    params = torch.randn(5, parts[2].num_params, generator=torch.Generator().manual_seed(1))
    params[3] = torch.nan

    def drive(name: str, fleet: PickledFleet | None) -> tuple[list[torch.Tensor], int, dict[str, bytes]]:
        opened = RolloutStore.open(tmp_path / name, chunk_steps=3)
        options: dict[str, Any] = {"episodes": 3, "max_steps": 6, "patience": 4, "lanes": 4, "store_episodes": 7}
        fitness = RealFitness(ENV, *parts, **options, store=opened, fleet=fleet)
        returns = [fitness(params, generation) for generation in range(2)] + [fitness.fresh(params, 2, "final")]
        fitness.close()
        return returns, fitness.steps, contents(tmp_path / name)

    returns, steps, files = drive("alone", None)
    assert torch.isnan(returns[0][3]).all()
    for workers in (1, 3):
        shared, shared_steps, shared_files = drive(str(workers), PickledFleet(workers))
        assert all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(shared, returns, strict=True))
        assert (shared_steps, shared_files) == (steps, files)


def test_a_wave_carries_its_own_candidates_only(toys: Any, parts: Any) -> None:
    rows = []

    class Counting(PickledFleet):
        def map(self, recipe: Any, tasks: Any) -> Any:
            rows.append([len(task.drivers.params) for task in tasks])
            return super().map(recipe, tasks)

    params = torch.zeros(5, parts[2].num_params)
    RealFitness(ENV, *parts, episodes=2, max_steps=3, lanes=4, fleet=Counting(2))(params, 0)
    assert rows == [[2, 2, 1]]


def test_scores_are_the_same(toys: Any, parts: Any) -> None:
    agent = Agent(*parts, torch.randn(2, parts[2].num_params, generator=torch.Generator().manual_seed(4)))
    settings = EvaluateSettings(episodes=10, max_steps=7, seed=3)
    alone = evaluate_agent(agent, ENV, settings, 1), evaluate_random(ENV, settings)
    fleet = PickledFleet(3)
    shared = evaluate_agent(agent, ENV, settings, 1, fleet=fleet), evaluate_random(ENV, settings, fleet=fleet)
    assert fleet.tasks == [3, 3]
    for ours, theirs in zip(shared, alone, strict=True):
        assert ours.returns.tolist() == theirs.returns.tolist()
        assert ours.lengths.tolist() == theirs.lengths.tolist()
