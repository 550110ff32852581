"""The dream as an environment of gymnasium: its checker, its vector environments and the engine's rollouts agree."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toys.learner import Tables
from toys.world_model import LinearWorld
from world import World

import wm_engine as wm
from wm_engine.core import core
from wm_engine.errors import MissingRunError
from wm_engine.models.identity import Identity
from wm_engine.models.vae import VAE
from wm_engine.policies.controller import Controllers
from wm_engine.run.config import make_config, resolve
from wm_engine.run.folder import RunFolder
from wm_engine.run.loop import run_loop
from wm_engine.run.published import LoadedRun

TOY = str(Path(__file__).parents[1] / "toys" / "toy.toml")
QUICK = ("drive.first_episodes=4", "judge.episodes=1", "evaluate.episodes=1", "evaluate.film=false")
BACKENDS = ["torch", *(["cpp"] if core()[0] else [])]


def driving(backend: str = "torch", ends: float = -1.0, **world_options: Any) -> tuple[LoadedRun, World]:
    """A run of pictures and pedals, of a small random M whose dreams end now and then; nothing is on the disk."""
    torch.manual_seed(0)
    world = World(sizes=(8, 3, 32, 3), squash=("tanh", "sigmoid", "sigmoid"), starts=3, **world_options)
    world.m.state_dict()["head.bias"][-1] += ends
    config = make_config({"env": {"task": "car_racing"}, "controller": {"dream_steps": 5, "temperature": 0.8}})
    policy = Controllers(world.spec, world.params, torch.zeros(1, dtype=torch.int64))
    return LoadedRun(RunFolder(Path("nowhere")), config, {"round": 0}, VAE(8), world.m, policy), world


def walking() -> tuple[LoadedRun, wm.Starts]:
    """A run of vectors and discrete actions, whose world model and policy are the toys."""
    generator = torch.Generator().manual_seed(0)
    m = LinearWorld(2, 3)
    for value in m.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    config, starts = resolve(TOY), wm.Starts(torch.randn(4, 2, generator=generator))
    policy = Tables(torch.zeros(1, 3, 3))
    return LoadedRun(RunFolder(Path("nowhere")), config, {"round": 0}, Identity(2), m, policy), starts


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("observation", ["z", "zh", "decoded"])
def test_gymnasiums_checker_finds_nothing(observation, backend):
    run, world = driving()
    rules = {"run": run, "starts": world.starts, "observation": observation, "backend": backend}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("wm_engine/Dream-v0", render_mode="rgb_array", **rules)
        check_env(env.unwrapped)
    env.reset(seed=0)
    picture = env.render()
    assert (picture.shape, picture.dtype) == ((64, 64, 3), np.uint8)
    seen, reward, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(seen)
    assert isinstance(reward, float)
    if observation == "decoded":
        assert np.array_equal(seen, env.render())


@pytest.mark.parametrize("observation", ["z", "zh", "decoded"])
def test_it_finds_nothing_in_discrete_dreams_of_another_kind_of_world_model(observation):
    run, starts = walking()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rules = {"run": run, "starts": starts, "observation": observation, "horizon": 6}
        env = gymnasium.make("wm_engine/Dream-v0", render_mode="rgb_array", **rules)
        check_env(env.unwrapped)
    assert env.action_space == gymnasium.spaces.Discrete(3)
    assert env.observation_space.shape == (2,)
    env.reset(seed=0)
    assert env.render().shape == (64, 16, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_driven_by_a_controller_it_is_the_engines_rollout(backend):
    run, world = driving(ends=1.0)
    env = wm.DreamVectorEnv(run, 17, starts=world.starts, horizon=7, backend=backend, autoreset_mode="DISABLED")
    out = env.engine.rollout(
        world.params[:1], world.starts, episodes=17, max_steps=7, temperature=0.8, seed=3, record=True
    )
    seen, _ = env.reset(seed=3)
    assert np.array_equal(seen, torch.cat([world.starts.z, world.starts.h], 1)[torch.arange(17) % 3])
    live = np.ones(17, bool)
    for step in range(7):
        actions = env.engine.act(world.params[:1], torch.from_numpy(seen)[None])[0].numpy()
        before = live.copy()
        if not live.all():  # nobody looks at these: any of their dreams will do
            env.reset(options={"reset_mask": ~live})
        seen, rewards, ended, truncated, _ = env.step(actions)
        assert np.array_equal(rewards[before].astype(np.float32), out.rewards[step, 0, before])
        assert np.array_equal(seen[before, :8], out.z[step, 0, before])
        assert np.array_equal((ended | truncated)[before], (out.lengths[0] == step + 1).numpy()[before])
        live &= ~(ended | truncated)
    assert not live.any()
    assert 1 < out.lengths.float().mean() < 7


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("kind", ["driving", "walking"])
def test_every_autoreset_mode_is_that_of_gymnasiums_own(mode, kind):
    """One lane beside gymnasium's vector of one DreamEnv: all that a step says is the same, ends included."""
    run, starts = walking() if kind == "walking" else (lambda r, w: (r, w.starts))(*driving(ends=1.0))
    rules: dict[str, Any] = {"starts": starts, "horizon": 4}
    own = wm.DreamVectorEnv(run, 1, autoreset_mode=mode, **rules)
    theirs = SyncVectorEnv([lambda: wm.DreamEnv(run, **rules)], autoreset_mode=mode)
    assert own.metadata["autoreset_mode"] == mode
    assert own.single_action_space == theirs.single_action_space
    assert (own.observation_space, own.action_space) == (theirs.observation_space, theirs.action_space)
    assert np.array_equal(own.reset(seed=5)[0], theirs.reset(seed=5)[0])
    own.action_space.seed(1)
    ends = set()
    for _ in range(30):
        actions = own.action_space.sample()
        a, b = own.step(actions), theirs.step(actions)
        for mine, other in zip(a[:4], b[:4], strict=True):
            assert np.array_equal(mine, other)
            assert mine.dtype == other.dtype
        assert a[4].keys() == b[4].keys()
        if "final_obs" in a[4]:
            assert np.array_equal(a[4]["final_obs"][0], b[4]["final_obs"][0])
            assert np.array_equal(a[4]["_final_obs"], b[4]["_final_obs"])
        over = a[2] | a[3]
        ends |= {name for name, flag in (("ended", a[2][0]), ("truncated", a[3][0])) if flag}
        if mode == AutoresetMode.DISABLED and over.any():
            again = own.reset(options={"reset_mask": over})[0], theirs.reset(options={"reset_mask": over})[0]
            assert np.array_equal(*again)
    assert "truncated" in ends
    assert kind == "walking" or "ended" in ends


def test_seeds_repeat_to_the_bit_and_resets_without_one_go_on():
    run, world = driving()
    rules = {"run": run, "starts": world.starts}

    def some(seed):
        env = gymnasium.make_vec("wm_engine/Dream-v0", num_envs=6, **rules)
        env.action_space.seed(0)
        seen = [env.reset(seed=seed)[0]]
        for _ in range(8):
            seen.append(env.step(env.action_space.sample())[0])
        seen.append(env.reset()[0])
        seen.append(env.step(env.action_space.sample())[0])
        return np.stack(seen)

    first = some(1)
    assert np.array_equal(first, some(1))
    assert not np.array_equal(first[1], some(2)[1])
    assert np.array_equal(some(None)[0], first[0]), "the first dreams of any seed begin from the same starts"
    assert not np.array_equal(some(None)[1], some(None)[1])


def test_rules_are_the_runs_own_unless_they_are_given():
    run, world = driving()
    own = wm.DreamVectorEnv(run, 2, starts=world.starts)
    assert (own.horizon, own._lanes._plan.temperature, own._lanes._plan.reward) == (5, 0.8, "predicted")
    other = wm.DreamVectorEnv(run, 2, starts=world.starts, temperature=0.0, horizon=3, reward="survival", done="sample")
    plan = other._lanes._plan
    assert (other.horizon, plan.temperature, plan.reward, plan.done) == (3, 0.0, "survival", "sample")
    other.reset(seed=0)
    assert other.step(other.action_space.sample())[1].tolist() == [1.0, 1.0]
    toy, starts = walking()
    assert wm.DreamVectorEnv(toy, 1, starts=starts).horizon == 30, "a real episode's, where a learner says nothing"


def test_actions_beyond_a_boxs_bounds_are_those_at_them():
    run, world = driving()
    rewards = []
    for action in ([9.0, -1.0, 5.0], [1.0, 0.0, 1.0]):
        env = wm.DreamVectorEnv(run, 1, starts=world.starts)
        env.reset(seed=0)
        rewards.append(env.step(np.array([action]))[1])
    assert np.array_equal(*rewards)


@pytest.mark.parametrize("observation", ["zh", "decoded"])
def test_a_dream_that_is_not_finite_is_truncated(observation):
    run, world = driving(ends=-100.0)
    rules = {"starts": world.starts, "observation": observation, "horizon": 9}
    env = wm.DreamVectorEnv(run, 3, autoreset_mode=AutoresetMode.SAME_STEP, **rules)
    env.reset(seed=0)
    env._lanes.state.h[1] = torch.nan
    seen, rewards, ended, truncated, infos = env.step(env.action_space.sample())
    assert (ended.tolist(), truncated.tolist(), rewards[1]) == ([False] * 3, [False, True, False], 0.0)
    assert infos["final_info"]["failed"].tolist() == [False, True, False]
    assert env.single_observation_space.contains(infos["final_obs"][1])
    assert all(env.single_observation_space.contains(each) for each in seen)
    one = wm.DreamEnv(run, **rules)
    one.reset(seed=0)
    one._dream._lanes.state.h[0] = torch.nan
    assert one.step(one.action_space.sample())[1:] == (0.0, False, True, {"failed": True})


def test_what_is_handed_out_is_not_changed_by_later_steps():
    run, starts = walking()
    env = wm.DreamVectorEnv(run, 2, starts=starts, observation="z")
    first, _ = env.reset(seed=0)
    kept = first.copy()
    env.step(np.array([0, 2]))
    assert np.array_equal(first, kept)


def test_bad_arguments_are_refused_in_words():
    run, world = driving()
    make = {"run": run, "starts": world.starts}
    for changes, error, message in [
        ({"observation": "h"}, ValueError, "observation must be one of 'z', 'zh', 'decoded', but was 'h'"),
        ({"num_envs": 0}, ValueError, "num_envs must be at least 1, but was 0"),
        ({"horizon": 0}, ValueError, "horizon must be at least 1, but was 0"),
        ({"temperature": -1.0}, ValueError, "temperature must be finite and at least 0, but was -1"),
        ({"reward": "money"}, ValueError, "reward must be one of 'task', 'predicted', 'survival', but was 'money'"),
        ({"done": "never"}, ValueError, "done must be one of 'threshold', 'sample', but was 'never'"),
        ({"autoreset_mode": "LATER"}, ValueError, "autoreset_mode must be one of NEXT_STEP, SAME_STEP, DISABLED"),
        ({"render_mode": "human"}, ValueError, "render_mode must be one of 'rgb_array', but was 'human'"),
        ({"starts": 0}, ValueError, "starts must be at least 1, but was 0"),
        ({"starts": "beginning"}, TypeError, "starts must be an int, but was 'beginning'"),
        ({"backend": "c++"}, ValueError, r"backend must be one of .*, but was 'c\+\+'"),
        ({"run": "nowhere"}, MissingRunError, "nowhere: no run folder"),
    ]:
        with pytest.raises(error, match=message):
            wm.DreamVectorEnv(**make | changes)
    with pytest.raises(TypeError, match=r"a dream takes observation, starts, .*, but was given tau"):
        gymnasium.make("wm_engine/Dream-v0", tau=1.0, **make)
    env = wm.DreamVectorEnv(num_envs=2, autoreset_mode="DISABLED", **make)
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset before step"):
        env.step(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="none has begun: call reset first"):
        env.reset(options={"reset_mask": np.ones(2, bool)})
    env.reset(seed=0)
    for actions, error, message in [
        (np.zeros((2, 2), np.float32), ValueError, r"actions must have shape \[2, 3\], but had \[2, 2\]"),
        (np.zeros((2, 3), np.int64), TypeError, "array of floating numbers, but its dtype was int64"),
        (np.full((2, 3), np.nan), ValueError, "actions must be finite, but lane 0's was not"),
    ]:
        with pytest.raises(error, match=message):
            env.step(actions)
    for reset, message in [
        ({"seed": 1 << 64}, r"seed must be in \[0, 2\*\*64\)"),
        ({"seed": 1, "options": {"reset_mask": np.ones(2, bool)}}, "give it, or reset_mask, but not both"),
        ({"options": {"reset_mask": [True, True]}}, r"reset_mask must be a bool array of shape \[2\]"),
        ({"options": {"reset_mask": np.zeros(2, bool)}}, "must hold at least one True"),
    ]:
        with pytest.raises(ValueError, match=message):
            env.reset(**reset)
    env._over[1] = True
    with pytest.raises(ValueError, match=r"lanes \[1\] have ended: reset them first"):
        env.step(np.zeros((2, 3), np.float32))


def test_discrete_actions_that_are_not_there_are_refused():
    run, starts = walking()
    env = wm.DreamVectorEnv(run, 2, starts=starts)
    env.reset(seed=0)
    with pytest.raises(TypeError, match="array of whole numbers, but its dtype was float64"):
        env.step(np.zeros(2))
    with pytest.raises(ValueError, match=r"actions must have shape \[2\], but had \[2, 3\]"):
        env.step(np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="actions must be from 0 to 2, but were from 0 to 3"):
        env.step(np.array([0, 3]))


def test_a_run_on_the_disk_is_dreamt_from_its_recorded_states(tmp_path):
    with pytest.raises(MissingRunError):
        gymnasium.make("wm_engine/Dream-v0", run=tmp_path)
    run_loop(tmp_path, resolve(TOY, ["rounds=1", *QUICK]))
    env = gymnasium.make("wm_engine/Dream-v0", run=str(tmp_path), starts=8, mid_fraction=0.0)
    loaded = wm.load_run(tmp_path)
    assert torch.equal(env.unwrapped.starts.z, loaded.starts(8, mid_fraction=0.0).z)
    assert not torch.equal(env.unwrapped.starts.z, loaded.starts(8).z)
    check_env(env.unwrapped)
    RunFolder(tmp_path).published.unlink()
    with pytest.raises(MissingRunError, match="nothing is published yet"):
        wm.DreamVectorEnv(tmp_path)


def test_the_environment_is_registered_without_torch():
    code = "import sys, wm_engine, gymnasium; assert 'torch' not in sys.modules; gymnasium.spec('wm_engine/Dream-v0')"
    subprocess.run([sys.executable, "-c", code], check=True)
