"""A dream that is shared out is the dream of one engine, to the bit."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from fleets import PickledFleet
from toys.world_model import LinearWorld
from world import World

from wm_engine import ControllerSpec, DreamEngine, Starts
from wm_engine.bench.cluster import Terms, traffic
from wm_engine.bench.workload import Workload, prepare
from wm_engine.cluster import DreamRecipe, FleetEngine
from wm_engine.dream import engine as dream_engine
from wm_engine.dream.cpp_backend import CppBackend
from wm_engine.dream.torch_backend import TorchBackend
from wm_engine.errors import MissingDependencyError
from wm_engine.learn.evolve import DreamFitness

PLAN: dict[str, Any] = {"episodes": 4, "max_steps": 12, "seed": 7, "done": "sample"}
BACKENDS = ["torch", pytest.param("cpp", marks=pytest.mark.skipif(not CppBackend.available()[0], reason="not built"))]


@pytest.fixture(scope="module")
def world() -> World:
    return World(candidates=11, starts=6)


def shared_out(world: World, backend: str, workers: int) -> tuple[FleetEngine, PickledFleet]:
    fleet = PickledFleet(workers)
    return FleetEngine(DreamRecipe(world.m, world.spec, "cpu", backend, "fp32"), fleet), fleet


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workers", [1, 2, 3, 20])
@pytest.mark.parametrize("common", [True, False])
def test_any_number_of_workers_dreams_the_same(world: World, backend: str, workers: int, common: bool) -> None:
    plan = PLAN | {"common_random_numbers": common, "record": True, "first_candidate": 5}
    whole = DreamEngine(world.m, world.spec, backend=backend).rollout(world.params, world.starts, **plan)
    engine, fleet = shared_out(world, backend, workers)
    shared = engine.rollout(world.params, world.starts, **plan)
    for name, value in vars(whole).items():
        assert torch.equal(getattr(shared, name), value), name
    assert fleet.tasks == [min(workers, 11)]


def test_an_engine_is_built_once_a_worker(world: World) -> None:
    engine, fleet = shared_out(world, "torch", 2)
    for seed in range(3):
        engine.rollout(world.params, world.starts, **(PLAN | {"seed": seed}))
    assert fleet.built == 2


def test_the_fitness_is_the_same_and_counts_the_same_steps(world: World) -> None:
    options: dict[str, Any] = {"episodes": 4, "max_steps": 12, "done": "sample", "seed": 3}
    alone = DreamFitness(DreamEngine(world.m, world.spec, backend="torch"), world.starts, **options)
    engine, _ = shared_out(world, "torch", 3)
    together = DreamFitness(engine, world.starts, **options)
    for generation in range(2):
        assert torch.equal(together(world.params, generation), alone(world.params, generation))
    assert together.steps == alone.steps > 0


def test_a_shard_travels_alone(world: World) -> None:
    """What is pickled is the shard's rows, not the whole population behind them."""
    sizes = []

    class Weighing(PickledFleet):
        def map(self, recipe: Any, tasks: Any) -> Any:
            sizes.extend(task["params"].untyped_storage().nbytes() for task in tasks)
            return super().map(recipe, tasks)

    FleetEngine(DreamRecipe(world.m, world.spec, "cpu", "torch", "fp32"), Weighing(11)).rollout(
        world.params, world.starts, **PLAN
    )
    assert sizes == [4 * world.spec.num_params] * 11


def test_shards_know_the_whole_populations_size(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU chooses its form by it, and another form has other last bits."""
    seen = []
    dream = TorchBackend.rollout

    def watched(self: TorchBackend, params: Any, starts: Any, plan: Any) -> Any:
        seen.append((len(params), plan.population))
        return dream(self, params, starts, plan)

    monkeypatch.setattr(TorchBackend, "rollout", watched)
    engine, _ = shared_out(world, "torch", 2)
    engine.rollout(world.params, world.starts, **PLAN)
    engine.rollout(world.params, world.starts, **PLAN | {"population": 40, "first_candidate": 20})
    assert seen == [(5, 44), (6, 44), (5, 160), (6, 160)]
    with pytest.raises(ValueError, match="population must be at least 1"):
        engine.rollout(world.params, world.starts, **PLAN | {"population": 0})


def test_a_worker_without_the_backend_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = dream_engine.BACKENDS
    monkeypatch.setattr(dream_engine, "BACKENDS", (replace(first, missing=lambda: "not built"), *others))
    with pytest.raises(MissingDependencyError, match="on a worker: backend 'cpp' is not available here: not built"):
        shared_out(world, "cpp", 1)[0].rollout(world.params, world.starts, **PLAN)


def test_bad_arguments_are_named(world: World) -> None:
    engine, _ = shared_out(world, "torch", 2)
    with pytest.raises(ValueError, match="params must have shape"):
        engine.rollout(world.params[:, 1:], world.starts, **PLAN)
    with pytest.raises(ValueError, match="episodes"):
        engine.rollout(world.params, world.starts, **(PLAN | {"episodes": 0}))


def test_what_travels_is_what_the_formula_says() -> None:
    """Pickled tasks and answers are the formula's bytes, and less than a few thousand more for names and shapes."""
    work = Workload(candidates=64, episodes=16, steps=2)
    setup = prepare(work)
    sizes = {"out": 0, "back": 0}

    class Weighing(PickledFleet):
        def map(self, recipe: Any, tasks: Any) -> Any:
            sizes["out"] += sum(len(pickle.dumps(task)) for task in tasks)
            for answer in super().map(recipe, tasks):
                sizes["back"] += len(pickle.dumps(answer))
                yield answer

    starts = Starts(*(part[:16] for part in (setup.starts.z, torch.zeros(16, 256), torch.zeros(16, 256))))
    recipe = DreamRecipe(setup.m, setup.spec, "cpu", "torch", "fp32")
    FleetEngine(recipe, Weighing(4)).rollout(setup.params, starts, episodes=16, max_steps=2)
    out, back = traffic(work, setup.spec.num_params, 4)
    assert out <= sizes["out"] <= out + 4 * 4096
    assert back <= sizes["back"] <= back + 4 * 4096


def test_the_model_of_a_generation() -> None:
    terms = Terms(optimizer=1.0, steps=100.0, rate=10.0, per_task=0.5, bandwidth=1e30)
    assert terms.seconds(1, Workload(), 867) == pytest.approx(1.0 + 10.0 + 0.5)
    assert terms.seconds(5, Workload(), 867) == pytest.approx(1.0 + 2.0 + 2.5)


def test_a_world_model_of_another_kind_is_dreamt_too() -> None:
    """One without a hidden state, which torch alone dreams."""
    torch.manual_seed(0)
    world, spec = LinearWorld(2, 3), ControllerSpec(2, 1, 3, "z", "argmax")
    for value in world.state_dict().values():
        value.copy_(0.3 * torch.randn(value.shape))
    params, starts = torch.randn(7, spec.num_params), Starts(torch.randn(4, 2))
    whole = DreamEngine(world, spec).rollout(params, starts, **PLAN)
    shared = FleetEngine(DreamRecipe(world, spec, "cpu", "torch", "fp32"), PickledFleet(3))
    assert torch.equal(shared.rollout(params, starts, **PLAN).returns, whole.returns)
    assert len(whole.returns.unique()) > 1


def test_a_recipe_keeps_the_weights_that_it_was_made_with(world: World) -> None:
    """Workers build it late: a model that learns on meanwhile must not reach them."""
    m = copy.deepcopy(world.m)
    engine = FleetEngine(DreamRecipe(m, world.spec, "cpu", "torch", "fp32"), PickledFleet(2))
    before = DreamEngine(m, world.spec, backend="torch").rollout(world.params, world.starts, **PLAN)
    with torch.no_grad():
        m.head.bias.add_(1.0)
    assert torch.equal(engine.rollout(world.params, world.starts, **PLAN).returns, before.returns)
