"""The agent: V sees, M remembers, a policy acts, for many lanes at once."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from checker import check
from models.drift import Drift
from toy_env import ToyEnv

from wm_engine.models.ensemble import Ensemble
from wm_engine.models.identity import Identity
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.models.vae import VAE
from wm_engine.policies.controller import Controllers, ControllerSpec
from wm_engine.real.agent import Agent
from wm_engine.real.driving import drive

Z, H, A, P = 5, 7, 3, 4


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(3)
    return VAE(Z), MDNRNN(latent=Z, action=A, hidden=H)


def spec_of(features="zh", hidden_units=0):
    return ControllerSpec(latent=Z, hidden=H, action=A, features=features, hidden_units=hidden_units)


def population(spec, count=P):
    return torch.randn(count, spec.num_params, generator=torch.Generator().manual_seed(1))


def agent_of(parts, spec, params, candidates, **options):
    agent = Agent(*parts, Controllers(spec, params, torch.tensor(candidates)), **options)
    agent.begin(len(candidates))
    return agent


def random_frames(steps, lanes):
    return np.random.default_rng(2).integers(0, 256, (steps, lanes, 64, 64, 3), dtype=np.uint8)


def one_at_a_time(parts, spec, params, frames, dtype):
    """The actions [T, A] of one candidate on the frames of one lane, step by step as the paper's section 2.4 says."""
    vae, m = (copy.deepcopy(part).to(dtype) for part in parts)
    h, c = torch.zeros(1, H, dtype=dtype), torch.zeros(1, H, dtype=dtype)
    cell = torch.nn.LSTMCell(Z + A, H, dtype=dtype)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in m.lstm.state_dict().items()})
    actions, flat = [], params.to(dtype)
    for frame in frames:
        with torch.no_grad():
            z = vae.encode(torch.from_numpy(frame[None]))[0].to(dtype)
            x = torch.cat([z, h, c][: len(spec.features)], dim=1)[0]
            sizes = [spec.hidden_units, A] if spec.hidden_units else [A]
            offset = 0
            for layer, out in enumerate(sizes):
                weight = flat[offset : offset + out * len(x)].view(out, len(x))
                bias = flat[offset + out * len(x) : offset + out * (len(x) + 1)]
                offset += out * (len(x) + 1)
                x = weight @ x + bias
                if layer + 1 < len(sizes):
                    x = torch.tanh(x)
            action = torch.stack([torch.tanh(x[0]), torch.sigmoid(x[1]), torch.sigmoid(x[2])])
            h, c = cell(torch.cat([z, action[None]], dim=1), (h, c))
        actions.append(action)
    return torch.stack(actions)


@pytest.mark.parametrize(("features", "hidden_units"), [("z", 0), ("zh", 0), ("zhc", 0), ("zh", 6)])
def test_a_batch_acts_as_its_lanes_would_alone(parts, features, hidden_units):
    spec = spec_of(features, hidden_units)
    params, frames, candidates = population(spec), random_frames(5, 6), [2, 0, 3, 1, 2, 2]
    agent = agent_of(parts, spec, params, candidates)
    acted = np.stack([agent.act(frames[step]) for step in range(5)])
    assert acted.shape == (5, 6, A)
    assert acted.dtype == np.float32
    for lane, candidate in enumerate(candidates):
        exact, plain = (
            one_at_a_time(parts, spec, params[candidate], frames[:, lane], dtype)
            for dtype in (torch.float64, torch.float32)
        )
        check(f"lane {lane}", acted[:, lane], exact, plain)


def test_lanes_left_out_keep_their_state(parts):
    spec = spec_of("zhc")
    params, frames = population(spec), random_frames(6, 3)
    agent = agent_of(parts, spec, params, [0, 1, 2])
    agent.act(frames[0])
    for step in (1, 2):
        agent.act(frames[step][[2, 0]], np.array([2, 0]))
    late = agent.act(frames[5][[1]], np.array([1]))
    exact, plain = (one_at_a_time(parts, spec, params[1], frames[[0, 5], 1], d) for d in (torch.float64, torch.float32))
    check("the lane left out", late, exact[1:], plain[1:])
    four = agent.act(frames[5][[0]], np.array([0]))
    exact, plain = (
        one_at_a_time(parts, spec, params[0], np.stack([frames[0, 0], frames[1, 0], frames[2, 0], frames[5, 0]]), d)
        for d in (torch.float64, torch.float32)
    )
    # In steps 1 and 2 lane 0 was shown frames[step][0], as the second of two.
    check("the lane that went on", four, exact[3:], plain[3:])


def test_begin_forgets(parts):
    spec = spec_of()
    agent, frames = agent_of(parts, spec, population(spec), [0, 1]), random_frames(3, 2)
    first = [agent.act(f) for f in frames]
    agent.begin(2)
    assert all(np.array_equal(agent.act(f), a) for f, a in zip(frames, first, strict=True))
    agent.begin(1)
    assert agent.act(frames[0][:1]).shape == (1, A)


def test_another_policy_acts_on_the_same_v_and_m(parts):
    spec, frames = spec_of(), random_frames(2, 2)
    agent = agent_of(parts, spec, population(spec), [0, 1])
    agent.act(frames[0])
    swapped = agent.with_policy(Controllers(spec, population(spec), torch.tensor([1, 0])))
    swapped.begin(2)
    assert swapped.vision is agent.vision
    assert swapped.world is agent.world
    fresh = agent_of(parts, spec, population(spec), [1, 0])
    assert np.array_equal(swapped.act(frames[0]), fresh.act(frames[0]))
    continued = agent_of(parts, spec, population(spec), [0, 1])
    continued.act(frames[0])
    assert np.array_equal(agent.act(frames[1]), continued.act(frames[1])), "the first one's lanes were not touched"


def test_memory_hears_of_the_actions_that_were_taken(parts):
    spec = spec_of()
    frames = random_frames(2, 1)

    def second(perturb):
        agent = agent_of(parts, spec, population(spec), [0])
        first = agent.act(frames[0], perturb=perturb)
        return first, agent.act(frames[1])

    plain, after = second(None)
    same, after_same = second(lambda actions: actions.copy())
    moved, after_moved = second(lambda actions: np.zeros_like(actions))
    assert np.array_equal(plain, same)
    assert np.array_equal(after, after_same)
    assert (moved == 0).all()
    assert not np.array_equal(after, after_moved)


def test_a_candidate_that_is_not_finite_spoils_its_own_lanes_only(parts):
    spec = spec_of()
    sound, sick = population(spec), population(spec)
    sick[1] = float("nan")
    driven = []
    for params in (sound, sick):
        agent = agent_of(parts, spec, params, [0, 1, 2, 1])
        driven.append(drive(ToyEnv(4), agent, [5, 6, 7, 8]))
    assert [t.failed for t in driven[1]] == [False, True, False, True]
    for lane in (0, 2):
        assert np.array_equal(driven[0][lane].actions, driven[1][lane].actions)
    assert all((driven[1][lane].actions == 0).all() for lane in (1, 3))


def test_bf16_is_near(parts):
    spec = spec_of("z")
    frames, params = random_frames(1, 4)[0], population(spec)
    exact = agent_of(parts, spec, params, range(4))
    half = agent_of(parts, spec, params, range(4), precision="bf16")
    one, two = exact.act(frames), half.act(frames)
    assert not np.array_equal(one, two)
    check("bf16 actions", two, one, precision="bf16")


def test_vectors_are_seen_and_a_model_without_a_hidden_state_remembers_nothing():
    vision, spec = Identity(2), ControllerSpec(latent=2, hidden=1, action=1, features="z", squash="identity")
    vision.fit(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    params = torch.tensor([[1.0, 10.0, 0.5]])
    agent = Agent(vision, Drift(2, 1), Controllers(spec, params, torch.tensor([0, 0])))
    agent.begin(2)
    for _ in range(2):
        acted = agent.act(np.array([[1.0, 3.0], [2.0, 5.0]], np.float32))
        assert acted.tolist() == [[0.5], [11.5]]


def test_discrete_actions_are_one_hot(parts):
    spec = ControllerSpec(Z, H, A, "zh", "argmax")
    agent = agent_of(parts, spec, population(spec), range(4))
    acted = agent.act(random_frames(1, 4)[0])
    assert sorted(set(acted.flatten().tolist())) == [0.0, 1.0]
    assert (acted.sum(axis=1) == 1.0).all()


def test_bad_arguments_are_named(parts):
    spec = spec_of()
    params = population(spec)
    with pytest.raises(ValueError, match=f"world must have V's {Z + 1} latent dimensions, but had {Z}"):
        Agent(VAE(Z + 1), parts[1])
    with pytest.raises(ValueError, match="precision must be one of"):
        Agent(*parts, precision="fp8")
    agent = Agent(*parts)
    agent.begin(1)
    with pytest.raises(ValueError, match="no policy: give it one by with_policy"):
        agent.act(random_frames(1, 1)[0])
    with pytest.raises(ValueError, match="lanes must be at least 1"):
        agent.begin(0)
    agent = agent_of(parts, spec, params, [0, 1])
    for frames, lanes in ((random_frames(1, 3)[0], None), (random_frames(1, 2)[0], np.array([0]))):
        with pytest.raises(ValueError, match="observations must be one a lane"):
            agent.act(frames, lanes)


def test_an_ensembles_first_member_is_what_a_controller_sees():
    members = [MDNRNN(latent=Z, action=A, hidden=H) for _ in range(3)]
    spec, frames, vision = spec_of("zhc"), random_frames(3, 2), VAE(Z)
    acted = []
    for world in (Ensemble(members), members[0]):
        agent = agent_of((vision, world), spec, population(spec), [0, 1])
        acted.append([agent.act(frame) for frame in frames])
    assert all(np.array_equal(ours, alone) for ours, alone in zip(*acted, strict=True))
