"""The per-step form's host: graphs captured, kept and replayed, and the memory of both forms. Where no GPU is, graphs
and streams are those of tests/captured.py."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from captured import Device, Event, Stream
from held import Held
from kernel_device import DEVICE, DOT, needs_device
from world import World

from wm_engine import MDNRNN, ControllerSpec, Starts, kernels
from wm_engine.dream import triton_backend
from wm_engine.dream.triton_backend import TritonBackend
from wm_engine.dream.types import DreamOutput, RolloutPlan

pytest.importorskip("triton", minversion="3.2", reason="Triton is not installed")
from wm_engine.kernels import launch

pytestmark = needs_device
stand_in = pytest.mark.skipif(DEVICE.type != "cpu", reason="of the stand-in for a GPU's graphs and streams")
SETTINGS = launch.Settings(rows=16, units=32, num_stages=1, dot=DOT)
STEPS = 3


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device | None:
    """Graphs of a few steps, on a GPU its own."""
    monkeypatch.setattr(launch, "STEPS_A_GRAPH", STEPS)
    return Device(monkeypatch) if DEVICE.type == "cpu" else None


@pytest.fixture
def idle(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """The stand-in, whose launches do nothing."""
    monkeypatch.setattr(device, "run_kernel", lambda *arguments: None)
    return device


WORLD = World(sizes=(4, 2, 8, 2), squash=("tanh", "identity"), candidates=7)
ROLLOUTS: list[dict[str, Any]] = [
    {"candidates": 5, "seed": 1, "max_steps": 4},
    {"candidates": 4, "seed": 1 << 40, "max_steps": 8, "scale": -0.5, "first_candidate": 3},
    {"candidates": 7, "seed": 1, "max_steps": 4},
    {"candidates": 5, "seed": 2, "max_steps": 3, "scale": 1.5e38},
    {"candidates": 5, "seed": 3, "max_steps": 5, "temperature": 0.3},
    {"candidates": 5, "seed": 1, "max_steps": 4},
    {"candidates": 5, "seed": 1, "max_steps": 4, "record": True},
    {"candidates": 5, "seed": 1, "max_steps": 4, "common_random_numbers": True},
    {"candidates": 5, "seed": 1, "max_steps": 4, "reward": "survival"},
    {"candidates": 5, "seed": 1, "max_steps": 4, "done": "threshold"},
]
"""Rollouts of other sizes, seeds, lengths, temperatures, parameters and kinds; three episodes a candidate, so that five
candidates fill a tile. In the fourth some fail, of infinite actions, which leave NaN in all of M's units."""


def backend(form: str, world: World = WORLD) -> TritonBackend:
    return TritonBackend(world.m, world.spec, DEVICE, "fp32", form, SETTINGS)


def rollout(one: TritonBackend, candidates: int, scale: float = 1.0, **plan: Any) -> DreamOutput:
    plan = {"episodes": 3, "done": "sample", "common_random_numbers": False} | plan
    return one.rollout(WORLD.params[:candidates] * scale, WORLD.starts, RolloutPlan(**plan))


def alone(**plan: Any) -> DreamOutput:
    """A rollout without a graph: in the interpreter by the persistent kernel, elsewhere step by step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "has_graphs", lambda device: False)
        return rollout(backend("persistent" if kernels.interpreted() else "steps"), **plan)


def equal(got: Sequence[DreamOutput], want: Sequence[DreamOutput]) -> bool:
    return all(
        torch.equal(a.lengths, b.lengths)
        and torch.equal(a.failed, b.failed)
        and torch.equal(a.returns.isnan(), b.returns.isnan())
        and torch.equal(a.returns.nan_to_num(), b.returns.nan_to_num())
        for a, b in zip(got, want, strict=True)
    )


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_rollouts_through_kept_graphs_have_the_bits_of_rollouts_without(device: Device | None) -> None:
    want = [alone(**plan) for plan in ROLLOUTS]
    assert [index for index, out in enumerate(want) if out.failed.any()] == [3]
    assert all(bool((out.lengths < plan["max_steps"]).any()) for out, plan in zip(want[:6], ROLLOUTS[:6], strict=True))
    one = backend("steps")
    assert equal([rollout(one, **plan) for plan in ROLLOUTS], want)
    # One of a tile, one of two, one of another temperature, one for each of the last three.
    assert device is None or device.captures == 6


PIECES = ("h", "c", "z", "alive", "clock", "controllers", "returns", "lengths", "failures")


@pytest.fixture(scope="module")
def two_alone() -> list[DreamOutput]:
    return [alone(**plan) for plan in ROLLOUTS[:2]]


@pytest.mark.parametrize("piece", PIECES)
def test_a_piece_that_is_not_begun_anew_is_seen(
    piece: str, two_alone: list[DreamOutput], device: Device | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = launch.Stepper._begin

    def forgetful(self: launch.Stepper, task: launch.Task) -> None:
        memory = {**self._state, **self._params, **dict(zip(PIECES[-3:], self._books, strict=True))}
        # No rollout of these fails.
        kept = torch.ones_like(memory[piece]) if piece == "failures" else memory[piece].clone()
        begin(self, task)
        memory[piece].copy_(kept)

    one = backend("steps")
    first = rollout(one, **ROLLOUTS[0])
    monkeypatch.setattr(launch.Stepper, "_begin", forgetful)
    assert not equal([first, rollout(one, **ROLLOUTS[1])], two_alone)


@stand_in
def test_rollouts_beyond_a_tasks_do_not_keep_it_going(device: Device) -> None:
    one = backend("steps")
    rollout(one, 5, seed=8, max_steps=STEPS)
    before = device.replays
    # Whether anyone lives is asked after every other graph.
    assert rollout(one, 1, seed=8, max_steps=1000).lengths.max() < 2 * STEPS
    assert device.replays - before == 2
    assert device.captures == 1


def task_of(world: World = WORLD, candidates: int = 5, **plan: Any) -> tuple[Any, Any, launch.Task]:
    """What a Stepper is made of, and a task for it."""
    made: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch.Steppers, "run", lambda self, task: made.append((self._model, self._controllers, task)))
        rollout(backend("steps", world), candidates, **{"max_steps": 4} | plan)
    return made.pop()


@stand_in
@pytest.mark.parametrize("fault", [None, "wait_event", "record"])
def test_a_task_on_another_stream_waits_for_the_one_before(
    fault: str | None, device: Device, idle: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, controllers, task = task_of()
    streams = Stream(), Stream()
    with torch.inference_mode(), idle:
        stepper = launch.Stepper(model, controllers, task)
        if fault is not None:
            monkeypatch.setattr(Event if fault == "record" else Stream, fault, lambda *arguments: None)
        idle.stream = streams[0]
        stepper.run(task)
        idle.stream = streams[1]
        if fault is not None:
            with pytest.raises(RuntimeError, match="a race"):
                stepper.run(task)
            return
        stepper.run(task)
        idle.stream = streams[0]
        stepper.run(task)
    assert {(value.data_ptr(), stream) for value in stepper._memory for stream in streams} <= idle.marked


@stand_in
@pytest.mark.parametrize("record", [False, True])
def test_a_stepper_holds_nothing_of_its_tasks(record: bool, idle: Device) -> None:
    model, controllers, task = task_of(record=record)
    with torch.inference_mode():
        stepper = launch.Stepper(model, controllers, task)
        stepper.run(task)
    tensors = [*task.params.values(), task.z, task.h, task.c, task.returns, task.lengths, task.failures]
    held = [weakref.ref(tensor) for tensor in (*tensors, *(task.record or ()))]
    del task, tensors
    assert [each() for each in held] == [None] * len(held)
    assert idle.captures == (0 if record else 1)


@stand_in
def test_sizes_that_take_turns_are_captured_once(idle: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "KEPT_STEPPERS", 2)
    one = backend("steps")
    for candidates, captures in ((5, 1), (7, 2), (5, 2), (3, 2), (1, 2), (7, 2)):
        rollout(one, candidates, max_steps=4)
        assert idle.captures == captures
    # A third lets the one of a tile go, which was used before that of two.
    for episodes, candidates, captures in ((7, 2, 3), (3, 7, 3), (3, 5, 4)):
        rollout(one, candidates, episodes=episodes, max_steps=4)
        assert idle.captures == captures
    kept = [weakref.ref(stepper) for stepper in one._steppers._kept.values()]
    one.release()
    assert [each() for each in kept] == [None] * 2


@stand_in
def test_what_is_kept_is_bounded(idle: Device) -> None:
    tasks = [task_of(candidates=candidates, episodes=episodes) for candidates, episodes in ((5, 3), (7, 3), (7, 9))]
    with torch.inference_mode():
        tile, two, four = (launch.Stepper(*task).nbytes for task in tasks)
        assert tile + two < four
        model, controllers = tasks[0][:2]
        for most, kept in ((four - 1, tile + two), (two, two), (tile, tile), (0, 0)):
            steppers = launch.Steppers(model, controllers, most)
            for *_, task in tasks:
                steppers.run(task)
            assert sum(stepper.nbytes for stepper in steppers._kept.values()) == kept


def held_by(one: TritonBackend, candidates: int, episodes: int) -> int:
    """The most bytes held while a backend dreams a population twice, beside its parameters."""
    params = torch.zeros(candidates, one._spec.num_params, device=DEVICE)
    starts = Starts(torch.zeros(4, one._spec.latent, device=DEVICE))
    with Held() as held:
        for _ in range(2):
            one.rollout(params, starts, RolloutPlan(episodes=episodes, max_steps=4))
    return held.most - params.nbytes


@stand_in
@pytest.mark.parametrize(
    ("hidden", "precision", "hidden_units", "episodes"),
    [(256, "bf16", 0, 16), (256, "fp32", 0, 16), (256, "bf16", 64, 1), (100, "bf16", 6, 8)],
)
def test_memory_is_what_is_reckoned(
    hidden: int, precision: str, hidden_units: int, episodes: int, idle: Device
) -> None:
    m, spec = MDNRNN(hidden=hidden), ControllerSpec(hidden=hidden, hidden_units=hidden_units)
    candidates = 512 // episodes
    for form in ("persistent", "steps"):
        one = TritonBackend(m, spec, DEVICE, precision, form)
        few = held_by(one, candidates, episodes)
        one.release()
        more = held_by(one, 2 * candidates, episodes) - few
        reckoned = candidates * launch.bytes_per_candidate(one._model, one._packed_candidate, episodes)
        if form == "steps":
            assert more == pytest.approx(reckoned, rel=5e-4)
        else:
            assert 0.5 * reckoned < more < reckoned
        if hidden_units == 0:
            assert more + 4 * candidates * spec.num_params <= (8 << 10) * candidates * episodes
    assert idle.captures > 0


@stand_in
@pytest.mark.parametrize("form", ["persistent", "steps"])
def test_blocks_and_what_is_kept_stay_within_the_bound(
    form: str, idle: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, starts = 4 << 20, 64 << 10
    monkeypatch.setattr(triton_backend, "_MOST_BYTES", most)
    monkeypatch.setattr(triton_backend, "_KEPT_BYTES", most // 4)
    spec = ControllerSpec(hidden_units=8)
    one = TritonBackend(MDNRNN(), spec, DEVICE, "bf16", form, SETTINGS)
    with Held() as held:
        for candidates in (3, 9, 70, 3, 20, 70):
            params, begin = torch.zeros(candidates, spec.num_params), Starts(torch.zeros(4, spec.latent))
            one.rollout(params, begin, RolloutPlan(episodes=16, max_steps=4))
    assert 0.5 * most < held.most - params.nbytes <= most + starts


@pytest.mark.parametrize(("hidden_units", "episodes"), [(0, 1), (0, 16), (0, 1000), (64, 1), (64, 16), (128, 1)])
def test_a_million_rollouts_are_dreamt_in_launches_that_fit(hidden_units: int, episodes: int) -> None:
    spec = ControllerSpec(hidden_units=hidden_units)
    one = TritonBackend(MDNRNN(), spec, DEVICE, "bf16")
    each = launch.bytes_per_candidate(one._model, one._packed_candidate, episodes)
    candidates = triton_backend.candidates_a_launch(each, episodes)
    assert 1 <= candidates <= (1 << 20) // episodes

    def packed(count: int) -> int:
        layers = spec.layers(torch.empty(count, spec.num_params, device="meta"))
        return sum(value.nbytes for value in one._shape.pack(one._model, layers).values())

    # The packed controllers of all at once would take the device's memory many times over.
    assert (hidden_units, episodes) != (64, 1) or packed(1 << 20) > 64 << 30
    taken = candidates * episodes * launch.bytes_per_rollout(one._model) + 2 * packed(candidates)
    assert 2 << 30 < taken <= 3 << 30


def test_a_candidate_beyond_the_bound_is_dreamt_by_itself() -> None:
    assert triton_backend.candidates_a_launch(5 << 30, 1 << 20) == 1
    assert triton_backend.candidates_a_launch(1, 1 << 24) == 1
