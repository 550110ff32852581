"""What dreams in a round: an engine here or a fleet's, by the backend and the measurements that the run began with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fleets import PickledFleet
from world import World

from wm_engine.cluster import CrossoverRecipe
from wm_engine.core import core
from wm_engine.dream import DreamEngine
from wm_engine.errors import ConfigError, MissingDependencyError, RunMismatchError
from wm_engine.files import read_json
from wm_engine.kernels import MOST
from wm_engine.learn.evolve import DreamFitness
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.policies.controller import ControllerSpec
from wm_engine.run import steps
from wm_engine.run.config import make_config
from wm_engine.run.folder import RunFolder
from wm_engine.run.state import Place
from wm_engine.run.steps import make_dreamer


def state_of(root: Any, world: Any, device: str = "cpu", fleet: Any = None, **dream: Any) -> Any:
    """As much of a loop's state as a dreamer is made from."""
    config = make_config({"dream": dream}, "test")
    return SimpleNamespace(
        config=config, folder=RunFolder(root), world=world, device=torch.device(device), fleet=fleet, place=Place()
    )


def test_the_engine_is_the_one_that_was_asked_for(tmp_path):
    world = World()
    engine = make_dreamer(state_of(tmp_path, world.m, backend="torch"), world.spec)
    assert isinstance(engine, DreamEngine)
    assert (engine.backend, engine.precision, engine.device.type) == ("torch", "fp32", "cpu")
    assert list(tmp_path.iterdir()) == [], "nothing was measured"


def test_what_no_engine_can_do_is_a_configuration_error(tmp_path):
    world = World()
    with pytest.raises(ConfigError, match=r"^dream: no backend dreams in fp7|^dream: precision must be one of"):
        make_dreamer(state_of(tmp_path, world.m, precision="fp7"), world.spec)
    with pytest.raises(ConfigError, match=r"dream\.devices: must be of the kind of device, cpu, but named cuda:1"):
        make_dreamer(state_of(tmp_path, world.m, devices=["cuda:1"]), world.spec)


def test_a_backend_that_is_not_installed_is_a_missing_dependency(tmp_path, monkeypatch):
    def engine(*arguments, **options):
        raise RuntimeError("backend 'triton' is not available here: no GPU")

    monkeypatch.setattr(steps, "DreamEngine", engine)
    world = World()
    with pytest.raises(MissingDependencyError, match=r"dream\.backend: backend 'triton' is not available here"):
        make_dreamer(state_of(tmp_path, world.m, backend="triton"), world.spec)


def test_a_run_keeps_to_the_backend_that_it_was_begun_with(tmp_path):
    world = World()
    state = state_of(tmp_path, world.m, backend="torch")
    make_dreamer(state, world.spec)
    assert state.place.backend == "torch"
    make_dreamer(state, world.spec)
    state.place.backend = "cpp"
    with pytest.raises(RunMismatchError, match="this run has dreamt with 'cpp', and would go on with 'torch'"):
        make_dreamer(state, world.spec)


def test_a_fleets_engine_stands_where_the_driver_would_dream(tmp_path):
    world = World()
    state = state_of(tmp_path, world.m, "cuda:1", PickledFleet(2), backend="torch")
    engine = make_dreamer(state, world.spec)
    assert DreamFitness(engine, world.starts).device == torch.device("cuda", 1)
    assert engine._recipe.backend == "torch"


def test_a_fleet_dreams_as_the_driver_would_alone(tmp_path):
    world = World()
    alone = make_dreamer(state_of(tmp_path, world.m), world.spec)
    shared = make_dreamer(state_of(tmp_path, world.m, fleet=PickledFleet(2)), world.spec)
    assert shared.backend == alone.backend == ("torch" if core()[0] is None else "cpp")
    plan = {"episodes": 3, "max_steps": 5, "temperature": 1.0, "seed": 1, "reward": "predicted", "done": "sample"}
    one, two = (engine.rollout(world.params, world.starts, **plan) for engine in (alone, shared))
    assert torch.equal(one.returns, two.returns)


def gpu_fleet(workers):
    fleet = PickledFleet(workers)
    fleet.device = "cuda"
    return fleet


def test_a_backend_for_workers_of_another_kind_is_chosen_by_name(monkeypatch, tmp_path):
    world = World()
    monkeypatch.setattr(CrossoverRecipe, "build", lambda self, cpus: lambda task: {})
    assert make_dreamer(state_of(tmp_path, world.m, fleet=gpu_fleet(2)), world.spec)._recipe.backend == "triton"
    large = MDNRNN(4, 3, 4 * MOST["hidden"], 2)
    spec = ControllerSpec(4, 4 * MOST["hidden"], 3, squash="tanh")
    assert make_dreamer(state_of(tmp_path, large, fleet=gpu_fleet(2)), spec)._recipe.backend == "torch"
    with pytest.raises(ConfigError, match="dream: no backend dreams in 'int8' on 'cuda'"):
        make_dreamer(state_of(tmp_path, world.m, fleet=gpu_fleet(2), precision="int8"), world.spec)


def test_a_run_dreams_as_it_was_measured_to_at_first(monkeypatch, tmp_path):
    """Another measurement, after a cache was lost say, would take another form, and with it other bits."""
    world, measured = World(), iter(({"a GPU": 4096}, {"a GPU": 4096, "another": 1024}))
    given = []

    class Engine(DreamEngine):
        def __init__(self, *arguments, crossovers, **options):
            given.append(crossovers)
            super().__init__(*arguments, crossovers=crossovers, **options)

        def crossovers(self):
            return next(measured)

    monkeypatch.setattr(steps, "DreamEngine", Engine)
    state = state_of(tmp_path, world.m)
    for _ in range(2):
        make_dreamer(state, world.spec)
    assert given == [{}, {"a GPU": 4096}]
    assert read_json(state.folder.crossovers) == {"a GPU": 4096, "another": 1024}


def test_one_worker_measures_for_all(monkeypatch, tmp_path):
    world, asked = World(), []

    def build(self, cpus):
        def answer(task):
            asked.append(self.dream.crossovers)
            return {"a GPU": 4096}

        return answer

    monkeypatch.setattr(CrossoverRecipe, "build", build)
    state = state_of(tmp_path, world.m, fleet=gpu_fleet(3))
    for _ in range(2):
        assert make_dreamer(state, world.spec)._recipe.crossovers == {"a GPU": 4096}
    assert asked == [{}, {"a GPU": 4096}]
