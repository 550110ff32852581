"""What a fleet does about losses, on a stand-in for Ray whose actors answer, die or hang as they are told."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from wm_engine.cluster import ClusterSettings, RayFleet, ray_fleet
from wm_engine.cluster.compatibility import machine_signature
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
    def __init__(self, outcome: Any, at: float) -> None:
        self.outcome, self.at = outcome, at


@dataclass(frozen=True)
class Later:
    """An outcome that is there after so many seconds."""

    seconds: float
    outcome: Any


def description(node: str = "a", gpu: str | None = None) -> dict[str, Any]:
    return {"signature": machine_signature(), "GPU": gpu, "node": node}


class FakeRay:
    """``script(task, attempt)`` says what comes of a task: an answer, an exception, DIE, HANG or one of them Later.

    starting : whether the actor of that number starts: a description, DIE or HANG
    bad : nodes on which every task is an actor's death
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
    util = SimpleNamespace(
        scheduling_strategies=SimpleNamespace(
            NotIn=lambda node: node, NodeLabelSchedulingStrategy=lambda hard, soft: soft["ray.io/node-id"]
        )
    )

    def __init__(
        self,
        script: Callable[[Any, int], Any],
        starting: Callable[[int], Any] | None = None,
        nodes: str = "a",
        bad: str = "",
    ) -> None:
        self.script, self.starting = script, starting or (lambda number: description(nodes[number % len(nodes)]))
        self.names, self.bad = nodes, bad
        self.avoided: list[str | None] = []  # by each actor that was made
        self.environments: list[dict[str, str]] = []  # of each actor that was made
        self.now, self.made, self.killed, self.puts = 0.0, 0, 0, 0
        self.attempts: dict[Any, int] = {}
        self.most_ahead, self.answered = 0, 0

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "NodeID": name, "Resources": {"CPU": 8.0}} for name in self.names]

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def put(self, value: Any) -> Any:
        self.puts += 1
        return value

    def kill(self, handle: Any) -> None:
        self.killed += 1

    def remote(self, kind: Any) -> Any:
        return SimpleNamespace(options=self._options)

    def _options(self, runtime_env: Any, scheduling_strategy: str | None = None, **resources: Any) -> Any:
        self.avoided.append(scheduling_strategy)
        self.environments.append(runtime_env["env_vars"])
        return SimpleNamespace(remote=self._make)

    def _make(self, *arguments: Any) -> Any:
        number, self.made = self.made, self.made + 1
        outcome = self.starting(number)
        said = outcome.outcome if isinstance(outcome, Later) else outcome
        node = said["node"] if isinstance(said, dict) else None
        return SimpleNamespace(
            describe=SimpleNamespace(remote=lambda: self._reference(outcome)),
            work=SimpleNamespace(remote=lambda *arguments: self._work(*arguments, node=node)),
        )

    def _reference(self, outcome: Any) -> Reference:
        if isinstance(outcome, Later):
            return Reference(outcome.outcome, self.now + outcome.seconds)
        return Reference(outcome, math.inf if outcome is HANG else self.now)

    def _work(self, number: int, recipe: list[Any], task: Any, node: str | None) -> Reference:
        self.attempts[task] = self.attempts.get(task, 0) + 1
        self.most_ahead = max(self.most_ahead, task - self.answered)
        return self._reference(DIE if node and node in self.bad else self.script(task, self.attempts[task]))

    def wait(self, references: list[Reference], num_returns: int, timeout: float) -> tuple[list[Reference], list[Any]]:
        assert references, "Ray refuses to wait for nothing"
        if all(reference.at > self.now for reference in references):
            self.now = min([self.now + timeout, *(reference.at for reference in references)])
        return [reference for reference in references if reference.at <= self.now][:num_returns], []

    def get(self, reference: Reference) -> Any:
        if reference.outcome is DIE:
            raise RayError("the process is gone")
        if isinstance(reference.outcome, Exception):
            raise RayTaskError(reference.outcome)
        return reference.outcome


@pytest.fixture
def fleet_on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RayFleet]:
    def make(ray: FakeRay, actors: int = 2, **settings: float) -> RayFleet:
        monkeypatch.setattr(ray_fleet, "_import_ray", lambda: ray)
        monkeypatch.setattr(ray_fleet, "time", SimpleNamespace(monotonic=lambda: ray.now))
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
    with pytest.raises(WMEngineError, match=r"shard 1 of 4 took 3 actors with it, on 1 nodes; the last one was lost"):
        list(fleet_on(ray).map(object(), range(4)))


def test_actors_that_all_die_as_they_start_end_the_run(fleet_on: Any) -> None:
    ray = FakeRay(once(None), starting=lambda number: DIE)
    with pytest.raises(WMEngineError, match="6 actors were lost in a row"):
        list(fleet_on(ray).map(object(), range(4)))


def test_two_models_of_gpu_are_refused(fleet_on: Any) -> None:
    def start(number: int) -> dict[str, Any]:
        return description(gpu=("A, Triton 3.6", "B, Triton 3.6")[number % 2])

    with pytest.raises(WMEngineError, match=r"would give different bits: A, Triton 3\.6; B, Triton 3\.6\. Take nodes"):
        list(fleet_on(FakeRay(once(None), starting=start)).map(object(), range(4)))
    alike = FakeRay(once(None), starting=lambda number: start(0))
    assert list(fleet_on(alike).map(object(), range(3))) == [0, 1, 4]


def test_no_actor_that_starts_ends_the_run_in_time(fleet_on: Any) -> None:
    ray = FakeRay(once(None), starting=lambda number: HANG)
    with pytest.raises(
        WMEngineError, match=r"no actor of 1 CPUs started within 90 s .* 1 nodes, and 2 of 8 CPUs are free"
    ):
        list(fleet_on(ray, start_timeout=90.0).map(object(), range(4)))
    assert ray.now == pytest.approx(90.0, abs=1.0)


def test_one_actor_does_the_work_of_those_that_never_start(fleet_on: Any) -> None:
    ray = FakeRay(once(Later(1000.0, 4), 2), starting=lambda number: HANG if number != 1 else description())
    answers = list(fleet_on(ray, actors=2, timeout=1000.0, start_timeout=90.0).map(object(), range(5)))
    assert answers == [0, 1, 4, 9, 16]
    assert ray.now == pytest.approx(1000.0, abs=1.0)


def test_an_actor_that_hangs_as_it_starts_is_replaced_while_others_work(fleet_on: Any) -> None:
    ray = FakeRay(
        lambda task, attempt: Later(300.0, task), starting=lambda number: HANG if number == 0 else description()
    )
    assert list(fleet_on(ray, actors=2, timeout=1000.0, start_timeout=90.0).map(object(), range(4))) == [0, 1, 2, 3]
    assert ray.now == pytest.approx(690.0, abs=1.0), "from 90 s on there are two"
    assert ray.made == 3


def test_one_bad_node_does_not_end_a_run(fleet_on: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Its actors die at once, again and again, while those elsewhere are at work for long."""
    places = iter("abc")
    ray = FakeRay(
        lambda task, attempt: Later(500.0, task),
        starting=lambda number: Later(1.0, description(next(places, "a"))),  # replacements find room on "a" alone
        nodes="abc",
        bad="a",
    )
    assert list(fleet_on(ray, actors=3).map(object(), range(9))) == list(range(9))
    assert max(ray.attempts.values()) == 2, "after its loss a shard waits for a node that is not bad"
    assert set(ray.avoided) == {None, "a"}
    assert ray.now < 6 * 501.0
    assert "with shard 0; it is replaced, and the shard is done again" in caplog.text
    assert "it is replaced in 60 s, and the shard is done again" in caplog.text
    assert caplog.text.count("is replaced") < 9


def test_a_shard_that_ends_actors_on_every_node_ends_the_run(fleet_on: Any) -> None:
    places = iter("abc")
    ray = FakeRay(
        lambda task, attempt: DIE if task == 1 else Later(9.0, task),
        starting=lambda number: description(next(places, "b")),
        nodes="abc",
    )
    with pytest.raises(WMEngineError, match="shard 1 of 40 took 3 actors with it, on 3 nodes"):
        list(fleet_on(ray, actors=3).map(object(), range(40)))


def test_a_last_attempt_waits_for_an_actor_that_starts_elsewhere(fleet_on: Any) -> None:
    ray = FakeRay(
        once(None),
        starting=lambda number: Later(30.0, description("b")) if number == 1 else description("a"),
        nodes="ab",
        bad="a",
    )
    assert list(fleet_on(ray, actors=2).map(object(), range(3))) == [0, 1, 4]
    assert ray.now == pytest.approx(30.0, abs=1.0)


def test_a_last_attempt_does_not_wait_for_ever(fleet_on: Any) -> None:
    ray = FakeRay(once(None), starting=lambda number: HANG if number == 1 else description("a"), nodes="ab", bad="a")
    with pytest.raises(WMEngineError, match=r"no actor of 1 CPUs started within 90 s .*, and 4 were lost before; the"):
        list(fleet_on(ray, actors=2, start_timeout=90.0).map(object(), range(3)))
    assert ray.now == pytest.approx(90.0, abs=1.0)


def test_nodes_that_are_all_bad_end_the_run_and_a_next_call_tries_again(fleet_on: Any) -> None:
    ray = FakeRay(once(None), nodes="ab", bad="ab")
    fleet = fleet_on(ray, actors=2)
    with pytest.raises(WMEngineError, match="goes on where this one stopped"):
        list(fleet.map(object(), range(40)))
    assert ray.now < 100.0
    ray.bad = ""
    assert list(fleet.map(object(), range(3))) == [0, 1, 4]


def test_why_an_actor_was_lost_is_told_from_both_ends_of_rays_error(
    fleet_on: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Verbose(FakeRay):
        def get(self, reference: Reference) -> Any:
            if reference.outcome is DIE:
                raise RayError(
                    "\x1b[36mThe actor died in its creation task\x1b[39m\n  File x\nImportError: No module y\n\n"
                )
            return super().get(reference)

    ray = Verbose(once(None), starting=lambda number: DIE)
    why = r"was lost \(The actor died in its creation task \.\.\. ImportError: No module y\)"
    with pytest.raises(WMEngineError, match=why):
        list(fleet_on(ray).map(object(), range(4)))
    assert "No module y) while it started; it is replaced\n" in caplog.text


def test_ready_and_waiting_actors_are_told_apart(fleet_on: Any, caplog: pytest.LogCaptureFixture) -> None:
    ray = FakeRay(
        lambda task, attempt: Later(50.0, task),
        starting=lambda number: description() if number == 0 else Later(100.0, description()),
    )
    with caplog.at_level("INFO", logger="wm_engine"):
        list(fleet_on(ray, actors=3).map(object(), range(8)))
    told = [message for message in caplog.messages if "actors of 1 CPUs" in message]
    assert told[0] == "ray: 3 actors of 1 CPUs are asked for on 1 nodes"
    assert [message[:6] for message in told[1:]] == ["ray: 1", "ray: 3"]


def test_every_minute_the_log_says_how_many_wait(fleet_on: Any, caplog: pytest.LogCaptureFixture) -> None:
    ray = FakeRay(lambda task, attempt: Later(20.0, task), lambda number: HANG if number else description())
    with caplog.at_level("INFO", logger="wm_engine"):
        list(fleet_on(ray, actors=3).map(object(), range(12)))
    assert caplog.text.count("1 actors of 1 CPUs are ready, 2 wait for room or are starting") == 5


def test_while_nothing_happens_the_log_says_so(fleet_on: Any, caplog: pytest.LogCaptureFixture) -> None:
    ray = FakeRay(once(HANG, 0))
    with caplog.at_level("INFO", logger="wm_engine"):
        list(fleet_on(ray, actors=1, timeout=200.0).map(object(), [0]))
    assert caplog.text.count("1 shards are being worked on, 0 wait; 1 of 1 actors are ready") == 3


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


@pytest.mark.parametrize("said", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7", "KMP_BLOCKTIME": "0"}])
def test_workers_wait_passively_unless_the_drivers_environment_says_otherwise(
    fleet_on: Any, monkeypatch: pytest.MonkeyPatch, said: dict[str, str]
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    ray = FakeRay(once(DIE, 1))
    assert list(fleet_on(ray).map(object(), range(3))) == [0, 1, 4]
    assert ray.environments == [said or {"OMP_WAIT_POLICY": "PASSIVE"}] * 3, "the replacement too"
