"""Every stage of the pipeline on real CarRacing: items a second, and its share of a run of the ``quick`` preset.

The amounts are small and the models fresh: rates do not depend on what was learnt. Each stage's result is checked for
what can be checked of it before its speed is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from wm_engine import DreamEngine
from wm_engine.agent import Agent
from wm_engine.collect import collect
from wm_engine.config import Config, resolve
from wm_engine.controller import ControllerSpec
from wm_engine.dream.starts import recorded_starts
from wm_engine.evaluate import EvaluateSettings, evaluate_agent
from wm_engine.machine import available_cpus
from wm_engine.memory.model import MDNRNN
from wm_engine.memory.training import train_memory
from wm_engine.records import Recorder
from wm_engine.rollouts import RolloutStore
from wm_engine.runs import Checkpoints
from wm_engine.vision.latents import Latents, encode_store
from wm_engine.vision.model import VAE
from wm_engine.vision.training import train_vision

_GROUP = "pipeline, cpu"
_EPISODES, _STEPS = 16, 100
_TRAINING_STEPS = 20
_ROUNDS = 3


@pytest.fixture(scope="module")
def config() -> Config:
    torch.set_num_threads(available_cpus())
    return resolve("quick")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def recorder(folder: Path) -> Iterator[Recorder]:
    with Recorder(folder / "metrics") as recorder:
        yield recorder


def _collect(config: Config, path: Path) -> RolloutStore:
    store = RolloutStore.open(path)
    collect(store, config.env, config.collect.model_copy(update={"episodes": _EPISODES, "max_steps": _STEPS}), seed=0)
    return store


@pytest.fixture(scope="module")
def store(config: Config, folder: Path) -> RolloutStore:
    return _collect(config, folder / "rollouts")


@pytest.fixture(scope="module")
def latents(config: Config, folder: Path, store: RolloutStore) -> Latents:
    return encode_store(VAE(config.vision.latent), store, folder / "latents")


def _m(config: Config) -> MDNRNN:
    return MDNRNN(config.vision.latent, 3, config.memory.hidden, config.memory.mixtures, config.memory.mixture)


def test_collect(config: Config, tmp_path: Path, time_rate) -> None:
    stores: list[RolloutStore] = []

    def run() -> None:
        stores.append(_collect(config, tmp_path / f"rollouts{len(stores)}"))

    run()
    assert len(stores[0]) == _EPISODES
    assert np.ptp(stores[0].read(0).frames) > 0
    wanted = config.collect.episodes * config.collect.max_steps
    time_rate(run, stores[0].steps, "frames", _GROUP, "collect", _ROUNDS, whole=wanted)


def test_train_vision(config: Config, tmp_path: Path, store: RolloutStore, recorder: Recorder, time_rate) -> None:
    settings = config.vision.model_copy(update={"steps": _TRAINING_STEPS, "evaluate_every": 10**6})
    runs = iter(range(100))

    def run() -> VAE:
        return train_vision(store, settings, 0, Checkpoints(tmp_path / str(next(runs))), recorder)

    assert all(bool(torch.isfinite(value).all()) for value in run().state_dict().values())
    amount, wanted = _TRAINING_STEPS * settings.batch_size, config.vision.steps * settings.batch_size
    time_rate(run, amount, "frames", _GROUP, "train V", _ROUNDS, whole=wanted)


def test_encode(config: Config, tmp_path: Path, store: RolloutStore, time_rate) -> None:
    vae = VAE(config.vision.latent)
    runs = iter(range(100))

    def run() -> Latents:
        return encode_store(vae, store, tmp_path / str(next(runs)))

    with torch.inference_mode():
        mu, _ = vae.encode(torch.from_numpy(store.read(3).frames))
    error = (run().read(3).mu - mu).abs().max()
    assert error < 0.05 * mu.abs().max()
    frames = store.steps + len(store)
    wanted = config.collect.episodes * (config.collect.max_steps + 1)
    time_rate(run, frames, "frames", _GROUP, "encode", _ROUNDS, whole=wanted)


def test_train_memory(config: Config, tmp_path: Path, latents: Latents, recorder: Recorder, time_rate) -> None:
    settings = config.memory.model_copy(update={"steps": _TRAINING_STEPS, "evaluate_every": 10**6})
    runs = iter(range(100))

    def run() -> MDNRNN:
        return train_memory(latents, settings, 0, Checkpoints(tmp_path / str(next(runs))), recorder)

    assert all(bool(torch.isfinite(value).all()) for value in run().state_dict().values())
    each = settings.batch_size * settings.sequence_length
    time_rate(run, _TRAINING_STEPS * each, "steps", _GROUP, "train M", _ROUNDS, whole=config.memory.steps * each)


def test_dream(config: Config, latents: Latents, time_rate) -> None:
    settings, m = config.controller, _m(config)
    with torch.no_grad():
        m.head.bias[-1] = -20.0
        m.head.weight[-1] = 0.0
    spec = ControllerSpec(m.latent, m.hidden, m.action, settings.features)
    params = 0.1 * torch.randn(settings.population, spec.num_params, generator=torch.Generator().manual_seed(0))
    starts = recorded_starts(m, latents, settings.starts, settings.mid_fraction, 0)
    engine = DreamEngine(m, spec, backend=config.dream.backend, precision=config.dream.precision)
    short = {"episodes": settings.dream_episodes, "max_steps": 8}
    reference = DreamEngine(m, spec, backend="torch", precision="fp64").rollout(params, starts, **short)
    difference = (engine.rollout(params, starts, **short).returns - reference.returns).abs()
    assert difference.median() < 1e-4 * reference.returns.abs().max()

    def run() -> None:
        engine.rollout(params, starts, settings.dream_episodes, settings.dream_steps)

    amount = settings.population * settings.dream_episodes * settings.dream_steps
    wanted = amount * settings.dream_generations
    time_rate(run, amount, "steps", _GROUP, f"dream ({engine.backend})", _ROUNDS, whole=wanted)


def test_evaluate(config: Config, time_rate) -> None:
    m = _m(config)
    spec = ControllerSpec(m.latent, m.hidden, m.action)
    params = 0.1 * torch.randn(1, spec.num_params, generator=torch.Generator().manual_seed(0))
    agent = Agent(VAE(m.latent), m, spec, params, precision=config.vision.precision)
    settings = EvaluateSettings(episodes=2, max_steps=_STEPS)

    def run() -> int:
        scores = evaluate_agent(agent, config.env, settings)
        assert np.isfinite(scores.returns).all()
        return int(scores.lengths.sum())

    # The random policy drives the same tracks as the controller.
    wanted = 2 * config.evaluate.episodes * config.evaluate.max_steps
    time_rate(run, run(), "frames", _GROUP, "evaluate", _ROUNDS, whole=wanted)
