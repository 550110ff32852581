"""Every backend against the oracle, and the properties that the contract promises of all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from checker import check
from kernel_device import device_of
from world import World

from wm_engine import ControllerSpec, DreamEngine, Starts
from wm_engine.dream import BACKENDS

SQUASHES = ["tanh", "sigmoid", "tanh01", "relu_tanh", "identity", "argmax", ("tanh", "sigmoid", "relu_tanh")]
NAMES = [entry.name for entry in BACKENDS]


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest) -> str:
    entry = next(entry for entry in BACKENDS if entry.name == request.param)
    reason = entry.missing()
    if reason is not None:
        pytest.skip(reason)
    return entry.name


def hold_to_oracle(world: World, backend: str, **plan: Any) -> None:
    want = world.want(**plan)
    exact = world.got("torch", "fp64", **plan)
    peer = world.got("torch", "fp32", **plan)
    got = world.got(backend, **plan)
    assert got.lengths.tolist() == want["lengths"].tolist()
    assert exact.lengths.tolist() == want["lengths"].tolist()
    for name in ("returns", "z", "actions", "rewards"):
        check(f"{name} in float64", getattr(exact, name), want[name], precision="fp32")
        check(name, getattr(got, name), want[name], getattr(peer, name))
    assert not got.failed.any()
    assert (got.returns.dtype, got.lengths.dtype, got.failed.dtype) == (torch.float32, torch.int32, torch.bool)


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize("features", ["z", "zh", "zhc"])
@pytest.mark.parametrize("squash", SQUASHES)
def test_one_step_is_the_oracles(backend: str, mixture: str, features: str, squash: Any) -> None:
    hold_to_oracle(World(mixture, features, squash), backend, episodes=5, max_steps=1, seed=3)


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize("hidden_units", [0, 6])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.15])
@pytest.mark.parametrize(("reward", "done"), [("predicted", "threshold"), ("survival", "sample")])
def test_short_rollouts_are_the_oracles(
    backend: str, mixture: str, hidden_units: int, temperature: float, reward: str, done: str
) -> None:
    world = World(mixture, hidden_units=hidden_units)
    plan = {"temperature": temperature, "reward": reward, "done": done, "seed": (7 << 32) + 1}
    hold_to_oracle(world, backend, episodes=3, max_steps=6, **plan)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (4, 2, 16, 5), (7, 4, 33, 2), (32, 3, 65, 5)])
@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_odd_sizes_are_the_oracles(backend: str, mixture: str, sizes: tuple[int, int, int, int]) -> None:
    world = World(mixture, squash="tanh", sizes=sizes, candidates=2, starts=3)
    plan = {"common_random_numbers": False, "first_candidate": 1000, "done": "sample"}
    hold_to_oracle(world, backend, episodes=4, max_steps=3, **plan)


@pytest.mark.parametrize(
    ("sizes", "features", "temperature"),
    [((1, 1, 1, 1), "z", 1.0), ((5, 3, 9, 3), "zh", 0.0), ((18, 3, 33, 2), "zhc", 0.8)],
)
@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_residual_dreams_are_the_oracles(
    backend: str, mixture: str, sizes: tuple[int, int, int, int], features: str, temperature: float
) -> None:
    world = World(mixture, features, squash="tanh", sizes=sizes, residual=True, candidates=2)
    hold_to_oracle(world, backend, episodes=3, max_steps=3, temperature=temperature, done="sample", seed=8)


def test_missing_h_and_c_are_zero(backend: str) -> None:
    world = World()
    world.starts = Starts(world.starts.z)
    hold_to_oracle(world, backend, episodes=3, max_steps=3)


@pytest.fixture
def population(backend: str) -> tuple[DreamEngine, torch.Tensor, Starts]:
    if backend == "triton":
        pytest.skip("minutes in Triton's interpreter; tests/kernels/test_kernel_rollouts.py asks it of fewer steps")
    world = World(sizes=(8, 3, 32, 5), candidates=37, starts=3)
    return DreamEngine(world.m, world.spec, backend=backend), world.params, world.starts


PLAN = {"episodes": 5, "max_steps": 40, "done": "sample", "seed": 11}


def test_other_seeds_and_episodes_give_other_numbers(population: Any) -> None:
    engine, params, starts = population
    first = Starts(starts.z[:1])
    plan = PLAN | {"done": "threshold"}
    returns = engine.rollout(params, first, **plan).returns
    assert not torch.isclose(returns[:, :1], returns[:, 1:]).all(dim=0).any()
    assert not torch.equal(engine.rollout(params, first, **plan | {"seed": 12}).returns, returns)


def test_common_random_numbers(population: Any) -> None:
    engine, params, starts = population
    same = params[:1].expand(20, -1).contiguous()
    shared = engine.rollout(same, starts, **PLAN).returns
    assert (shared == shared[:1]).all()
    own = engine.rollout(same, starts, common_random_numbers=False, **PLAN).returns
    assert len(set(own[:, 0].tolist())) == 20


def test_permuting_candidates_permutes_results(population: Any) -> None:
    engine, params, starts = population
    order = torch.randperm(len(params), generator=torch.Generator().manual_seed(0))
    whole, permuted = engine.rollout(params, starts, **PLAN), engine.rollout(params[order], starts, **PLAN)
    assert torch.equal(whole.returns[order], permuted.returns)
    assert torch.equal(whole.lengths[order], permuted.lengths)


@pytest.mark.parametrize("common", [True, False])
@pytest.mark.parametrize("shards", [[1, 36], [16, 16, 5], [37]])
def test_shards_make_the_whole(population: Any, common: bool, shards: list[int]) -> None:
    engine, params, starts = population
    plan = PLAN | {"common_random_numbers": common}
    whole = engine.rollout(params, starts, **plan)
    first = 0
    for size in shards:
        part = engine.rollout(params[first : first + size], starts, first_candidate=first, **plan)
        assert torch.equal(part.returns, whole.returns[first : first + size])
        first += size


def test_running_twice_is_equal_to_the_bit(population: Any) -> None:
    engine, params, starts = population
    once, again = (engine.rollout(params, starts, record=True, **PLAN) for _ in range(2))
    for name in ("returns", "lengths", "z", "actions", "rewards"):
        assert torch.equal(getattr(once, name), getattr(again, name))


def test_records_are_the_rollout(population: Any) -> None:
    engine, params, starts = population
    plain, shown = (engine.rollout(params, starts, record=record, **PLAN) for record in (False, True))
    assert plain.z is None
    assert torch.equal(plain.returns, shown.returns)
    steps = torch.arange(PLAN["max_steps"]).view(-1, 1, 1)  # type: ignore[call-overload]
    after = steps >= shown.lengths
    assert 0 < after.sum() < after.numel()
    for name in ("z", "actions", "rewards"):
        assert (getattr(shown, name)[after] == 0).all()
        assert (getattr(shown, name)[~after] != 0).any()
    torch.testing.assert_close(shown.rewards.sum(dim=0), shown.returns, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("squash", ["identity", "tanh", "argmax"])
def test_a_rollout_that_overflows_fails_alone(backend: str, squash: str) -> None:
    world = World(squash=squash, candidates=4)
    engine = DreamEngine(world.m, world.spec, device_of(backend), backend)
    plan = PLAN | {"max_steps": 10}
    sound = engine.rollout(world.params, world.starts, **plan)
    world.params[2] = 3e38
    out = engine.rollout(world.params, world.starts, **plan)
    assert out.failed.tolist() == [False, False, True, False]
    assert out.returns[2].isnan().any()
    for p in (0, 1, 3):
        assert torch.equal(out.returns[p], sound.returns[p])


def test_auto_takes_the_first_backend_that_is_here() -> None:
    world = World()
    first = next(entry.name for entry in BACKENDS if "cpu" in entry.devices and entry.missing() is None)
    assert DreamEngine(world.m, world.spec).backend == first
    assert DreamEngine(world.m, world.spec, precision="fp64").backend == "torch"


TOO_LARGE = torch.full((1, World().spec.num_params), 1e300, dtype=torch.float64)
BAD_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"params": torch.zeros(2, 5)}, ValueError, r"params must have shape \[P, \d+\], but had \[2, 5\]"),
    ({"params": "zeros"}, TypeError, "params must be a torch.Tensor"),
    ({"episodes": 0}, ValueError, "episodes must be at least 1, but was 0"),
    ({"episodes": 2.0}, TypeError, r"episodes must be an int, but was 2\.0"),
    ({"max_steps": 0}, ValueError, "max_steps must be at least 1, but was 0"),
    ({"max_steps": 1 << 31}, ValueError, "max_steps must be at most 2147483647, but was 2147483648"),
    ({"temperature": -0.1}, ValueError, r"temperature must be finite and at least 0, but was -0\.1"),
    ({"temperature": 1e39}, ValueError, r"temperature must be at most 3\.4028235e\+38, but was 1e\+39"),
    ({"temperature": float("nan")}, ValueError, "temperature must be finite"),
    ({"seed": -1}, ValueError, "seed must be at least 0, but was -1"),
    ({"seed": 1 << 64}, ValueError, "seed must be in"),
    ({"reward": "real"}, ValueError, "reward must be one of 'predicted', 'survival', but was 'real'"),
    ({"done": "never"}, ValueError, "done must be one of"),
    ({"first_candidate": 1 << 32}, ValueError, "32-bit counters"),
    ({"starts": torch.zeros(1, 5)}, TypeError, "starts must be a wm_engine.Starts, but was of type Tensor"),
    ({"common_random_numbers": "no"}, TypeError, "common_random_numbers must be True or False, but was 'no'"),
    ({"record": 1}, TypeError, "record must be True or False, but was 1"),
    (
        {"params": TOO_LARGE},
        ValueError,
        "params must be finite in float32",
    ),
    ({"starts": Starts(torch.zeros(1, 4))}, ValueError, r"starts\.z must have shape \[N, 5\], but had \[1, 4\]"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_CALLS)
def test_bad_arguments_are_named(backend: str, change: dict[str, Any], error: type[Exception], message: str) -> None:
    world = World()
    arguments: dict[str, Any] = {"params": world.params, "starts": world.starts, "episodes": 1, "max_steps": 1} | change
    with pytest.raises(error, match=message):
        DreamEngine(world.m, world.spec, device_of(backend), backend).rollout(**arguments)


def test_another_memory_or_controller_is_refused() -> None:
    world = World()
    with pytest.raises(TypeError, match=r"m must be a wm_engine\.WorldModel, but was of type str"):
        DreamEngine("m.safetensors", world.spec)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"c must be a wm_engine\.ControllerSpec, but was of type NoneType"):
        DreamEngine(world.m, None)  # type: ignore[arg-type]


def test_numpy_scalars_are_numbers(backend: str) -> None:
    world = World()
    engine = DreamEngine(world.m, world.spec, device_of(backend), backend)
    scalars: Any = (np.int64(2), np.int32(3), np.float32(1.0), np.uint64(7))
    one = engine.rollout(world.params, world.starts, *scalars)
    two = engine.rollout(world.params, world.starts, 2, 3, 1.0, 7)
    assert torch.equal(one.returns, two.returns)


def test_non_finite_params_and_empty_populations_are_refused(backend: str) -> None:
    world = World()
    engine = DreamEngine(world.m, world.spec, device_of(backend), backend)
    with pytest.raises(ValueError, match=r"params must have shape \[P, \d+\], but had \[0, "):
        engine.rollout(world.params[:0], world.starts, episodes=1, max_steps=1)
    world.params[0, 0] = torch.nan
    with pytest.raises(ValueError, match="params must be finite in float32, but 1 of its"):
        engine.rollout(world.params, world.starts, episodes=1, max_steps=1)


def test_bad_engines_are_refused() -> None:
    world = World()
    with pytest.raises(ValueError, match="the controller's latent must be the memory's, 5, but was 4"):
        DreamEngine(world.m, ControllerSpec(4, 9, 3))
    with pytest.raises(ValueError, match="backend must be one of 'auto'"):
        DreamEngine(world.m, world.spec, backend="numba")
    with pytest.raises(ValueError, match="precision must be one of"):
        DreamEngine(world.m, world.spec, precision="fp8")
    with pytest.raises(ValueError, match="backend 'cpp' runs on cpu, but device was 'cuda'"):
        DreamEngine(world.m, world.spec, device="cuda", backend="cpp")
    with pytest.raises(ValueError, match="backend 'cpp' has precisions"):
        DreamEngine(world.m, world.spec, backend="cpp", precision="fp64")
    world.m.state_dict()["head.bias"][0] = torch.inf
    with pytest.raises(ValueError, match=r"head\.bias has entries that are not"):
        DreamEngine(world.m, world.spec)


def test_bad_starts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"starts\.h must have shape \[2, H\], but had \[3, 4\]"):
        Starts(torch.zeros(2, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"starts\.z must be finite in float32, but 1 of its 4 entries were not"):
        Starts(torch.tensor([[0.0, 1.0, torch.nan, 0.0]]))
