"""A fleet of Ray actors on a cluster of several nodes, simulated on this machine: what it gives, and what it survives.

Needs Ray: ``pip install -e '.[test,ray]'``. ``.ci/run`` has it, and runs this file: two minutes on two busy cores.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clusters import NODES, simulated_cluster
from world import World

from wm_engine import ControllerSpec, DreamEngine
from wm_engine.cluster import ClusterSettings, DreamRecipe, FleetEngine, RayFleet
from wm_engine.cluster.compatibility import machine_signature
from wm_engine.envs import EnvSettings
from wm_engine.errors import ConfigError, WMEngineError
from wm_engine.files import Checkpoints
from wm_engine.learn.base import Problem
from wm_engine.learn.evolution import Evolution, EvolutionSettings
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.models.vae import VAE
from wm_engine.policies.controller import Controllers
from wm_engine.real.agent import Agent
from wm_engine.real.driving import EpisodeBatch, PolicyDriver, Runners, Trajectory
from wm_engine.run.config import make_config

ray = pytest.importorskip("ray", reason="needs pip install 'wm-engine[ray]'")
pytestmark = pytest.mark.slow

PLAN: dict[str, Any] = {"episodes": 4, "max_steps": 30, "seed": 7, "done": "sample"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster which this process has joined."""
    with simulated_cluster() as address:
        ray.init(address=address, log_to_driver=False)
        yield address
        ray.shutdown()


@pytest.fixture(scope="module")
def pair(cluster: str) -> Iterator[RayFleet]:
    """Two actors, on a node each, for all the tests that leave two behind: to start one takes seconds."""
    fleet = RayFleet(cluster, ClusterSettings(actors=2), "cpu")
    yield fleet
    fleet.close()


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

    @property
    def backend(self) -> str:
        return self.recipe.backend

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


def test_any_number_of_actors_dreams_the_same(
    world: World, pair: RayFleet, make_fleet: Callable[..., RayFleet]
) -> None:
    want = whole(world)
    for fleet in (pair, make_fleet(1)):
        assert_same(FleetEngine(recipe(world), fleet).rollout(world.params, world.starts, **PLAN), want)


@pytest.mark.parametrize(("fault", "times"), [("die", 1), ("die", 2), ("hang", 1)])
def test_a_lost_actor_is_replaced_and_its_shard_done_again(
    world: World,
    pair: RayFleet,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    fault: str,
    times: int,
) -> None:
    if fault == "hang":
        monkeypatch.setattr(pair, "_settings", ClusterSettings(timeout=10.0))
    faulty: Any = Faulty(recipe(world), tmp_path, fault, times, at=4)
    engine = FleetEngine(faulty, pair)
    assert_same(engine.rollout(world.params, world.starts, **PLAN), whole(world))
    assert len(list(tmp_path.iterdir())) == times
    assert caplog.text.count("it is replaced, and the shard is done again") == times
    assert ("gave no answer" if fault == "hang" else "was lost") in caplog.text
    assert_same(engine.rollout(world.params, world.starts, **PLAN), whole(world))


@dataclass(frozen=True)
class BadNode:
    """A recipe whose workers exit at any task on one node; elsewhere they say where they are.

    marks : where a worker leaves a mark as it dies, and one of its node as it begins; None: nowhere
    until : workers elsewhere are at work until there are two such marks, "died" or "began"; "": a moment
    """

    node: str = "none"
    marks: Path | None = None
    until: str = ""

    def build(self, cpus: int) -> Callable[[Any], Any]:
        def work(task: int) -> tuple[int, str]:
            here = ray.get_runtime_context().get_node_id()
            died = here == self.node
            if self.marks is not None:
                (self.marks / (f"died {os.getpid()}" if died else f"began {here}")).touch()
            if died:
                os._exit(1)
            time.sleep(0.1)
            longest = time.monotonic() + 120.0
            while self.marks is not None and time.monotonic() < longest:
                if len(list(self.marks.glob(f"{self.until} *"))) >= 2:
                    break
                time.sleep(0.1)
            return task, here

        return work


def nodes_of(fleet: RayFleet, count: int) -> list[str]:
    """Where its actors are, once so many are ready."""
    until = time.monotonic() + 150.0  # a replacement rests a minute where the one before was lost again and again
    while time.monotonic() < until:
        list(fleet.map(BadNode(), range(2)))
        nodes = [actor.node for actor in fleet._actors if actor.node is not None]
        if len(nodes) == count:
            return nodes
    raise AssertionError(f"{nodes} are ready, of {count}")


def test_a_lost_actors_replacement_starts_on_another_node(pair: RayFleet, tmp_path: Path) -> None:
    bad, other = nodes_of(pair, 2)
    answers = list(pair.map(BadNode(bad, tmp_path, "began"), range(5)))
    assert [task for task, _ in answers] == list(range(5))
    assert len({node for _, node in answers} - {other}) == 1, "the third node, which was free"


def test_one_bad_node_does_not_end_a_run(
    pair: RayFleet, make_fleet: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """No other node has room for its actors' replacements, which die while the healthy one is at work."""
    nodes_of(make_fleet(1), 1)
    bad, other = nodes_of(pair, 2)
    answers = list(pair.map(BadNode(bad, tmp_path, "died"), range(3)))
    assert answers == [(task, other) for task in range(3)]
    assert caplog.text.count("with shard") == 2, "two were lost, each with a shard of its own"


class CannotStart:
    """An actor that lacks something on its machine."""

    def __init__(self, cpus: int, threads: int) -> None:
        raise ImportError("No module named 'what_is_missing'")

    def describe(self) -> None: ...


def test_why_no_actor_can_start_is_in_the_message(make_fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wm_engine.cluster.ray_fleet._Worker", CannotStart)
    fleet = make_fleet(1)
    with pytest.raises(WMEngineError, match="No module named 'what_is_missing'") as caught:
        list(fleet.map(BadNode(), range(2)))
    assert "\x1b" not in str(caught.value)
    assert "3 actors were lost in a row" in str(caught.value)


def train(folder: Path, world: World, engine: Any) -> Path:
    """Evolve for four generations, a checkpoint after each; goes on from the last. Returns the file of its policy."""
    settings = EvolutionSettings(
        population=8, dream_generations=4, dream_episodes=3, dream_steps=10, optimizer="batched"
    )
    learner = Evolution(settings, world.spec, "predicted", 0, torch.device("cpu"))
    checkpoints = Checkpoints(folder / "checkpoints")
    done = generations_kept(folder)
    if done:
        learner.load_state(*checkpoints.load(done))
    problem = Problem(0, 1, world.m, world.starts, lambda spec: engine)
    for generation, _ in enumerate(learner.learn(problem, done), done + 1):
        checkpoints.save(generation, *learner.state())
    learner.save_policy(folder / "policy.safetensors", learner.policy())
    return folder / "policy.safetensors"


def generations_kept(folder: Path) -> int:
    return max(Checkpoints(folder / "checkpoints").steps(), default=0)


def test_actors_that_all_die_end_the_run_which_goes_on_without_them(
    world: World, pair: RayFleet, tmp_path: Path
) -> None:
    alone = train(tmp_path / "alone", world, DreamEngine(world.m, world.spec))

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
        train(tmp_path / "cluster", world, DiesLater(recipe(world), pair))
    assert generations_kept(tmp_path / "cluster") == 2
    resumed = train(tmp_path / "cluster", world, DreamEngine(world.m, world.spec))
    assert resumed.read_bytes() == alone.read_bytes()


def drive(folder: Path, address: str, last: int) -> None:
    """A driver of its own, which ends by kill -9 with the answers of its rollout number ``last`` in its hands."""

    class Dies(FleetEngine):
        calls = 0

        def rollout(self, *arguments: Any, **named: Any) -> Any:
            output = super().rollout(*arguments, **named)
            self.calls += 1
            if self.calls == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return output

    world = World(candidates=11, starts=6)
    engine = Dies(recipe(world), RayFleet(address, ClusterSettings(actors=1), "cpu"))
    train(folder, world, engine)


def test_a_driver_that_is_killed_goes_on_to_the_same_bytes(world: World, cluster: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    whole = train(tmp_path / "whole", world, DreamEngine(world.m, world.spec))
    here = Path(__file__)
    paths = [str(here.parent), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    for last, kept in ((3, 2), (100, 4)):
        code = f"import pathlib, {here.stem} as t; t.drive(pathlib.Path({str(broken)!r}), {cluster!r}, {last})"
        process = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, timeout=120
        )
        assert process.returncode == (0 if last == 100 else -signal.SIGKILL)
        assert generations_kept(broken) == kept
    assert (broken / "policy.safetensors").read_bytes() == whole.read_bytes()


def test_an_error_in_the_work_is_the_drivers(world: World, pair: RayFleet) -> None:
    engine = FleetEngine(recipe(world), pair)
    with pytest.raises(ValueError, match="episodes must be"):
        engine.rollout(world.params, world.starts, **(PLAN | {"episodes": 0}))
    assert_same(engine.rollout(world.params, world.starts, **PLAN), whole(world))


def test_real_episodes_are_driven_by_the_same_actors(pair: RayFleet, world: World) -> None:
    torch.manual_seed(0)
    spec = ControllerSpec(latent=4, hidden=6, action=3, features="zh", squash=("tanh", "sigmoid", "sigmoid"))
    agent = Agent(VAE(4), MDNRNN(latent=4, action=3, hidden=6, mixtures=3, mixture="per_dim"))
    params = 0.5 * torch.randn(4, spec.num_params)

    def batch(first: int) -> EpisodeBatch:
        numbers = [first, first + 1]
        return EpisodeBatch(numbers, PolicyDriver(Controllers(spec, params, torch.tensor(numbers)), 2), max_frames=40)

    def driven(fleet: RayFleet | None) -> list[Trajectory]:
        # With one thread, as the actors have: the last bits of V follow from their number.
        with contextlib.closing(Runners(EnvSettings(num_envs=2), agent, fleet)) as runners:
            return [trajectory for part in runners.drive([batch(0), batch(2)]) for trajectory in part]

    for ours, theirs in zip(driven(pair), driven(None), strict=True):
        assert np.array_equal(ours.actions, theirs.actions)
        assert np.array_equal(ours.rewards, theirs.rewards)
        assert (ours.seed, ours.frames) == (theirs.seed, theirs.frames)
    assert_same(FleetEngine(recipe(world), pair).rollout(world.params, world.starts, **PLAN), whole(world))


@dataclass(frozen=True)
class Environment:
    """A recipe whose workers tell what a variable of their environment is."""

    name: str

    def build(self, cpus: int) -> Callable[[Any], Any]:
        return lambda task: os.environ.get(self.name)


def test_workers_begin_with_threads_that_wait_passively(make_fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    assert list(make_fleet(1).map(Environment("OMP_WAIT_POLICY"), [0])) == ["PASSIVE"]


def test_more_actors_than_fit_are_refused(cluster: str) -> None:
    with pytest.raises(WMEngineError, match="the cluster has room for 3"):
        RayFleet(cluster, ClusterSettings(actors=4), "cpu")
    with pytest.raises(WMEngineError, match="room for 0"):
        RayFleet(cluster, ClusterSettings(cpus=2), "cpu")


def test_a_machine_with_other_bits_is_refused(world: World, make_fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = make_fleet(1)
    other = machine_signature() | {"instruction set": "another"}
    monkeypatch.setattr("wm_engine.cluster.ray_fleet.machine_signature", lambda: other)
    with pytest.raises(WMEngineError, match=r"would give other bits: instruction set .* there, another here\. Install"):
        FleetEngine(recipe(world), fleet).rollout(world.params, world.starts, **PLAN)


def test_a_shared_cluster_has_less_room_than_it_says(
    pair: RayFleet, make_fleet: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(nodes_of(pair, 2)) == NODES - 1
    with caplog.at_level("INFO", logger="wm_engine"):
        nodes_of(make_fleet(3), 1)
    assert "3 actors of 1 CPUs are asked for on 3 nodes" in caplog.text
    assert "1 actors of 1 CPUs are ready, 2 wait for room" in caplog.text
    fleet = make_fleet(1, start_timeout=3.0)
    message = r"no actor of 1 CPUs started within 3 s .* 3 nodes, and 0 of 3 CPUs are free"
    with pytest.raises(WMEngineError, match=message):
        list(fleet.map(BadNode(), range(2)))


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.timeout"):
        make_config({"cluster": {"timeout": 0.0}}, "here")
