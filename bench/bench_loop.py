"""The parts of a round on real CarRacing: items a second, and their shares of a run of the ``quick`` preset.

The amounts are small and the models fresh: rates do not depend on what was learnt. Each part's result is checked for
what can be checked of it before its speed is given. What a whole run has of each is the most that it can have: episodes
that end early, and latents that nobody asks for, make it less.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from wm_engine import DreamEngine
from wm_engine.data.replay import draw_frames
from wm_engine.data.sequences import cut_windows
from wm_engine.machine import available_cpus
from wm_engine.models.latents import LatentCache
from wm_engine.models.trainer import Trainer
from wm_engine.real.agent import Agent
from wm_engine.real.driving import EpisodeBatch, PolicyDriver, Runners
from wm_engine.real.scoring import EvaluateSettings, score_policy
from wm_engine.recorder import Recorder
from wm_engine.rng import keyed_generator
from wm_engine.run.config import Config, resolve
from wm_engine.run.folder import RunFolder
from wm_engine.run.state import LoopState
from wm_engine.run.steps import drive, make_engine, make_problem

_GROUP = "loop, cpu"
_EPISODES, _FRAMES = 16, 200
_OPTIMISER_STEPS = 20
_ROUNDS = 3


@pytest.fixture(scope="module")
def quick() -> Config:
    torch.set_num_threads(available_cpus())
    return resolve("quick")


@pytest.fixture(scope="module")
def state(quick: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopState]:
    """A run that has driven its first episodes, few and short ones, and learnt nothing."""
    first = quick.drive.model_copy(update={"first_episodes": _EPISODES, "first_frames": _FRAMES})
    folder = RunFolder(tmp_path_factory.mktemp("loop"))
    with Recorder(folder.metrics) as recorder:
        state = LoopState(quick.model_copy(update={"drive": first}), folder, recorder)
        for _ in drive(state):
            pass
        yield state


def _agent(state: LoopState) -> Agent:
    return Agent(state.vision.model, state.world, None, state.device, state.precision)


def test_drive(quick: Config, state: LoopState, time_rate) -> None:
    lanes = quick.env.num_envs
    policy = state.learner.candidates(lanes, seed=0)
    batch = EpisodeBatch(range(lanes), PolicyDriver(policy, lanes), _FRAMES)
    with contextlib.closing(Runners(quick.env, _agent(state))) as runners:

        def run() -> int:
            (trajectories,) = runners.drive([batch])
            assert all(np.isfinite(trajectory.rewards).all() for trajectory in trajectories)
            return sum(trajectory.frames for trajectory in trajectories)

        frames = run()
        assert 0 < frames <= lanes * _FRAMES
        first = quick.drive.first_episodes * quick.drive.first_frames
        later = (quick.rounds - 1) * quick.drive.episodes * (quick.drive.frames or quick.env.frame_limit)
        time_rate(run, frames, "frames", _GROUP, "drive", _ROUNDS, whole=first + later)


def test_vision_step(quick: Config, state: LoopState, time_rate) -> None:
    settings = quick.vision
    trainer = Trainer("vision", copy.deepcopy(state.vision.model))
    frames = draw_frames(state.store, state.replay().training, np.random.default_rng(0), settings.batch_size)
    batch = torch.from_numpy(frames).to(state.device)
    before = trainer.model.measure(batch)["error"]

    def run() -> None:
        trainer.model.train()
        for step in range(_OPTIMISER_STEPS):
            value, _ = trainer.model.loss(batch, keyed_generator(0, step), settings)
            trainer.step(value, settings.learning_rate, settings.clip)

    run()
    assert trainer.model.eval().measure(batch)["error"] < before
    amount = _OPTIMISER_STEPS * settings.batch_size
    whole = sum(settings.steps_in(index) for index in range(quick.rounds)) * settings.batch_size
    time_rate(run, amount, "frames", _GROUP, "V's step", _ROUNDS, whole=whole)


def test_encode(quick: Config, state: LoopState, time_rate) -> None:
    vision, store = state.vision.model, state.store
    cache = LatentCache(vision, store, state.device)

    def run() -> None:
        cache.clear()
        for index in store.episodes():
            cache.read(index)

    with torch.inference_mode():
        mu, _ = vision.encode(torch.from_numpy(store.read(3).observations).to(state.device))
    assert torch.equal(cache.read(3).mu, mu.cpu())
    amount = store.total_steps() + len(store)
    time_rate(run, amount, "observations", _GROUP, "encode", _ROUNDS, whole=_encoded(quick))


def _encoded(quick: Config) -> int:
    """The most observations that a run encodes: all that are stored where V has learnt, else the new ones."""
    drive, repeat = quick.drive, quick.env.repeat
    limits = [drive.first_frames, drive.frames or quick.env.frame_limit]
    first, later = (math.ceil(limit / repeat) + 1 for limit in limits)
    stored = encoded = 0
    for index in range(quick.rounds):
        new = drive.episodes * later if index else drive.first_episodes * first
        stored += new
        encoded += stored if quick.vision.steps_in(index) else new
    return encoded


def test_memory_step(quick: Config, state: LoopState, time_rate) -> None:
    settings, replay = quick.memory, state.replay()
    trainer = Trainer("memory", copy.deepcopy(state.memory.model))
    chosen = [
        replay.draw(np.random.default_rng(step), settings.batch_size, settings.recent, settings.recent_episodes)
        for step in range(_OPTIMISER_STEPS)
    ]
    episodes = {index: state.latents.read(index) for index in state.store.episodes()}

    def run() -> list[float]:
        trainer.model.train()
        losses = []
        for step, indices in enumerate(chosen):
            rng = np.random.default_rng([1, step])
            batch = cut_windows([episodes[index] for index in indices], settings.sequence_length, rng)
            value, _ = trainer.model.loss(batch.to(state.device), keyed_generator(1, step), settings)
            trainer.step(value, settings.learning_rate, settings.clip)
            losses.append(float(value.detach()))
        return losses

    losses = run()
    assert losses[-1] < losses[0]
    # A run's later episodes are longer, and a sequence is a whole episode: in steps the rate is much the same.
    each = settings.sequence_length or math.ceil(quick.env.frame_limit / quick.env.repeat)
    amount = sum(min(episodes[index].steps, each) for indices in chosen for index in indices)
    steps = sum(settings.steps_in(index) for index in range(quick.rounds))
    time_rate(run, amount, "steps", _GROUP, "M's step", _ROUNDS, whole=steps * settings.batch_size * each)


def test_dream(quick: Config, state: LoopState, time_rate) -> None:
    settings = quick.controller
    world = copy.deepcopy(state.world)
    with torch.no_grad():  # no dream ends early, so that all have the same steps
        world.head.weight[-1] = 0.0
        world.head.bias[-1] = -20.0
    policy = state.learner.candidates(settings.population, seed=0)
    starts, params, spec = make_problem(state).starts, policy.params, policy.spec
    engine = make_engine(state, world, spec)
    short = {"episodes": settings.dream_episodes, "max_steps": 8}
    reference = DreamEngine(world, spec, backend="torch", precision="fp64").rollout(params, starts, **short)
    difference = (engine.rollout(params, starts, **short).returns.cpu() - reference.returns).abs()
    assert difference.median() < 1e-4 * reference.returns.abs().max()

    def run() -> None:
        engine.rollout(params, starts, settings.dream_episodes, settings.dream_steps)

    each = settings.population * settings.dream_episodes
    whole = sum(settings.steps_in(index) * settings.dream_generations for index in range(quick.rounds)) * each
    time_rate(run, each * settings.dream_steps, "steps", _GROUP, f"dream ({engine.backend})", _ROUNDS, whole=whole)


def test_judge(quick: Config, state: LoopState, time_rate) -> None:
    how = EvaluateSettings(episodes=quick.judge.episodes, backend=quick.env.backend)
    env = quick.env.model_copy(update={"max_frames": _FRAMES})

    def run() -> int:
        scores = score_policy(_agent(state), state.learner.policy(), env, how)
        assert np.isfinite(scores.returns).all()
        return int(scores.frames.sum())

    rounds = {index for index in range(quick.rounds) if (index + 1) % quick.judge.every == 0} | {quick.rounds - 1}
    whole = len(rounds) * quick.judge.episodes * quick.env.frame_limit
    time_rate(run, run(), "frames", _GROUP, "judge", _ROUNDS, whole=whole)
