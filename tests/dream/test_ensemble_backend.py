"""Dreams of an ensemble: every episode is its own member's, on every backend, whoever dreams beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checker import check
from fleets import PickledFleet
from kernel_device import device_of
from models.drift import Drift
from oracle import Oracle
from world import World

from wm_engine import MDNRNN, ControllerSpec, DreamEngine, Starts
from wm_engine.cluster import DreamRecipe, FleetEngine
from wm_engine.dream import BACKENDS, DreamOutput
from wm_engine.dream.imagination import imagine
from wm_engine.models.ensemble import Ensemble
from wm_engine.policies.controller import Controllers

FIELDS = ("returns", "lengths", "z", "actions", "rewards")
TRACKS = ("z", "actions", "rewards")


@pytest.fixture(params=["torch", "cpp", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    reason = next(entry for entry in BACKENDS if entry.name == request.param).missing()
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


class Worlds(World):
    """A world whose M is an ensemble of ``count``, with a start's h and c of each, and an oracle for each."""

    def __init__(self, count: int = 3, starts: int = 2, **options: Any) -> None:
        super().__init__(starts=starts, **options)
        generator = torch.Generator().manual_seed(7)
        one, spec = self.m, self.spec
        members, self.oracles = [], []
        for _ in range(count):
            member = MDNRNN(*self.sizes(), one.mixture, one.residual)
            for name, value in member.state_dict().items():
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(one.state_dict()[name] + 0.3 * value.shape[-1] ** -0.5 * noise)
            members.append(member)
            weights = {name: value.numpy() for name, value in member.state_dict().items()}
            shape = (*self.sizes(), one.mixture, spec.features, spec.squash, spec.hidden_units, one.residual)
            self.oracles.append(Oracle(weights, *shape))
        self.ensemble = Ensemble(members)
        H = one.hidden
        h, c = (torch.randn(starts, count * H, generator=generator) * 0.5 for _ in range(2))
        self.starts = Starts(self.starts.z, h, c)
        self.own = [Starts(self.starts.z, *(x[:, m * H : (m + 1) * H] for x in (h, c))) for m in range(count)]

    def sizes(self) -> tuple[int, int, int, int]:
        return self.m.latent, self.m.action, self.m.hidden, self.m.mixtures

    def dream(self, backend: str, precision: str = "fp32", params: torch.Tensor | None = None, **plan: Any) -> Any:
        engine = DreamEngine(self.ensemble, self.spec, device_of(backend), backend, precision)
        params = self.params if params is None and "actions" not in plan else params
        return engine.rollout(params, self.starts, **({"record": True} | plan))


@pytest.mark.parametrize(
    ("mixture", "features", "count", "episodes"),
    [("shared", "z", 3, 4), ("per_dim", "zh", 3, 5), ("shared", "zhc", 2, 3), ("per_dim", "z", 4, 3)],
)
def test_every_episode_is_its_members_oracles(
    backend: str, mixture: str, features: str, count: int, episodes: int
) -> None:
    world = Worlds(count, mixture=mixture, features=features, residual=features == "z", candidates=2)
    plan: dict[str, Any] = {"episodes": episodes, "max_steps": 2, "done": "sample", "seed": 3, "temperature": 0.8}
    plan |= {"common_random_numbers": features != "zh", "first_candidate": 4}
    peer, got = world.dream("torch", **plan), world.dream(backend, **plan)
    exact = world.dream("torch", "fp64", **plan)
    for number in range(min(count, episodes)):
        states = (world.own[number].z, world.own[number].h, world.own[number].c)
        want = world.oracles[number].rollout(world.params.numpy(), *(s.numpy() for s in states), **plan)  # type: ignore[union-attr]
        its = slice(number, None, count)
        assert got.lengths[:, its].tolist() == exact.lengths[:, its].tolist() == want["lengths"][:, its].tolist()
        check("returns", got.returns[:, its], want["returns"][:, its], peer.returns[:, its])
        for name in TRACKS:
            check(name, getattr(got, name)[:, :, its], want[name][:, :, its], getattr(peer, name)[:, :, its])
            check(f"{name} in float64", getattr(exact, name)[:, :, its], want[name][:, :, its], precision="fp32")
    assert not got.failed.any()


def test_an_episode_is_the_dream_of_its_member_alone(backend: str) -> None:
    world = Worlds(3)
    plan: dict[str, Any] = {"max_steps": 2, "done": "sample", "seed": 9}
    whole = world.dream(backend, episodes=7, **plan)
    for number, member in enumerate(world.ensemble.episode_models()):
        engine = DreamEngine(member, world.spec, device_of(backend), backend)
        alone = engine.rollout(world.params, world.own[number], episodes=7, record=True, **plan)
        for name in FIELDS:
            dim = 2 if name in TRACKS else 1
            its = torch.arange(number, 7, 3)
            ours, theirs = (getattr(out, name).index_select(dim, its) for out in (whole, alone))
            assert torch.equal(ours, theirs), name


def test_an_ensemble_of_one_is_that_one(backend: str) -> None:
    world = Worlds(1)
    plan: dict[str, Any] = {"episodes": 3, "max_steps": 2, "record": True}
    member = world.ensemble.episode_models()[0]
    alone = DreamEngine(member, world.spec, device_of(backend), backend).rollout(world.params, world.starts, **plan)
    for name in FIELDS:
        assert torch.equal(getattr(world.dream(backend, **plan), name), getattr(alone, name))


@pytest.mark.parametrize("common", [True, False])
def test_shards_and_devices_make_the_whole(backend: str, common: bool) -> None:
    world = Worlds(3, candidates=5)
    plan: dict[str, Any] = {"episodes": 4, "max_steps": 2, "common_random_numbers": common, "seed": 5}
    whole = world.dream(backend, **plan)
    for first, last in ((0, 1), (1, 5)):
        part = world.dream(backend, params=world.params[first:last], first_candidate=first, **plan)
        assert torch.equal(part.returns, whole.returns[first:last])
        assert torch.equal(part.z, whole.z[:, first:last])
    if backend == "triton":
        return
    two = DreamEngine(world.ensemble, world.spec, devices=["cpu", "cpu"], backend=backend)
    assert torch.equal(two.rollout(world.params, world.starts, **plan).returns, whole.returns)
    fleet = FleetEngine(DreamRecipe(world.ensemble, world.spec, "cpu", backend, "fp32"), PickledFleet(2))
    assert torch.equal(fleet.rollout(world.params, world.starts, **plan).returns, whole.returns)


def test_given_actions_are_dreamt_by_members_too(backend: str) -> None:
    world = Worlds(2)
    actions = torch.tanh(torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(1)))
    plan: dict[str, Any] = {"episodes": 3, "max_steps": 2, "seed": 2}
    got: DreamOutput = world.dream(backend, actions=actions, **plan)
    peer: DreamOutput = world.dream("torch", actions=actions, **plan)
    for number, its in ((0, slice(0, None, 2)), (1, slice(1, None, 2))):
        states = (world.own[number].z, world.own[number].h, world.own[number].c)
        oracle = world.oracles[number]
        want = oracle.rollout(world.params.numpy(), *(s.numpy() for s in states), actions=actions.numpy(), **plan)  # type: ignore[union-attr]
        check("returns", got.returns[:, its], want["returns"][:, its], peer.returns[:, its])


def test_any_policys_dreams_are_the_engines() -> None:
    world = Worlds(3, starts=7, features="zhc")
    policy = Controllers(world.spec, world.params[:1], torch.zeros(7, dtype=torch.int64))
    ours = imagine(world.ensemble, policy, world.starts, 6, 1.0, 5)
    plan: dict[str, Any] = {"params": world.params[:1], "episodes": 7, "max_steps": 6, "seed": 5}
    exact, peer = (world.dream("torch", precision, **plan) for precision in ("fp64", "fp32"))
    assert ours.live.sum(0).tolist() == exact.lengths[0].tolist()
    live = ours.live
    for name, value in (("z", ours.z[1:]), ("actions", ours.actions), ("rewards", ours.rewards)):
        check(name, value[live], *(getattr(out, name)[:, 0][live] for out in (exact, peer)))


def test_members_of_any_kind_are_dreamt_in_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    members = [Drift(3, 2, 1, spread=0.5, wall=7.0) for _ in range(2)]
    for member in members:
        for value in member.state_dict().values():
            value.copy_(torch.rand(value.shape, generator=generator))
    spec = ControllerSpec(3, 1, 2, "z", "tanh")
    params, starts = torch.randn(2, spec.num_params, generator=generator), Starts(torch.zeros(1, 3))
    engine = DreamEngine(Ensemble(members), spec)
    assert engine.backend == "torch"
    whole = engine.rollout(params, starts, episodes=4, max_steps=3)
    for number, member in enumerate(members):
        alone = DreamEngine(member, spec).rollout(params, starts, episodes=4, max_steps=3)
        assert torch.equal(whole.returns[:, number::2], alone.returns[:, number::2])
    with pytest.raises(ValueError, match="it dreams MDN-RNNs alone, and this world model is a Drift"):
        DreamEngine(Ensemble(members), spec, backend="cpp")


def test_starts_of_another_number_of_members_are_refused() -> None:
    world = Worlds(3)
    engine = DreamEngine(world.ensemble, world.spec, backend="torch")
    with pytest.raises(ValueError, match=r"starts\.h must have shape \[2, 27\], but had \[2, 9\]"):
        engine.rollout(world.params, world.own[0], episodes=1, max_steps=1)
