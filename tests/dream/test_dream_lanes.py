"""Dreams taken a step at a time: under a controller's actions they are the engine's rollouts, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from toys.world_model import LinearWorld
from world import World

from wm_engine import ControllerSpec, DreamEngine, Starts
from wm_engine.core import core
from wm_engine.dream import BACKENDS, DreamOutput
from wm_engine.dream.cpp_backend import CppBackend
from wm_engine.dream.torch_backend import DTYPES
from wm_engine.models.ensemble import Ensemble

MODULE, REASON = core()
needs_core = pytest.mark.skipif(MODULE is None, reason=REASON)
LEVELS = [] if MODULE is None else MODULE.isa_levels()
STEPS = 6
# Torch's products of small matrices round by the place of a row in the batch, in its rollouts too. So that a dream has
# the same place in both, one dream of each lane is compared, and sizes are not the smallest.
DREAMS = {"cpp": 3, "torch": 1}
SIZES = (8, 3, 32, 3)


def taken_by_steps(engine: DreamEngine, params: torch.Tensor, starts: Starts, dreams: int, count: int, **plan: Any):
    """``dreams`` dreams of ``count`` lanes each, of STEPS steps at most, in the form of a rollout's record."""
    spec, lanes = engine.controller, engine.lanes(starts, count, **plan)
    total = dreams * count
    z, actions = torch.zeros(STEPS, 1, total, spec.latent), torch.zeros(STEPS, 1, total, spec.action)
    rewards, lengths = torch.zeros(STEPS, 1, total), torch.zeros(1, total, dtype=torch.int32)
    done = np.zeros(count, np.int64)
    while (done < dreams).any():
        features = spec.observe(*(getattr(lanes.state, name) for name in "zhc"))
        chosen = engine.act(params, features.unsqueeze(0))[0]
        at, which = lanes.steps.copy(), lanes.episode.copy()
        step = lanes.step(chosen)
        assert not step.failed.any()
        for lane in np.flatnonzero(done < dreams):
            place = (at[lane], 0, which[lane])
            z[place], actions[place], rewards[place] = lanes.state.z[lane], chosen[lane], step.reward[lane]
            lengths[0, which[lane]] = int(at[lane]) + 1
        over = step.ended.numpy() | (lanes.steps == STEPS)
        done += over
        lanes.next(over)
    return DreamOutput(torch.zeros(1, total), lengths, torch.zeros(1, dtype=torch.bool), z, actions, rewards)


def hold_to_rollout(engine: DreamEngine, world: Any, dreams: int, count: int, **plan: Any) -> None:
    params = world.params[:1]
    want = engine.rollout(params, world.starts, episodes=dreams * count, max_steps=STEPS, record=True, **plan)
    got = taken_by_steps(engine, params, world.starts, dreams, count, **plan)
    for name in ("lengths", "z", "actions", "rewards"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name


@pytest.mark.parametrize("count", [1, 5, 17])
@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_controllers_that_act_from_outside_dream_rollouts(backend, mixture, count):
    if backend == "cpp" and MODULE is None:
        pytest.skip(REASON)
    world = World(mixture, sizes=SIZES, starts=3)
    engine = DreamEngine(world.m, world.spec, backend=backend)
    hold_to_rollout(engine, world, DREAMS[backend], count, seed=(5 << 32) + 1, temperature=0.9, done="sample")


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize(
    ("features", "squash", "hidden_units", "temperature", "reward"),
    [
        ("z", "argmax", 0, 0.0, "predicted"),
        ("zhc", "identity", 6, 1.0, "survival"),
        ("zh", "tanh", 3, 1.15, "predicted"),
    ],
)
def test_so_do_controllers_of_every_shape(backend, features, squash, hidden_units, temperature, reward):
    if backend == "cpp" and MODULE is None:
        pytest.skip(REASON)
    world = World("per_dim", features, squash, hidden_units, SIZES)
    engine = DreamEngine(world.m, world.spec, backend=backend)
    hold_to_rollout(engine, world, DREAMS[backend], 4, temperature=temperature, reward=reward)


@pytest.mark.parametrize("precision", list(DTYPES))
def test_so_do_those_of_every_precision_of_torch(precision):
    world = World(sizes=SIZES)
    hold_to_rollout(DreamEngine(world.m, world.spec, backend="torch", precision=precision), world, 1, 17)


@needs_core
@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("precision", CppBackend.PRECISIONS)
@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_so_do_those_of_every_level_and_precision_of_the_core(isa, precision, mixture, monkeypatch):
    monkeypatch.setenv("WM_ENGINE_ISA", isa)
    world = World(mixture, sizes=(6, 2, 37, 3), squash="tanh", starts=3)
    engine = DreamEngine(world.m, world.spec, backend="cpp", precision=precision, num_threads=3)
    # Tiles of a register, of AMX (16) and of a thread (48), filled in part and whole, and several threads'.
    for count in (1, 7, 16, 49, 200):
        hold_to_rollout(engine, world, 1, count, done="sample")


def test_so_do_those_of_another_kind_of_world_model():
    generator = torch.Generator().manual_seed(0)
    m = LinearWorld(2, 3)
    for value in m.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    world = World()
    world.params, world.starts = torch.randn(1, 9, generator=generator), Starts(torch.randn(4, 2, generator=generator))
    engine = DreamEngine(m, ControllerSpec(2, 1, 3, "z", "argmax"))
    assert engine.backend == "torch"
    hold_to_rollout(engine, world, 1, 16, done="sample")


@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_a_population_acts_as_it_does_in_a_rollout(backend):
    if backend == "cpp" and MODULE is None:
        pytest.skip(REASON)
    world = World(candidates=7, starts=2)
    engine = DreamEngine(world.m, world.spec, backend=backend)
    want = engine.rollout(world.params, world.starts, episodes=2, max_steps=1, record=True).actions
    features = torch.cat([world.starts.z, world.starts.h], 1).expand(7, -1, -1)
    assert torch.equal(engine.act(world.params, features), want[0])


def test_a_seed_begins_all_lanes_again():
    world = World()
    lanes = DreamEngine(world.m, world.spec).lanes(world.starts, 3, seed=4)
    actions = torch.zeros(3, 3)
    lanes.step(actions)
    first = lanes.state.z.clone()
    lanes.next(np.array([True, False, False]))
    assert (lanes.episode.tolist(), lanes.steps.tolist()) == ([3, 1, 2], [0, 1, 1])
    lanes.restart(5)
    lanes.step(actions)
    assert not torch.equal(lanes.state.z, first)
    lanes.restart(4)
    lanes.step(actions)
    assert torch.equal(lanes.state.z, first)


def test_lanes_with_states_that_are_not_finite_have_failed_and_touch_no_other():
    for backend in ("torch", *(["cpp"] if MODULE else [])):
        world = World()
        lanes = DreamEngine(world.m, world.spec, backend=backend).lanes(world.starts, 4)
        well = DreamEngine(world.m, world.spec, backend=backend).lanes(world.starts, 4)
        lanes.state.h[2] = torch.nan
        got, want = (each.step(torch.zeros(4, 3)) for each in (lanes, well))
        assert got.failed.tolist() == [False, False, True, False]
        assert torch.equal(got.reward[[0, 1, 3]], want.reward[[0, 1, 3]])


def test_bad_arguments_are_refused_in_words():
    world = World()
    engine = DreamEngine(world.m, world.spec, backend="torch")
    lanes = engine.lanes(world.starts, 2)
    with pytest.raises(ValueError, match=r"actions must have shape \[2, A\], but had \[3, 3\]"):
        lanes.step(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="count must be at least 1, but was 0"):
        engine.lanes(world.starts, 0)
    with pytest.raises(ValueError, match="done must be one of 'threshold', 'sample', but was 'never'"):
        engine.lanes(world.starts, 1, done="never")
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\*\*64\)"):
        lanes.restart(1 << 64)
    with pytest.raises(ValueError, match=r"features must have shape \[3, E, 14\], but had \[3, 1, 13\]"):
        engine.act(world.params, torch.zeros(3, 1, 13))
    several = DreamEngine(world.m, world.spec, devices=["cpu", "cpu"], backend="torch")
    with pytest.raises(ValueError, match="lanes are stepped on one device, but devices were cpu, cpu"):
        several.lanes(world.starts, 1)


def test_the_triton_backend_says_that_it_steps_no_lanes():
    entry = next(entry for entry in BACKENDS if entry.name == "triton")
    if entry.missing() is not None:
        pytest.skip(str(entry.missing()))
    world = World()
    assert not entry.steps_lanes
    with pytest.raises(ValueError, match="'triton' dreams whole rollouts alone: make the engine with backend='torch'"):
        DreamEngine(world.m, world.spec, backend="triton").lanes(world.starts, 1)


@needs_core
def test_the_core_checks_what_it_is_handed():
    dream = CppBackend(World().m, World().spec, torch.device("cpu"), "fp32", 1)._dream
    state = {"z": np.zeros((2, 5), np.float32), **{name: np.zeros((2, 9), np.float32) for name in "hc"}}
    words = {name: np.zeros(2, np.uint32) for name in ("episode", "step")}
    good = state | words | {"actions": np.zeros((2, 3), np.float32)}
    dream.step(**good)
    locked = np.zeros((2, 5), np.float32)
    locked.flags.writeable = False
    for name, value, error, message in [
        ("z", np.zeros((2, 5)), TypeError, r"z must be a float32 array of shape \[N, 5\], but was float64"),
        ("z", np.zeros((4, 5), np.float32)[::2], ValueError, "z must be contiguous"),
        ("z", locked, ValueError, "z must be writeable"),
        ("h", np.zeros((3, 9), np.float32), ValueError, r"h must have shape \[2, 9\], but had \[3, 9\]"),
        ("actions", np.zeros((2, 2), np.float32), ValueError, r"actions must have shape \[2, 3\]"),
        ("episode", np.zeros(2, np.int64), TypeError, r"episode must be a uint32 array"),
        ("step", np.zeros(1, np.uint32), ValueError, r"step must have shape \[2\], but had \[1\]"),
    ]:
        with pytest.raises(error, match=message):
            dream.step(**good | {name: value})
    with pytest.raises(ValueError, match="as many lanes for each of the 3 controllers, but held 2"):
        dream.act(params=np.zeros((3, World().spec.num_params), np.float32), **state)


@needs_core
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_so_do_those_of_ensembles_and_of_residual_models(backend):
    world, other = (World(sizes=SIZES, starts=3, residual=True) for _ in range(2))
    other.m.state_dict()["head.bias"] += 0.3
    m = Ensemble([world.m, other.m])
    world.starts = Starts(world.starts.z, *(torch.cat([part, -part], 1) for part in (world.starts.h, world.starts.c)))
    engine = DreamEngine(m, world.spec, backend=backend)
    want = engine.rollout(world.params[:1], world.starts, episodes=17, max_steps=STEPS, record=True)
    lanes = engine.lanes(world.starts, 17)
    for step in range(STEPS):
        before = lanes.state.z.clone()
        features = m.features(lanes.state, "zh").unsqueeze(0)
        lanes.step(engine.act(world.params[:1], features)[0])
        live = want.lengths[0] > step
        assert torch.equal(lanes.state.z[live], want.z[step, 0, live])
        assert not torch.equal(lanes.state.z, before)
