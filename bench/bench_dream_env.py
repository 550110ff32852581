"""The dream as an environment beside the engine's rollouts: steps a second of 1,024 dreams at the paper's size.

A rollout keeps its states in the core and computes its controllers' actions there; the environment is handed actions,
and hands out [z, h], rewards and ends as new arrays, copies included. No dream ends before its last step. Before
anything is timed, the environment is driven by a controller and must make the rollout's rewards, to the bit.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from wm_engine import DreamVectorEnv
from wm_engine.core import core
from wm_engine.machine import available_cpus
from wm_engine.models.vae import VAE
from wm_engine.policies.controller import Controllers
from wm_engine.run.config import make_config
from wm_engine.run.folder import RunFolder
from wm_engine.run.published import LoadedRun

from .workload import Setup, Workload, prepare

_LANES, _STEPS, _CHECKED = 1024, 40, 8
_ENGINES = [("cpp", "fp32"), ("cpp", "int8"), ("torch", "fp32")]
_MISSING = core()[1]


@cache
def _setup() -> Setup:
    torch.set_num_threads(available_cpus())
    return prepare(Workload(candidates=1, episodes=_LANES, steps=_STEPS, mixture="per_dim"))


def _run() -> LoadedRun:
    setup = _setup()
    config = make_config({"env": {"task": "car_racing"}})
    policy = Controllers(setup.spec, setup.params, torch.zeros(1, dtype=torch.int64))
    return LoadedRun(RunFolder(Path("nowhere")), config, {"round": 0}, VAE(setup.spec.latent), setup.m, policy)


@cache
def _env(backend: str, precision: str) -> DreamVectorEnv:
    if backend == "cpp" and _MISSING:
        pytest.skip(_MISSING)
    env = DreamVectorEnv(
        _run(), _LANES, starts=_setup().starts, temperature=1.0, horizon=_STEPS, backend=backend, precision=precision
    )
    out = env.engine.rollout(
        _setup().params, env.starts, episodes=_LANES, max_steps=_CHECKED, seed=1, record=True
    ).rewards[:, 0]
    seen, _ = env.reset(seed=1)
    for step in range(_CHECKED):
        seen, rewards, *_ = env.step(_actions(env, seen))
        assert np.array_equal(rewards.astype(np.float32), out[step].numpy())
    return env


def _actions(env: DreamVectorEnv, seen: np.ndarray) -> np.ndarray:
    return env.engine.act(_setup().params, torch.from_numpy(seen)[None])[0].numpy()


@pytest.mark.parametrize(("backend", "precision"), _ENGINES)
def test_rollout(backend: str, precision: str, time_rate) -> None:
    env, setup = _env(backend, precision), _setup()

    def run() -> None:
        env.engine.rollout(setup.params, setup.starts, episodes=_LANES, max_steps=_STEPS, seed=1)

    time_rate(run, _LANES * _STEPS, "steps", f"1,024 dreams, {backend} {precision}", "engine.rollout")


@pytest.mark.parametrize("driver", ["given actions", "driven by engine.act"])
@pytest.mark.parametrize(("backend", "precision"), _ENGINES)
def test_vector_env(backend: str, precision: str, driver: str, time_rate) -> None:
    env = _env(backend, precision)
    env.action_space.seed(0)
    given = [env.action_space.sample() for _ in range(_STEPS)]

    def run() -> None:
        seen, _ = env.reset(seed=1)
        for step in range(_STEPS):
            seen, *_ = env.step(given[step] if driver == "given actions" else _actions(env, seen))

    time_rate(run, _LANES * _STEPS, "steps", f"1,024 dreams, {backend} {precision}", f"DreamVectorEnv, {driver}")


def test_one_env(time_rate) -> None:
    """gymnasium.make's single dream, wrappers and all."""
    if _MISSING:
        pytest.skip(_MISSING)
    env = gymnasium.make("wm_engine/Dream-v0", run=_run(), starts=_setup().starts, horizon=_STEPS)
    action = env.action_space.sample()

    def run() -> None:
        env.reset(seed=1)
        for _ in range(_STEPS):
            env.step(action)

    time_rate(run, _STEPS, "steps", "one dream, cpp fp32", "gymnasium.make")
