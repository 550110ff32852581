"""Dreams of any policy in any kind of world model, beside the engine's and beside what the model says itself."""

from __future__ import annotations

import pytest
import torch
from checker import check
from models.drift import Drift
from world import World

from wm_engine import DreamEngine, Starts
from wm_engine.dream.imagination import imagine, world_state
from wm_engine.policies.controller import Controllers

STEPS = 12


def ending(mixture="per_dim", features="zh", starts=7):
    """A world whose dreams come to their end now and then."""
    world = World(mixture, features, starts=starts)
    world.m.state_dict()["head.bias"][-1] += {"shared": 0.7, "per_dim": 0.45}[mixture]
    return world


def dreamt(world, seed=5, temperature=1.0, **options):
    """Its first candidate's dream from each start."""
    count = len(world.starts)
    policy = Controllers(world.spec, world.params[:1], torch.zeros(count, dtype=torch.int64))
    return imagine(world.m, policy, world.starts, STEPS, temperature, seed, **options)


def engines(world, precision, seed=5, temperature=1.0, done="threshold"):
    engine = DreamEngine(world.m, world.spec, "cpu", "torch", precision)
    plan = {"episodes": len(world.starts), "max_steps": STEPS, "temperature": temperature, "seed": seed, "done": done}
    return engine.rollout(world.params[:1], world.starts, record=True, **plan)


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize("features", ["z", "zh", "zhc"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("done", ["threshold", "sample"])
def test_it_is_the_engines_dream_with_the_same_draws(mixture, features, temperature, done):
    world = ending(mixture, features)
    ours = dreamt(world, temperature=temperature, done=done)
    exact, peer = (engines(world, precision, temperature=temperature, done=done) for precision in ("fp64", "fp32"))
    lengths = exact.lengths[0]
    assert torch.equal(peer.lengths[0], lengths)
    assert ours.live.sum(0).tolist() == lengths.tolist()
    assert torch.equal(ours.z[0], world.starts.z)
    live = ours.live
    for name, value in (("z", ours.z[1:]), ("actions", ours.actions), ("rewards", ours.rewards)):
        references = (getattr(out, name)[:, 0][live] for out in (exact, peer))
        check(name, value[live], *references)
    check("returns", ours.returns(), exact.returns[0], peer.returns[0])


def test_some_of_these_dreams_end():
    lengths = engines(ending(), "fp32").lengths
    assert (lengths < STEPS).any()
    assert (lengths == STEPS).any()


def test_recorded_actions_lead_where_they_led():
    world = ending()
    first = dreamt(world)
    again = imagine(world.m, first.actions.__getitem__, world.starts, STEPS, 1.0, 5)
    for name in ("z", "actions", "rewards", "live"):
        assert torch.equal(getattr(again, name), getattr(first, name))
    other = imagine(world.m, lambda step: -first.actions[step], world.starts, STEPS, 1.0, 5)
    assert not torch.equal(other.z[1:], first.z[1:])


def test_equal_seeds_dream_alike_and_lanes_draw_apart():
    world = ending()
    one, same, other = (dreamt(world, seed) for seed in (5, 5, 6))
    assert torch.equal(one.z, same.z)
    assert not torch.equal(one.z[1:], other.z[1:])
    twins = Starts(*(part[:1].expand(7, -1).contiguous() for part in (world.starts.z, world.starts.h, world.starts.c)))
    policy = Controllers(world.spec, world.params[:1], torch.zeros(7, dtype=torch.int64))
    assert len(imagine(world.m, policy, twins, 1).z[1, :, 0].unique()) == 7


def test_a_lane_dreams_the_same_whoever_dreams_beside_it():
    world = ending(starts=16)
    whole = dreamt(world)
    few = Starts(*(part[:9] for part in (world.starts.z, world.starts.h, world.starts.c)))
    policy = Controllers(world.spec, world.params[:1], torch.zeros(9, dtype=torch.int64))
    part = imagine(world.m, policy, few, STEPS, 1.0, 5)
    exact = engines(world, "fp64")
    live = part.live
    check("z", part.z[1:][live], exact.z[:, 0, :9][live], whole.z[1:, :9][live])


def test_survival_makes_every_step_worth_1():
    world = ending()
    plain, survived = dreamt(world), dreamt(world, survival=True)
    assert torch.equal(survived.z, plain.z)
    assert (survived.rewards == 1.0).all()
    assert survived.returns().tolist() == survived.live.sum(0).tolist()


def test_what_comes_after_an_end_pays_nothing():
    drift = Drift(wall=3.5)
    starts = Starts(torch.tensor([[0.0, 0.0], [2.0, 0.0], [9.0, 0.0]]))
    dreams = imagine(drift, lambda step: torch.ones(3, 1), starts, 6)
    # One step to the right each: the wall is passed by the fourth, the second and the first step, which still pay.
    assert dreams.live.sum(0).tolist() == [4, 2, 1]
    assert dreams.returns().tolist() == [4.0, 2.0, 1.0]
    assert dreams.returns(3).tolist() == [3.0, 2.0, 1.0]
    assert dreams.returns().dtype == torch.float64


def test_what_a_model_says_beyond_an_end_spoils_no_return():
    """It has learnt nothing of what lies there, and may say anything."""
    drift = Drift(wall=1.5)
    actions = torch.tensor([[1.0], [1.0], [torch.inf], [torch.nan]])
    dreams = imagine(drift, lambda step: actions[step : step + 1], Starts(torch.zeros(1, 2)), 4)
    assert dreams.live[:, 0].tolist() == [True, True, False, False]
    assert not torch.isfinite(dreams.rewards[2:]).any()
    assert dreams.returns().tolist() == [2.0]


def test_another_kind_without_a_hidden_state_is_dreamt():
    drift = Drift(latent=3, action=2, spread=0.5)
    actions = torch.randn(4, 5, 2)
    starts = Starts(torch.randn(5, 3))
    still = imagine(drift, actions.__getitem__, starts, 4, temperature=0.0)
    moved = starts.z + actions[..., :1].double().cumsum(0)
    check("z", still.z[1:], moved, starts.z + actions[..., :1].cumsum(0))
    assert torch.equal(still.rewards, actions[..., 0])
    assert not torch.equal(imagine(drift, actions.__getitem__, starts, 4).z, still.z)


def test_a_policy_sees_the_features_it_names():
    drift, seen = Drift(hidden=1), []

    class Watching:
        features = "zhc"

        def act(self, features, lanes):
            seen.append((features.clone(), lanes.tolist()))
            return torch.full((len(lanes), 1), 0.5)

    imagine(drift, Watching(), Starts(torch.zeros(2, 2), torch.full((2, 1), 4.0), torch.full((2, 1), 1.0)), 3)
    assert [lanes for _, lanes in seen] == [[0, 1]] * 3
    assert [features[0].tolist() for features, _ in seen] == [
        [0.0, 0.0, 4.0, 1.0],
        [0.5, 0.5, 5.0, 1.5],
        [1.0, 1.0, 6.0, 2.0],
    ]


def test_missing_states_are_those_of_a_beginning():
    world = World(starts=3)
    state = world_state(world.m, Starts(world.starts.z.double()))
    assert state.z.dtype == torch.float32
    assert torch.equal(state.z, world.starts.z)
    assert not state.h.any()
    assert not state.c.any()
    assert torch.equal(world_state(world.m, world.starts).h, world.starts.h)
