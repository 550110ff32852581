"""Actions in the controllers' place: every backend against the oracle, and beside controllers that do the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checker import check
from fleets import PickledFleet
from kernel_device import device_of
from world import World

from wm_engine import DreamEngine, Starts
from wm_engine.cluster import DreamRecipe, FleetEngine
from wm_engine.dream import BACKENDS, DreamOutput

FIELDS = ("returns", "lengths", "z", "actions", "rewards")


@pytest.fixture(params=["torch", "cpp", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    reason = next(entry for entry in BACKENDS if entry.name == request.param).missing()
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


def some_actions(world: World, steps: int) -> torch.Tensor:
    """Actions [P, steps, A] such as the squash puts out."""
    shape = (len(world.params), steps, world.spec.action)
    raw = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    if world.spec.squash == "argmax":
        return torch.nn.functional.one_hot(raw.argmax(-1), world.spec.action).float()
    return torch.tanh(raw)


def dream(
    world: World, backend: str, actions: torch.Tensor | None = None, precision: str = "fp32", **plan: Any
) -> DreamOutput:
    engine = DreamEngine(world.m, world.spec, device_of(backend), backend, precision)
    params = world.params if actions is None else None
    return engine.rollout(params, world.starts, actions=actions, **({"record": True} | plan))


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize(
    ("sizes", "features", "squash", "hidden_units"),
    [
        ((5, 3, 9, 3), "zh", ("tanh", "sigmoid", "relu_tanh"), 0),
        ((1, 1, 1, 1), "z", "identity", 0),
        ((7, 4, 33, 2), "zhc", "argmax", 6),
        ((17, 3, 33, 2), "zh", "tanh", 0),
    ],
)
def test_given_actions_are_the_oracles(
    backend: str, mixture: str, sizes: tuple[int, int, int, int], features: str, squash: Any, hidden_units: int
) -> None:
    world = World(mixture, features, squash, hidden_units, sizes)
    plan: dict[str, Any] = {"episodes": 3, "max_steps": 3, "temperature": 0.8, "seed": 5, "done": "sample"}
    plan |= {"common_random_numbers": False, "first_candidate": 7}
    actions = some_actions(world, 3)
    want = world.want(actions=actions.numpy(), **plan)
    peer = dream(world, "torch", actions, **plan)
    exact = dream(world, "torch", actions, "fp64", **plan)
    got = dream(world, backend, actions, **plan)
    assert got.lengths.tolist() == exact.lengths.tolist() == want["lengths"].tolist()
    for name in ("returns", "z", "actions", "rewards"):
        check(f"{name} in float64", getattr(exact, name), want[name], precision="fp32")
        check(name, getattr(got, name), want[name], getattr(peer, name))
    assert not got.failed.any()


@pytest.mark.parametrize("squash", ["identity", "argmax"])
def test_controllers_that_do_the_same_dream_the_same(backend: str, squash: str) -> None:
    world = World(squash=squash, candidates=2)
    actions = some_actions(world, 1)
    world.params.zero_()
    world.params[:, -world.spec.action :] = actions[:, 0]  # the biases
    plan: dict[str, Any] = {"episodes": 3, "max_steps": 2, "done": "sample"}
    closed, opened = dream(world, backend, **plan), dream(world, backend, actions.expand(-1, 2, -1), **plan)
    for name in FIELDS:
        assert torch.equal(getattr(closed, name), getattr(opened, name)), name


def test_a_dream_lasts_no_longer_than_its_actions(backend: str) -> None:
    world = World()
    actions = some_actions(world, 3)
    plan: dict[str, Any] = {"episodes": 2, "seed": 1}
    whole, short = dream(world, backend, actions, **plan), dream(world, backend, actions, max_steps=2, **plan)
    assert whole.z is not None
    assert short.z is not None
    assert (len(whole.z), len(short.z)) == (3, 2)
    assert torch.equal(short.z, dream(world, backend, actions[:, :2], **plan).z)  # type: ignore[arg-type]
    assert int(whole.lengths.max()) == 3


def test_shards_of_actions_make_the_whole(backend: str) -> None:
    world = World(candidates=5)
    actions = some_actions(world, 2)
    plan: dict[str, Any] = {"episodes": 3, "done": "sample", "common_random_numbers": False, "seed": 4}
    whole, plain = dream(world, backend, actions, **plan), dream(world, backend, actions, record=False, **plan)
    assert plain.z is None
    assert torch.equal(plain.returns, whole.returns)
    for first, last in ((0, 1), (1, 5)):
        part = dream(world, backend, actions[first:last], first_candidate=first, **plan)
        assert torch.equal(part.returns, whole.returns[first:last])
        assert torch.equal(part.lengths, whole.lengths[first:last])


def test_a_fleet_shares_actions_out() -> None:
    world = World(candidates=5)
    actions = some_actions(world, 3)
    plan: dict[str, Any] = {"episodes": 2, "common_random_numbers": False}
    fleet = FleetEngine(DreamRecipe(world.m, world.spec, "cpu", "torch", "fp32"), PickledFleet(3))
    shared = fleet.rollout(starts=world.starts, actions=actions, **plan)
    assert torch.equal(shared.returns, dream(world, "torch", actions, **plan).returns)


NOT_FINITE = torch.full((3, 2, 3), torch.nan)
BAD_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"params": torch.zeros(3, 45)}, TypeError, "params must be None where actions are given"),
    ({"actions": None}, TypeError, r"params must be a torch\.Tensor of shape \[P, 45\], but was NoneType"),
    ({"actions": torch.zeros(3, 2)}, ValueError, r"actions must have shape \[P, T, 3\], but had \[3, 2\]"),
    ({"actions": torch.zeros(3, 0, 3)}, ValueError, r"actions must have shape \[P, T, 3\], but had \[3, 0, 3\]"),
    ({"actions": torch.zeros(3, 2, 4)}, ValueError, r"actions must have shape \[P, T, 3\], but had \[3, 2, 4\]"),
    ({"actions": torch.zeros(3, 2, 3).long()}, TypeError, r"actions must be a floating tensor, but its dtype was"),
    ({"actions": NOT_FINITE}, ValueError, "actions must be finite in float32, but 18 of its 18 entries were not"),
    ({"max_steps": 0}, ValueError, "max_steps must be at least 1, but was 0"),
    ({"starts": None}, TypeError, r"starts must be a wm_engine\.Starts, but was of type NoneType"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_CALLS)
def test_bad_calls_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    world = World()
    arguments = {"actions": torch.zeros(3, 2, 3), "starts": Starts(torch.zeros(1, 5))} | change
    with pytest.raises(error, match=message):
        DreamEngine(world.m, world.spec, backend="torch").rollout(**arguments)
    fleet = FleetEngine(DreamRecipe(world.m, world.spec, "cpu", "torch", "fp32"), PickledFleet(2))
    with pytest.raises(error, match=message):
        fleet.rollout(**arguments)
