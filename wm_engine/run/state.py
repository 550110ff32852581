"""The state of the loop: V, M, the learner and the place in the round; and how it survives a kill."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from wm_engine.data.replay import Replay
from wm_engine.data.store import RolloutStore
from wm_engine.envs import Task
from wm_engine.errors import ConfigError, CorruptFileError, RunMismatchError
from wm_engine.files import Checkpoints
from wm_engine.fleet import Fleet
from wm_engine.learn.base import Learner, learner_kind
from wm_engine.machine import choose_precision
from wm_engine.models.base import Vision, WorldModel, vision_kind
from wm_engine.models.ensemble import build_world_model
from wm_engine.models.latents import LatentCache
from wm_engine.models.trainer import Trainer
from wm_engine.real.agent import Agent
from wm_engine.real.driving import Runners
from wm_engine.recorder import Recorder
from wm_engine.rng import RNG_VERSION, derive_seed
from wm_engine.run.config import Config, device_of, differences, make_config
from wm_engine.run.folder import RunFolder

_log = logging.getLogger(__name__)


@dataclass
class Place:
    """The place where the loop stands.

    round : which one; step : the name of the step that it is in; done : how many of its units are done
    seconds : of work in this round, by step; total_seconds : of all rounds before
    vision_steps, memory_steps, units : optimiser steps and learner's units of all rounds so far, for the record
    stored_frames : real frames of all episodes that V and M may learn from; ranking_frames : those that a learner was
        ranked by in the real environment; judged_frames : those driven for scores alone, from which nothing was learnt
    scores : the real scores of judged rounds, as {"round", "mean", "standard_error", "episodes", "frames", "minutes"}
    published : the round that is published, None where none is yet
    backend : what dreams, None before anything has: another one gives other bits
    """

    round: int = 0
    step: str = "drive"
    done: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0
    vision_steps: int = 0
    memory_steps: int = 0
    units: int = 0
    stored_frames: int = 0
    ranking_frames: int = 0
    judged_frames: int = 0
    scores: list[dict[str, Any]] = field(default_factory=list)
    published: int | None = None
    backend: str | None = None

    @property
    def learning_frames(self) -> int:
        """Real frames that anything was learnt from."""
        return self.stored_frames + self.ranking_frames


class LoopState:
    """Everything that the steps of a round work with and leave changed.

    config, folder, recorder, fleet : of the run; task : its environment
    store : recorded episodes; latents : those encoded by V as it is now
    vision, memory : V and M with their Adam; learner; place
    world : M as it was when it last finished learning: what dreams, drives and is published
    """

    def __init__(self, config: Config, folder: RunFolder, recorder: Recorder, fleet: Fleet | None = None) -> None:
        self.config, self.folder, self.recorder, self.fleet = config, folder, recorder, fleet
        self.task: Task = config.env.found()
        self.device = device_of(config)
        spaces = self.task.spaces
        self.store = RolloutStore.open(folder.rollouts, spaces)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "models"))
            vision = vision_kind(config.vision.kind).build(spaces.observations, config.vision)
            world = build_world_model(vision.latent, spaces, config.memory)
        check_world(world, vision.latent, spaces.actions.size, str(config.memory.kind))
        self.vision = Trainer("vision", vision.to(self.device))
        self.memory = Trainer("memory", world.to(self.device))
        self.world: WorldModel = world.finished()
        self.learner: Learner = learner_kind(config.controller.kind).build(
            config.controller, self.task, world, derive_seed(config.seed, "learner"), self.device
        )
        self.latents = LatentCache(vision, self.store, self.device, drawn=config.vision.drawn)
        self.place = Place()
        self._learnt_until: int | None = None
        self._runners: Runners | None = None
        self._checkpoints = Checkpoints(folder.checkpoints)
        self._vision_checkpoints = Checkpoints(folder.checkpoints / "vision")
        self._saved_vision = -1

    def use(self, vision: Vision, world: WorldModel, round_index: int) -> None:
        """Take a finished V and M in place of new ones, and from now on the episodes of rounds up to theirs."""
        self.vision, self.world = Trainer("vision", vision.to(self.device)), world.to(self.device)
        self.latents = LatentCache(vision, self.store, self.device, drawn=self.config.vision.drawn)
        self._learnt_until = round_index

    @property
    def precision(self) -> str:
        """Of V's encoding while it drives."""
        return choose_precision("vision.precision", self.config.vision.encoding_precision(), self.device)

    def agent(self) -> Agent:
        """Return V as it is now and M as it last finished learning, without a policy yet."""
        return Agent(self.vision.model, self.world, None, self.device, self.precision)

    def runners(self, agent: Agent | None) -> Runners:
        """Return what drives the task's environments with an agent; environments are kept from round to round."""
        if self._runners is None:
            self._runners = Runners(self.config.env, None, self.fleet)
        return self._runners.use(agent)

    def close(self) -> None:
        """End the environments."""
        if self._runners is not None:
            self._runners.close()

    def seed(self, *words: str | int) -> int:
        """Derive the seed of one use in the present round."""
        return derive_seed(self.config.seed, self.place.round, *words)

    def replay(self) -> Replay:
        """Return the episodes that the present round may learn from."""
        until = self.place.round if self._learnt_until is None else self._learnt_until
        return Replay(self.store, until, self.config.drive.holdout)

    def save(self) -> None:
        """Write a checkpoint. V, the largest part by far, is written only where it has changed."""
        if self.place.vision_steps != self._saved_vision:
            self._vision_checkpoints.save(self.place.vision_steps, self.vision.state(), {})
            self._saved_vision = self.place.vision_steps
        tensors = {f"memory.{name}": value for name, value in self.memory.state().items()}
        tensors |= {f"world.{name}": value for name, value in self.world.state_dict().items()}
        parts, values = self.learner.state()
        tensors |= {f"learner.{name}": value for name, value in parts.items()}
        scale = self.memory.model.reward_units()
        state = {
            "rng_version": RNG_VERSION,
            "identity": self.config.identity(),
            "place": asdict(self.place),
            "learner": values,
            "reward_units": list(scale),
        }
        self._checkpoints.save(_number(self._checkpoints) + 1, tensors, state)

    def restore(self, keep_settings: bool = False) -> bool:
        """Go on from the newest whole checkpoint; returns whether there was one.

        Raises RunMismatchError where it belongs to other settings, unless ``keep_settings``, or to another version of
        the random numbers; CorruptFileError where every checkpoint is damaged.
        """
        for number in reversed(self._checkpoints.steps()):
            try:
                tensors, state = self._checkpoints.load(number)
                vision, _ = self._vision_checkpoints.load(int(state["place"]["vision_steps"]))
            except CorruptFileError as error:
                if number == self._checkpoints.steps()[0]:
                    raise
                _log.warning("a checkpoint is passed over, for the one before it: %s", error)
                continue
            self._check(state, keep_settings)
            self._load(tensors, vision, state)
            return True
        return False

    def _check(self, state: dict[str, Any], keep_settings: bool) -> None:
        if state["rng_version"] != RNG_VERSION:
            raise RunMismatchError(
                f"{self.folder.root}: drawn with version {state['rng_version']} of the random numbers, but this "
                f"program has {RNG_VERSION}. Go on with the version that began it."
            )
        if any(change.startswith("dream.backend") for change in self.check_settings(state["identity"], keep_settings)):
            state["place"]["backend"] = None

    def check_settings(self, begun_with: Mapping[str, Any], keep: bool) -> list[str]:
        """Compare the settings that the run was begun with to those of now; returns what differs, a line each.

        RunMismatchError where something does, unless ``keep``; it is logged then.
        """
        changes = differences(_as_of_now(begun_with), json.loads(json.dumps(self.config.identity())))
        if changes and not keep:
            raise RunMismatchError(
                f"{self.folder.root}: was begun with other settings:\n  " + "\n  ".join(changes) + "\nChoose another "
                "--run folder; or go on in this one with --on-change keep: what is done stays, and the new settings "
                "hold from here on."
            )
        if changes:
            _log.warning("settings change from here on: %s", "; ".join(changes))
        return changes

    def _load(self, tensors: dict[str, Any], vision: dict[str, Any], state: dict[str, Any]) -> None:
        def part(prefix: str) -> dict[str, Any]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        try:
            self.vision.load_state(vision)
            self.memory.model.set_reward_units(*state["reward_units"])
            self.memory.load_state(part("memory."))
            self.world.load_state_dict(part("world."))
            self.learner.load_state(part("learner."), state["learner"])
            self.place = Place(**state["place"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise CorruptFileError(f"{self.folder.checkpoints}: a checkpoint is not whole ({error})") from error
        self._saved_vision = self.place.vision_steps


def _as_of_now(begun_with: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a run's settings with the defaults of those that have come since it was begun."""
    try:
        return json.loads(json.dumps(make_config(begun_with).identity()))
    except ConfigError:  # some of them are gone, which is a difference
        return begun_with


def _number(checkpoints: Checkpoints) -> int:
    return max(checkpoints.steps(), default=0)


def check_world(world: WorldModel, latent: int, action: int, kind: str) -> None:
    """Raise ConfigError where a world model's spaces are not the task's."""
    if (world.latent, world.action) != (latent, action):
        raise ConfigError(
            f"memory.kind: a {kind} dreams {world.latent} latent dimensions under {world.action} actions, but V gives "
            f"{latent} and the task takes {action}"
        )
