"""What a fleet does about losses, on a stand-in for Ray whose actors answer, die or hang as they are told."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from wm_engine.distributed import ClusterSettings, RayFleet, cluster
from wm_engine.errors import ConfigError, WMEngineError

DIE, HANG = "die", "hang"


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause

    def as_instanceof_cause(self) -> Exception:
        return self.cause


class Reference:
    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome


class FakeRay:
    """``script(task, attempt)`` says what comes of a task: an answer, an exception, DIE or HANG. ``starting``: whether
    the actor of that number starts: an answer of its own kinship, DIE or HANG."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, script: Callable[[Any, int], Any], starting: Callable[[int], Any] | None = None) -> None:
        self.script, self.starting = script, starting or (lambda number: cluster.kinship())
        self.now, self.made, self.killed, self.puts = 0.0, 0, 0, 0
        self.attempts: dict[Any, int] = {}
        self.most_ahead, self.answered = 0, 0

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 8.0}}]

    def put(self, value: Any) -> Any:
        self.puts += 1
        return value

    def kill(self, handle: Any) -> None:
        self.killed += 1

    def remote(self, kind: Any) -> Any:
        return SimpleNamespace(options=lambda **resources: SimpleNamespace(remote=self._make))

    def _make(self, *arguments: Any) -> Any:
        number, self.made = self.made, self.made + 1
        started = SimpleNamespace(remote=lambda: Reference(self.starting(number)))
        return SimpleNamespace(kinship=started, work=SimpleNamespace(remote=self._work))

    def _work(self, number: int, recipe: list[Any], task: Any) -> Reference:
        self.attempts[task] = self.attempts.get(task, 0) + 1
        self.most_ahead = max(self.most_ahead, task - self.answered)
        return Reference(self.script(task, self.attempts[task]))

    def wait(self, references: list[Reference], num_returns: int, timeout: float) -> tuple[list[Reference], list[Any]]:
        ready = [reference for reference in references if reference.outcome is not HANG]
        if not ready:
            self.now += timeout
        return ready[:num_returns], []

    def get(self, reference: Reference) -> Any:
        if reference.outcome is DIE:
            raise RayError("the process is gone")
        if isinstance(reference.outcome, Exception):
            raise RayTaskError(reference.outcome)
        return reference.outcome


@pytest.fixture
def fleet_on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RayFleet]:
    def make(ray: FakeRay, actors: int = 2, **settings: float) -> RayFleet:
        monkeypatch.setattr(cluster, "_import_ray", lambda: ray)
        monkeypatch.setattr(cluster, "time", SimpleNamespace(monotonic=lambda: ray.now))
        return RayFleet("auto", ClusterSettings(actors=actors, cpus=1, **settings), "cpu")

    return make


def once(fault: Any, *tasks: int) -> Callable[[Any, int], Any]:
    """Squares, but for the first attempt at the given tasks."""
    return lambda task, attempt: fault if task in tasks and attempt == 1 else task**2


def test_answers_come_in_order_and_models_travel_once(fleet_on: Any) -> None:
    ray = FakeRay(once(None))
    fleet, recipe, other = fleet_on(ray, actors=3), object(), object()
    assert list(fleet.map(recipe, range(10))) == [n**2 for n in range(10)]
    assert list(fleet.map(recipe, range(10, 12))) == [100, 121]
    assert (ray.made, ray.puts) == (3, 1)
    list(fleet.map(other, [12]))
    assert ray.puts == 2
    fleet.close()
    assert ray.killed == 3


@pytest.mark.parametrize("fault", [DIE, HANG])
def test_a_lost_shard_is_done_again(fleet_on: Any, caplog: pytest.LogCaptureFixture, fault: str) -> None:
    ray = FakeRay(once(fault, 1, 4))
    assert list(fleet_on(ray, timeout=50.0).map(object(), range(6))) == [n**2 for n in range(6)]
    assert ray.attempts == {0: 1, 1: 2, 2: 1, 3: 1, 4: 2, 5: 1}
    assert (ray.made, ray.killed) == (4, 2)
    assert caplog.text.count("is replaced") == 2
    assert ray.now == (0.0 if fault is DIE else pytest.approx(50.0, abs=1.0)), "both hang at the same time"


def test_a_shard_that_ends_every_actor_ends_the_run(fleet_on: Any) -> None:
    ray = FakeRay(lambda task, attempt: DIE if task == 1 else task)
    with pytest.raises(WMEngineError, match=r"shard 1 of 4 took 3 actors with it; the last one was lost \(the process"):
        list(fleet_on(ray).map(object(), range(4)))


def test_actors_that_all_die_as_they_start_end_the_run(fleet_on: Any) -> None:
    ray = FakeRay(once(None), starting=lambda number: DIE)
    with pytest.raises(WMEngineError, match="6 actors were lost in a row"):
        list(fleet_on(ray).map(object(), range(4)))


def test_two_models_of_gpu_are_refused(fleet_on: Any) -> None:
    def kinship(number: int) -> dict[str, Any]:
        return cluster.kinship() | {"GPU": ("A, Triton 3.6", "B, Triton 3.6")[number % 2]}

    with pytest.raises(WMEngineError, match=r"would give different bits: A, Triton 3\.6; B, Triton 3\.6\. Take nodes"):
        list(fleet_on(FakeRay(once(None), starting=kinship)).map(object(), range(4)))
    alike = FakeRay(once(None), starting=lambda number: kinship(0))
    assert list(fleet_on(alike).map(object(), range(3))) == [0, 1, 4]


def test_no_actor_that_starts_ends_the_run_in_time(fleet_on: Any) -> None:
    ray = FakeRay(once(None), starting=lambda number: HANG)
    with pytest.raises(WMEngineError, match=r"no actor of 1 CPUs started within 90 s .*1 nodes with 8 CPUs"):
        list(fleet_on(ray, start_timeout=90.0).map(object(), range(4)))
    assert ray.now == pytest.approx(90.0, abs=1.0)


def test_one_actor_does_the_work_of_those_that_never_start(fleet_on: Any) -> None:
    ray = FakeRay(once(HANG, 2), starting=lambda number: HANG if number == 0 else cluster.kinship())
    answers = list(fleet_on(ray, actors=2, timeout=1000.0, start_timeout=90.0).map(object(), range(5)))
    assert answers == [0, 1, 4, 9, 16]
    assert ray.now == pytest.approx(1000.0, abs=1.0)


def test_while_nothing_happens_the_log_says_so(fleet_on: Any, caplog: pytest.LogCaptureFixture) -> None:
    ray = FakeRay(once(HANG, 0))
    with caplog.at_level("INFO", logger="wm_engine"):
        list(fleet_on(ray, actors=1, timeout=200.0).map(object(), [0]))
    assert caplog.text.count("1 shards are being worked on") == 3


@pytest.mark.parametrize("error", [ValueError("bad"), ConfigError("mend it")])
def test_errors_of_the_work_are_raised_here_and_cost_no_actor(fleet_on: Any, error: Exception) -> None:
    ray = FakeRay(lambda task, attempt: error if task == 0 else task)
    fleet = fleet_on(ray, actors=1)
    with pytest.raises(type(error), match=str(error)):
        list(fleet.map(object(), [0]))
    assert list(fleet.map(object(), [3])) == [3]
    assert ray.made == 1


def test_answers_that_nobody_took_are_not_the_next_calls(fleet_on: Any) -> None:
    ray = FakeRay(lambda task, attempt: HANG if task == 1 else task)
    fleet = fleet_on(ray)
    first = fleet.map(object(), range(2))
    assert next(first) == 0
    first.close()
    assert list(fleet.map(object(), [7, 8])) == [7, 8]


def test_no_more_answers_wait_than_are_asked_for_ahead(fleet_on: Any) -> None:
    """While the first shard hangs, the others do not run through all the tasks: their answers would fill the memory."""
    ray = FakeRay(once(HANG, 0))
    for answer in fleet_on(ray, actors=2, timeout=30.0).map(object(), range(50)):
        ray.answered = math.isqrt(answer) + 1
    assert ray.most_ahead < 4
