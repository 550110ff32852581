"""A fleet of Ray actors on a cluster of several nodes, simulated on this machine: what it gives, and what it survives.

Needs Ray: ``pip install -e '.[test,ray]'``, then ``pytest tests/distributed``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from world import World

from wm_engine import ControllerSpec, DreamEngine
from wm_engine.config import make_config
from wm_engine.distributed import ClusterSettings, DreamRecipe, FleetEngine, RayFleet
from wm_engine.distributed.cluster import kinship
from wm_engine.envs import EnvSettings
from wm_engine.errors import ConfigError, WMEngineError
from wm_engine.evolve import ControllerSettings, DreamFitness, RealFitness, train_controller
from wm_engine.memory.model import MDNRNN
from wm_engine.records import Recorder
from wm_engine.runs import Checkpoints, RunFolder
from wm_engine.vision.model import VAE

ray = pytest.importorskip("ray", reason="needs pip install 'wm-engine[ray]'")
pytestmark = pytest.mark.slow

PLAN: dict[str, Any] = {"episodes": 4, "max_steps": 30, "seed": 7, "done": "sample"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of three nodes with a CPU each, which this process has joined."""
    from ray.cluster_utils import Cluster

    # Its workers are processes of their own, which have to find this module and those beside it.
    paths = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, Path(__file__).parents[:2]), paths])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    nodes = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    for _ in range(2):
        nodes.add_node(**node)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()
    os.environ["PYTHONPATH"] = paths


@pytest.fixture
def make_fleet(cluster: str) -> Iterator[Callable[..., RayFleet]]:
    opened: list[RayFleet] = []

    def make(actors: int, **settings: float) -> RayFleet:
        opened.append(RayFleet(cluster, ClusterSettings(actors=actors, **settings), "cpu"))
        return opened[-1]

    yield make
    for fleet in opened:
        fleet.close()


@pytest.fixture(scope="module")
def world() -> World:
    return World(candidates=11, starts=6)


@dataclass(frozen=True)
class Faulty:
    """A recipe whose workers come to grief at their first ``times`` tasks for candidates from ``at`` on."""

    recipe: DreamRecipe
    folder: Path
    fault: str
    times: int = 1
    at: int = 0

    @property
    def spec(self) -> ControllerSpec:
        return self.recipe.spec

    def build(self, cpus: int) -> Callable[[Any], Any]:
        dream = self.recipe.build(cpus)

        def work(task: Any) -> Any:
            for number in range(self.times):
                mark = self.folder / f"{self.fault}{number}"
                if task["first_candidate"] >= self.at and not mark.exists():
                    mark.touch()
                    if self.fault == "hang":
                        time.sleep(600.0)
                    os.kill(os.getpid(), signal.SIGKILL)
            return dream(task)

        return work


def recipe(world: World, backend: str = "auto") -> DreamRecipe:
    chosen = DreamEngine(world.m, world.spec, backend=backend).backend
    return DreamRecipe(world.m, world.spec, "cpu", chosen, "fp32")


def whole(world: World) -> Any:
    return DreamEngine(world.m, world.spec).rollout(world.params, world.starts, **PLAN)


def assert_same(got: Any, want: Any) -> None:
    for name in ("returns", "lengths", "failed"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name


def test_any_number_of_actors_dreams_the_same(world: World, make_fleet: Callable[..., RayFleet]) -> None:
    want = whole(world)
    for actors in (1, 2, 3):
        fleet = make_fleet(actors)
        assert_same(FleetEngine(recipe(world), fleet).rollout(world.params, world.starts, **PLAN), want)
        fleet.close()


@pytest.mark.parametrize(("fault", "times"), [("die", 1), ("die", 2), ("hang", 1)])
def test_a_lost_actor_is_replaced_and_its_shard_done_again(
    world: World,
    make_fleet: Callable[..., RayFleet],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    fault: str,
    times: int,
) -> None:
    fleet = make_fleet(2, timeout=8.0)
    faulty: Any = Faulty(recipe(world), tmp_path, fault, times, at=4)
    engine = FleetEngine(faulty, fleet)
    assert_same(engine.rollout(world.params, world.starts, **PLAN), whole(world))
    assert len(list(tmp_path.iterdir())) == times
    assert caplog.text.count("it is replaced, and the shard is done again") == times
    assert ("gave no answer" if fault == "hang" else "was lost") in caplog.text
    assert_same(engine.rollout(world.params, world.starts, **PLAN), whole(world))


def test_actors_that_all_die_end_the_run_which_goes_on_without_them(
    world: World, make_fleet: Callable[..., RayFleet], tmp_path: Path
) -> None:
    settings = ControllerSettings(
        population=8, dream_generations=4, finalists=1, final_dream_episodes=3, optimizer="batched"
    )
    options: dict[str, Any] = {"episodes": 3, "max_steps": 10, "seed": 1}

    def train(name: str, engine: Any) -> Any:
        with Recorder(tmp_path / name / "metrics") as recorder:
            checkpoints = Checkpoints(tmp_path / name / "checkpoints")
            fitness = DreamFitness(engine, world.starts, **options)
            return train_controller(settings, world.spec, dream=fitness, checkpoints=checkpoints, recorder=recorder)

    alone = train("alone", DreamEngine(world.m, world.spec))

    class DiesLater(FleetEngine):
        """From the third generation on, every worker dies of every task."""

        calls = 0

        def rollout(self, *arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == 3:
                marks = tmp_path / "marks"
                marks.mkdir()
                self._recipe = Faulty(self._recipe, marks, "die", 100)  # type: ignore[assignment]
            return super().rollout(*arguments, **named)

    with pytest.raises(WMEngineError, match="goes on where this one stopped"):
        train("cluster", DiesLater(recipe(world), make_fleet(2)))
    steps = Checkpoints(tmp_path / "cluster" / "checkpoints").latest()
    assert steps is not None
    assert steps[0] == 2
    resumed = train("cluster", DreamEngine(world.m, world.spec))
    assert torch.equal(resumed.params, alone.params)
    assert resumed.scores == alone.scores


def test_an_error_in_the_work_is_the_drivers(world: World, make_fleet: Callable[..., RayFleet]) -> None:
    fleet = make_fleet(2)
    engine = FleetEngine(recipe(world), fleet)
    with pytest.raises(ValueError, match="episodes must be"):
        engine.rollout(world.params, world.starts, **(PLAN | {"episodes": 0}))
    assert_same(engine.rollout(world.params, world.starts, **PLAN), whole(world))


def test_real_episodes_are_driven_by_the_same_actors(make_fleet: Callable[..., RayFleet], world: World) -> None:
    torch.manual_seed(0)
    spec = ControllerSpec(latent=4, hidden=6, action=3, features="zh", squash=("tanh", "sigmoid", "sigmoid"))
    parts = VAE(4), MDNRNN(latent=4, action=3, hidden=6, mixtures=3, mixture="per_dim"), spec
    params = 0.5 * torch.randn(4, spec.num_params)
    options: dict[str, Any] = {"episodes": 1, "max_steps": 10, "lanes": 2, "seed": 5}
    fleet = make_fleet(2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the actors: the last bits of V follow from the number of threads
    alone, shared = (RealFitness(EnvSettings(), *parts, **options, fleet=where) for where in (None, fleet))
    assert torch.equal(shared(params, 0), alone(params, 0))
    assert shared.steps == alone.steps
    alone.close()
    torch.set_num_threads(threads)
    assert_same(FleetEngine(recipe(world), fleet).rollout(world.params, world.starts, **PLAN), whole(world))


def test_more_actors_than_fit_are_refused(cluster: str) -> None:
    with pytest.raises(WMEngineError, match="the cluster has room for 3"):
        RayFleet(cluster, ClusterSettings(actors=4), "cpu")
    with pytest.raises(WMEngineError, match="room for 0"):
        RayFleet(cluster, ClusterSettings(cpus=2), "cpu")


def test_a_machine_with_other_bits_is_refused(world: World, make_fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = make_fleet(1)
    other = kinship() | {"instruction set": "another"}
    monkeypatch.setattr("wm_engine.distributed.cluster.kinship", lambda: other)
    with pytest.raises(WMEngineError, match=r"would give other bits: instruction set .* there, another here"):
        FleetEngine(recipe(world), fleet).rollout(world.params, world.starts, **PLAN)


def test_no_actor_that_starts_is_an_error_not_a_wait(cluster: str, world: World, make_fleet: Any) -> None:
    hog = make_fleet(3)
    assert hog.workers == 3
    fleet = make_fleet(1, start_timeout=3.0)
    with pytest.raises(WMEngineError, match="no actor of 1 CPUs started within 3 s"):
        FleetEngine(recipe(world), fleet).rollout(world.params, world.starts, **PLAN)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.timeout"):
        make_config({"cluster": {"timeout": 0.0}}, "here")


def test_a_run_on_a_cluster_leaves_the_files_of_a_run_without(cluster: str, tmp_path: Path) -> None:
    """The smoke preset on real CarRacing, every stage; the second run is begun on the cluster and finished without."""

    def train(name: str, *options: str) -> dict[str, bytes]:
        root = tmp_path / name
        command = [sys.executable, "-m", "wm_engine.cli", "train", "--preset", "smoke", "--run", str(root)]
        command += ["--set", "evaluate.backend=auto", "--set", "env.num_envs=2", *options]
        process = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=tmp_path)
        assert process.returncode == 0, process.stderr
        run = RunFolder(root)
        files = [run.vision, run.memory, run.controller, run.iteration(0).root / "scores.json"]
        files += [run.iteration(0).root / "fidelity.json", run.iteration(0).evolution / "result.safetensors"]
        files += [path for path in run.rollouts.rglob("*") if path.is_file()]
        return {str(path.relative_to(root)): path.read_bytes() for path in files if path.exists()}

    on_cluster = train("cluster", "--ray", cluster, "--set", "cluster.actors=2")
    assert on_cluster == train("alone")
    train("mixed", "--ray", cluster, "--stage", "collect")
    assert train("mixed") == on_cluster


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:gcs"])
def test_an_address_where_nothing_answers(tmp_path: Path, address: str) -> None:
    command = [sys.executable, "-m", "wm_engine.cli", "train", "--preset", "smoke", "--run", str(tmp_path / "run")]
    process = subprocess.run([*command, "--ray", address], capture_output=True, text=True, timeout=100)
    assert process.returncode == 2
    assert f"--ray {address}: no cluster answers there" in process.stderr
    assert "Traceback" not in process.stderr
