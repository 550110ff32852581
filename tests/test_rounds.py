"""What is asked of the environment before any work."""

from __future__ import annotations

import pytest
import torch
from fleets import PickledFleet
from toy_env import ToyEnv
from world import World

from wm_engine import rounds
from wm_engine.config import make_config
from wm_engine.controller import ControllerSpec
from wm_engine.distributed import CrossoverRecipe
from wm_engine.dream import DreamEngine
from wm_engine.errors import ConfigError, MissingDependencyError
from wm_engine.evolve import DreamFitness
from wm_engine.kernels import MOST
from wm_engine.memory.model import MDNRNN
from wm_engine.rounds import Round, check_environment, check_machine, make_dreamer
from wm_engine.runs import RunFolder, read_json


@pytest.fixture
def asked(monkeypatch):
    """Toy environments in the place of real ones; holds the backend asked for of each, and the environment."""
    made = []

    def make_env(settings, lanes):
        made.append((settings.backend, ToyEnv(lanes)))
        return made[-1][1]

    monkeypatch.setattr(rounds, "make_env", make_env)
    monkeypatch.setattr(rounds, "choose_backend", lambda settings: settings.backend)
    return made


def config_of(squash=(), low="envpool", scored="envpool"):
    return make_config(
        {"env": {"backend": low}, "evaluate": {"backend": scored}, "controller": {"squash": list(squash)}}, "test"
    )


@pytest.mark.parametrize("squash", [(), ("tanh", "sigmoid", "relu_tanh"), ("sigmoid",), ("argmax",)])
def test_controllers_that_can_act_are_let_through(asked, squash):
    check_environment(config_of(squash))
    assert all(env.closed for _, env in asked)


@pytest.mark.parametrize("squash", [("tanh", "sigmoid"), ("tanh",) * 4, ("tanh", "sigmoid", "tahn"), ("tahn",)])
def test_a_squash_that_does_not_fit_the_actions_is_refused(asked, squash):
    with pytest.raises(ConfigError, match=r"controller\.squash: must be one of .*each of the 3 actions") as error:
        check_environment(config_of(squash))
    assert repr(list(squash)) in str(error.value)


def test_actions_of_another_range_need_a_squash(asked, monkeypatch):
    wide = ToyEnv(1)
    wide.action_high = wide.action_high * 2
    monkeypatch.setattr(rounds, "make_env", lambda settings, lanes: wide)
    with pytest.raises(ConfigError, match="action 0 of CarRacing-v3 ranges over"):
        check_environment(config_of())
    check_environment(config_of(("tanh", "sigmoid", "sigmoid")))


def test_a_squash_that_leaves_the_bounds_of_the_actions_is_refused(asked):
    with pytest.raises(ConfigError, match=r"tanh puts out \[-1, 1\], but action 1 of CarRacing-v3 must be in \[0, 1\]"):
        check_environment(config_of(("tanh",)))
    with pytest.raises(ConfigError, match=r"identity puts out \[-inf, inf\]"):
        check_environment(config_of(("identity",)))
    with pytest.raises(ConfigError, match="argmax is of all actions at once"):
        check_environment(config_of(("tanh", "argmax", "sigmoid")))


def test_an_optimizer_that_cannot_live_where_it_is_told_to_is_refused(monkeypatch):
    monkeypatch.setattr("wm_engine.checks.device_counts", lambda: {"cpu": 1, "cuda": 1, "mps": 1})

    def evolving(device, optimizer="auto"):
        settings = {"optimizer_device": device, "optimizer": optimizer}
        return make_config({"controller": settings, "device": "cpu"}, "test")

    for device, message in (
        ("toaster", r"device must be one that is here \(cpu, cuda:0, mps\), but was 'toaster'"),
        ("cuda:1", r"device must be one that is here \(cpu, cuda:0, mps\), but was 'cuda:1'"),
        ("mps", "device must know float64, but was 'mps'"),
    ):
        with pytest.raises(ConfigError, match=rf"controller\.optimizer_device: {message}"):
            check_machine(evolving(device))
    with pytest.raises(
        ConfigError, match=r"controller\.optimizer_device: device must be 'cpu' for 'pycma' but was 'cuda:0'"
    ):
        check_machine(evolving("cuda:0", "pycma"))
    check_machine(evolving("cuda:0"))


def test_one_word_stands_for_all_actions():
    tables = {"controller": {"squash": "argmax"}}
    assert make_config(tables, "test").controller.squash == ("argmax",)


def test_the_environment_that_scores_is_made_too(asked, monkeypatch):
    check_environment(config_of(low="envpool", scored="gymnasium"))
    assert [backend for backend, _ in asked] == ["envpool", "gymnasium"]

    def missing(settings, lanes):
        if settings.backend == "gymnasium":
            raise MissingDependencyError("Box2D is not installed")
        return ToyEnv(lanes)

    monkeypatch.setattr(rounds, "make_env", missing)
    with pytest.raises(MissingDependencyError, match="Box2D"):
        check_environment(config_of(low="envpool", scored="gymnasium"))


def test_a_fleets_engine_stands_where_the_driver_would_dream(monkeypatch, tmp_path):
    world = World()
    monkeypatch.setattr(rounds, "device_of", lambda config: torch.device("cuda", 1))
    current = Round(RunFolder(tmp_path), 0, config_of(), None, PickledFleet(2))
    engine = make_dreamer(current, world.m, world.spec)
    assert DreamFitness(engine, world.starts).device == torch.device("cuda", 1)
    assert engine._recipe.backend == "cpp"


def test_a_backend_for_workers_of_another_kind_is_chosen_by_name(monkeypatch, tmp_path):
    world, fleet = World(), PickledFleet(2)
    fleet.device = "cuda"
    monkeypatch.setattr(CrossoverRecipe, "build", lambda self, cpus: lambda task: {})
    current = Round(RunFolder(tmp_path), 0, config_of(), None, fleet)
    assert make_dreamer(current, world.m, world.spec)._recipe.backend == "triton"
    large = MDNRNN(4, 3, 4 * MOST["hidden"], 2)
    spec = ControllerSpec(4, 4 * MOST["hidden"], 3, squash="tanh")
    assert make_dreamer(current, large, spec)._recipe.backend == "torch"
    wrong = make_config({"dream": {"precision": "int8"}}, "test")
    with pytest.raises(ConfigError, match="dream: no backend dreams in 'int8' on 'cuda'"):
        make_dreamer(Round(RunFolder(tmp_path), 0, wrong, None, fleet), world.m, world.spec)


def test_a_run_dreams_as_it_was_measured_to_at_first(monkeypatch, tmp_path):
    # Another measurement, after a cache was lost say, would take another form, and with it other bits.
    world, measured = World(), iter(({"a GPU": 4096}, {"a GPU": 4096, "another": 1024}))
    given = []

    class Engine(DreamEngine):
        def __init__(self, *arguments, crossovers, **options):
            given.append(crossovers)
            super().__init__(*arguments, crossovers=crossovers, **options)

        def crossovers(self):
            return next(measured)

    monkeypatch.setattr(rounds, "DreamEngine", Engine)
    current = Round(RunFolder(tmp_path), 0, config_of(), None)
    for _ in range(2):
        make_dreamer(current, world.m, world.spec)
    assert given == [{}, {"a GPU": 4096}]
    assert read_json(current.folder.crossovers) == {"a GPU": 4096, "another": 1024}


def test_one_worker_measures_for_all(monkeypatch, tmp_path):
    world, fleet, asked = World(), PickledFleet(3), []
    fleet.device = "cuda"

    def build(self, cpus):
        def answer(task):
            asked.append(self.dream.crossovers)
            return {"a GPU": 4096}

        return answer

    monkeypatch.setattr(CrossoverRecipe, "build", build)
    current = Round(RunFolder(tmp_path), 0, config_of(), None, fleet)
    for _ in range(2):
        assert make_dreamer(current, world.m, world.spec)._recipe.crossovers == {"a GPU": 4096}
    assert asked == [{}, {"a GPU": 4096}]
