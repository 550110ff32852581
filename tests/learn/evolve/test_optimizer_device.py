"""The optimiser on the dream's device: nothing of it is left on the CPU, and nothing but the place changes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fleets import PickledFleet
from pretend import DEVICE, pretend_device
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from world import World

from wm_engine import DreamEngine
from wm_engine.bench.evolution import ellipsoid
from wm_engine.cluster import DreamRecipe, FleetEngine
from wm_engine.dream.types import DreamOutput
from wm_engine.learn.base import Problem
from wm_engine.learn.evolution import Evolution, EvolutionSettings
from wm_engine.learn.evolve import (
    BatchedCMAES,
    DreamFitness,
    cmaes,
    make_optimizer,
    restore_optimizer,
)
from wm_engine.learn.evolve.optimizers import choose_optimizer

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda", "mps"))


@pytest.fixture(autouse=True)
def products_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device's products are torch's and the CPU's are NumPy's; to compare bits, both are torch's here."""
    monkeypatch.setattr(cmaes, "_product", lambda left, right, out=None: torch.mm(left, right, out=out))


def climb(optimizer: BatchedCMAES, generations: int) -> BatchedCMAES:
    for _ in range(generations):
        optimizer.tell(-ellipsoid(optimizer.ask().cpu() - 1.0))
    return optimizer


def begun(device: torch.device, variant: str, dimension: int) -> BatchedCMAES:
    return BatchedCMAES(torch.zeros(dimension), 0.5, 6, seed=5, variant=variant, device=device)


@pytest.mark.parametrize("variant", ["full", "separable"])
@pytest.mark.parametrize("dimension", [40, 305])  # the step size has two rules
def test_it_is_the_same_search_wherever_it_lives(variant: str, dimension: int) -> None:
    whole = climb(begun(CPU, variant, dimension), 9)
    with pretend_device() as device:
        there = climb(begun(device, variant, dimension), 5)
        candidates = there.ask()
        assert candidates.device == there.mean.device == device
        tensors, values = there.state()
        assert {tensor.device for tensor in tensors.values()} == {CPU}
        resumed = restore_optimizer(tensors, values)
        assert torch.equal(resumed.ask().cpu(), candidates.cpu())
        assert isinstance(resumed, BatchedCMAES)
        climb(resumed, 4)
        assert torch.equal(resumed.ask().cpu(), whole.ask())
        assert torch.equal(resumed.distribution.factor, whole.distribution.factor)
        assert resumed.sigma == whole.sigma
        moved = restore_optimizer(*climb(begun(CPU, variant, dimension), 5).state(), device)
        assert torch.equal(moved.ask().cpu(), candidates.cpu())
        again = BatchedCMAES(whole.mean, 0.1, 6, variant=variant, factor=whole.distribution.factor, device=device)
        assert again.ask().device == device


@pytest.mark.parametrize("variant", ["full", "separable"])
def test_its_state_lives_on_its_device(variant: str) -> None:
    with pretend_device() as device:
        optimizer = climb(begun(device, variant, 40), 5)
        optimizer.ask()
        parts = {**vars(optimizer), **vars(optimizer._shape)}
        kept = {name: part.device for name, part in parts.items() if isinstance(part, Tensor)}
    assert len(kept) >= 7
    assert set(kept.values()) == {device}


def test_the_waits_for_the_device_do_not_grow() -> None:
    """Each number that the CPU reads is one."""

    class Counted(TorchDispatchMode):
        waits = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Counted.waits += func.name() == "aten::_local_scalar_dense"
            return func(*args, **(kwargs or {}))

    for dimension, popsize in ((305, 8), (305, 400), (12, 400)):
        optimizer = BatchedCMAES(torch.zeros(dimension), 0.5, popsize)
        returns = torch.arange(float(popsize))
        optimizer.ask()
        optimizer.tell(returns)
        Counted.waits = 0
        with Counted():
            optimizer.ask()
            optimizer.tell(returns)
        assert 0 < Counted.waits <= 10


# What 12 candidates and the path have taught, and C has yet to learn: to take away more than there is.
INDEFINITE = {
    "shape.rows": torch.eye(4).repeat(4, 1)[:13].unsqueeze(0),
    "shape.weights": torch.full((1, 13), -3.0, dtype=torch.float64),
    "shape.decay": torch.tensor(1.0, dtype=torch.float64),
}


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"shape.factor": torch.tensor([1.0, 1e-160, 1.0, 1.0], dtype=torch.float64).diag()}, "begins anew"),
        ({"shape.factor": torch.tensor([1.0, 1e-5, 1.0, 1.0]).double().diag()}, ""),  # its steps are float64
        (INDEFINITE, "the covariance stays as it was"),
        ({"shape.stds": torch.tensor([1.0, 1e-150, 1e-150, 1.0], dtype=torch.float64)}, "scales are held"),
    ],
)
def test_a_degenerate_distribution_is_mended_there(
    planted: dict[str, Tensor], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    variant = "separable" if "shape.stds" in planted else "full"
    with pretend_device() as device, caplog.at_level(logging.WARNING):
        tensors, values = BatchedCMAES(torch.zeros(4), 0.5, 12, variant=variant, device=device).state()
        optimizer = BatchedCMAES.from_state(tensors | planted, values)
        for _ in range(20):
            optimizer.ask()
            optimizer.tell(torch.arange(12.0))
        assert bool(torch.isfinite(optimizer.ask().cpu()).all())
    assert said in caplog.text


@pytest.mark.parametrize("kind", [torch.Tensor.clone, torch.Tensor.numpy, torch.Tensor.tolist, lambda x: x.to(DEVICE)])
def test_returns_of_any_kind_are_told(kind: Callable[[Tensor], Any]) -> None:
    with pretend_device() as device:
        optimizer = begun(device, "full", 8)
        optimizer.ask()
        optimizer.tell(kind(torch.arange(6.0)))
        assert optimizer.last_ranking is not None
        assert optimizer.last_ranking.order.tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("name", "beside", "found"),
    [
        ("auto", CUDA, ("batched", CUDA)),
        ("auto", torch.device("cuda:1"), ("batched", torch.device("cuda:1"))),
        ("auto", CPU, ("batched", CPU)),
        ("batched", CUDA, ("batched", CUDA)),
        ("batched", MPS, ("batched", CPU)),
        ("pycma", CUDA, ("pycma", CPU)),
    ],
)
def test_auto_is_the_dreams_device_where_it_can(
    name: str, beside: torch.device, found: tuple[str, torch.device]
) -> None:
    assert choose_optimizer(name, "auto", beside) == found
    assert choose_optimizer(name, "cpu", beside) == (found[0], CPU)


def test_a_device_that_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wm_engine.checks.device_counts", lambda: {"cpu": 1, "cuda": 1, "mps": 1})
    for device, message in (
        ("toaster", r"device must be one that is here \(cpu, cuda:0, mps\), but was 'toaster'"),
        ("cuda:1", r"device must be one that is here \(cpu, cuda:0, mps\), but was 'cuda:1'"),
        ("mps", "device must know float64, but was 'mps'"),
    ):
        with pytest.raises(ValueError, match=message):
            BatchedCMAES(torch.zeros(4), 0.5, 8, device=device)
        with pytest.raises(ValueError, match=message):
            make_optimizer("batched", torch.zeros(4), 0.5, 8, device=device)
    with pytest.raises(ValueError, match="device must be 'cpu' for 'pycma' but was 'cuda'; 'batched' can live there"):
        choose_optimizer("pycma", "cuda")


class Elsewhere:
    """An engine on the pretended device: takes candidates there alone, and leaves its output there."""

    backend, device = "torch", DEVICE

    def __init__(self, world: World) -> None:
        self._engine = DreamEngine(world.m, world.spec, backend="torch")

    def rollout(self, params: Tensor, starts: Any, **plan: Any) -> DreamOutput:
        assert params.device == DEVICE
        output = self._engine.rollout(params.cpu(), starts, **plan)
        return DreamOutput(*(part.to(DEVICE) for part in (output.returns, output.lengths, output.failed)))


def train(world: World, engine: Any, race: int = 0, **changes: Any) -> Evolution:
    """An evolution of four generations, its dreams on an engine, beside which its optimiser lives."""
    plain = {"population": 24, "dream_generations": 4, "dream_episodes": 8, "dream_race": race, "dream_steps": 12}
    settings = EvolutionSettings(**(plain | {"optimizer": "batched", "done": "sample"} | changes))
    learner = Evolution(settings, world.spec, "predicted", 5, engine.device)
    for _ in learner.learn(problem_of(world, engine), 0):
        pass
    return learner


def problem_of(world: World, engine: Any) -> Problem:
    return Problem(0, 1, world.m, world.starts, lambda spec: engine)


def bits(learner: Evolution) -> dict[str, Any]:
    """All that was learnt, but for where."""
    tensors, values = learner.state()
    values = {name: value for name, value in values["optimizer"].items() if name != "device"}
    return {name: tensor.cpu().tolist() for name, tensor in tensors.items()} | values


@pytest.mark.parametrize("race", [0, 2])
def test_an_evolution_beside_a_dream_elsewhere(race: int) -> None:
    world = World(starts=6)
    here = DreamEngine(world.m, world.spec, backend="torch")
    want = bits(train(world, here, race))
    with pretend_device() as device:
        there = train(world, Elsewhere(world), race)
        assert there._optimizer.mean.device == device
        assert bits(there) == want
        begun = train(world, Elsewhere(world), race, dream_generations=2)
        settings = there.settings
        resumed = Evolution(settings, world.spec, "predicted", 5, device)
        resumed.load_state(*begun.state())
        assert resumed._optimizer.mean.device == device
        assert len(list(resumed.learn(problem_of(world, Elsewhere(world)), 2))) == 2
        assert bits(resumed) == want
        # What it gives is on the CPU, for whoever drives.
        assert there.policy().params.device == CPU


def test_an_evolution_with_its_optimiser_away_from_the_dream() -> None:
    world = World(starts=6)
    here, there = DreamEngine(world.m, world.spec, backend="torch"), Elsewhere(world)
    want = bits(train(world, here))
    with pretend_device():
        assert bits(train(world, here, optimizer_device="lazy")) == want
        assert bits(train(world, there, optimizer_device="cpu")) == want


def test_candidates_for_the_road_are_on_the_cpu() -> None:
    world = World(starts=6)
    want = train(world, DreamEngine(world.m, world.spec, backend="torch")).candidates(5, 3)
    with pretend_device():
        found = train(world, Elsewhere(world)).candidates(5, 3)
        assert found.params.device == CPU
        assert torch.equal(found.params, want.params)


def test_a_fleets_driver_keeps_the_optimiser_where_it_would_dream() -> None:
    world = World(candidates=7, starts=4)
    plan: dict[str, Any] = {"episodes": 4, "max_steps": 12, "seed": 7, "done": "sample"}
    want = DreamEngine(world.m, world.spec, backend="torch").rollout(world.params, world.starts, **plan)
    recipe = DreamRecipe(world.m, world.spec, "cpu", "torch", "fp32")
    assert FleetEngine(recipe, PickledFleet(2)).device == CPU
    with pretend_device() as device:
        engine = FleetEngine(recipe, PickledFleet(2), device)
        output = engine.rollout(world.params.to(device), world.starts, **plan)
        assert output.returns.device == DreamFitness(engine, world.starts).device == device
        assert torch.equal(output.returns.cpu(), want.returns)
