"""How long a run will take, from a few seconds' measurement on this machine before it begins."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from wm_engine.data.sequences import EncodedEpisode, stack_windows
from wm_engine.dream import Starts
from wm_engine.envs import make_env
from wm_engine.learn.evolution import Evolution
from wm_engine.models.trainer import Trainer
from wm_engine.rng import keyed_generator
from wm_engine.run.state import LoopState
from wm_engine.run.steps import make_dreamer

_log = logging.getLogger(__name__)

# Episodes end before their limit: of the frames that a round may drive, about so many are driven.
_DRIVEN = 0.6
_FAR_OFF = 2.0
_MEASURED_DREAM_STEPS = 8


@dataclass
class Estimate:
    """Expected seconds of work in each round, and whether it was said that they were far off."""

    rounds: list[float]
    warned: bool = False

    def check(self, round_index: int, seconds: float) -> None:
        """Say, once, that a run takes much longer or shorter than was expected; ``seconds``: of work so far."""
        expected = sum(self.rounds[: round_index + 1])
        if self.warned or expected <= 0.0 or 1.0 / _FAR_OFF < seconds / expected < _FAR_OFF:
            return
        self.warned = True
        rest = sum(self.rounds[round_index + 1 :]) * seconds / expected
        _log.warning(
            "the estimate was far off: %.1f minutes of work so far where %.1f were expected (is the machine busy?); "
            "at this pace %.0f more",
            seconds / 60.0, expected / 60.0, rest / 60.0,
        )  # fmt: skip


def estimate(state: LoopState) -> Estimate:
    """Measure each kind of work for about a second, say what a run will take, and return it by round.

    Nothing of the state changes. Scoring at the end is not counted.
    """
    config, env = state.config, state.config.env
    costs = {
        "frame": _seconds_a_frame(state),
        "encoding": _seconds_an_encoding(state),
        "vision": _seconds_a_vision_step(state),
        "memory": _seconds_a_memory_step(state),
        "dream": _seconds_a_dream_step(state),
    }
    repeat, rounds = env.repeat, []
    for index in range(config.rounds):
        drive = config.drive
        limit = drive.first_frames if index == 0 else drive.frames or env.frame_limit
        frames = (drive.first_episodes if index == 0 else drive.episodes) * limit * _DRIVEN
        judged = 0
        if config.judge.every and ((index + 1) % config.judge.every == 0 or index == config.rounds - 1):
            judged = config.judge.episodes * env.frame_limit
        seconds = (frames + judged) * costs["frame"]
        # Driving encodes what it sees, and what has been stored is encoded once more.
        seconds += (2 * frames + judged) / repeat * costs["encoding"]
        seconds += config.vision.steps_in(index) * costs["vision"] + config.memory.steps_in(index) * costs["memory"]
        if isinstance(state.learner, Evolution):
            s = state.learner.settings
            if s.train_in == "dream":
                steps = s.population * s.dream_episodes * s.steps_in(index)
                seconds += state.learner.units(index) * steps * costs["dream"]
            else:
                driven = s.population * s.real_episodes * s.real_frames
                seconds += state.learner.units(index) * driven * (costs["frame"] + costs["encoding"] / repeat)
        rounds.append(seconds)
    _log.info(
        "about %.0f minutes for %d rounds on this machine, without the scoring at the end (measured: %.0f real "
        "frames/s, %.0f encoded and %.0f learnt by V a second, %.1f steps of M's learning, %.0f k dream steps)",
        sum(rounds) / 60.0, config.rounds, 1.0 / costs["frame"], 1.0 / costs["encoding"],
        config.vision.batch_size / costs["vision"] if costs["vision"] else 0.0,
        1.0 / costs["memory"] if costs["memory"] else 0.0, 1e-3 / costs["dream"] if costs["dream"] else 0.0,
    )  # fmt: skip
    return Estimate(rounds)


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the quicker of two calls, after one that warms up."""
    work()
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _observations(state: LoopState, count: int) -> torch.Tensor:
    space = state.task.spaces.observations
    return torch.zeros(count, *space.shape, dtype=torch.from_numpy(np.zeros(1, space.dtype)).dtype).to(state.device)


def _seconds_a_frame(state: LoopState) -> float:
    env = make_env(state.config.env)
    try:
        env.reset(list(range(env.num_lanes)))
        low, high = env.spaces.actions.bounds
        actions = np.tile(0.5 * (low + high), (env.num_lanes, 1)).astype(np.float32)
        driven, began = 0, time.perf_counter()
        lanes = np.arange(env.num_lanes)
        while len(lanes) and time.perf_counter() - began < 0.7:
            step = env.step(actions[: len(lanes)], lanes)
            driven, lanes = driven + int(step.frames.sum()), lanes[~step.ended]
        return (time.perf_counter() - began) / max(driven, 1)
    finally:
        env.close()


def _seconds_an_encoding(state: LoopState) -> float:
    seen = _observations(state, min(state.config.env.num_envs, 64))
    with torch.inference_mode():
        return _timed(lambda: state.vision.model.encode(seen)) / len(seen)


def _seconds_a_vision_step(state: LoopState) -> float:
    s, model = state.config.vision, copy.deepcopy(state.vision.model)
    if not model.learns:
        return 0.0
    trainer, seen = Trainer("vision", model), _observations(state, s.batch_size)
    return _timed(lambda: trainer.step(model.loss(seen, keyed_generator(0), s)[0], s.learning_rate, s.clip))


def _seconds_a_memory_step(state: LoopState) -> float:
    s, model, env = state.config.memory, copy.deepcopy(state.memory.model), state.config.env
    if not list(model.parameters()):
        return 0.0
    length = s.sequence_length or max(1, int(_DRIVEN * env.frame_limit / env.repeat))
    latents = torch.zeros(length + 1, model.latent)
    episode = EncodedEpisode(latents, latents, torch.zeros(length, model.action), torch.zeros(length), False)
    batch = stack_windows([episode] * s.sequences).to(state.device)
    trainer = Trainer("memory", model)
    return _timed(lambda: trainer.step(model.loss(batch, keyed_generator(0), s)[0], s.learning_rate, s.clip))


def _seconds_a_dream_step(state: LoopState) -> float:
    if not isinstance(state.learner, Evolution) or state.learner.settings.train_in != "dream":
        return 0.0
    s, engine = state.learner.settings, make_dreamer(state, state.learner.spec)
    starts = Starts(torch.zeros(1, state.world.latent))
    params = torch.zeros(s.population, state.learner.spec.num_params)

    def dream() -> int:
        out = engine.rollout(
            params, starts, episodes=s.dream_episodes, max_steps=_MEASURED_DREAM_STEPS, temperature=s.temperature,
            seed=0, reward="predicted", done=s.done,
        )  # fmt: skip
        return int(out.lengths.sum())

    lived = dream()  # an M that has learnt nothing may end its dreams at once
    return _timed(dream) / lived
