"""What a run publishes: V, M and the policy, as files that say of which round they are and how they were chosen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wm_engine.checks import check_int
from wm_engine.data.replay import Replay
from wm_engine.data.store import RolloutStore
from wm_engine.dream import DreamEngine, Starts
from wm_engine.dream.starts import recorded_starts
from wm_engine.errors import ConfigError, CorruptFileError, MissingRunError
from wm_engine.files import file_fingerprint, load_tensors, read_json, write_json
from wm_engine.learn.base import learner_kind
from wm_engine.machine import choose_precision
from wm_engine.models.base import Vision, WorldModel, load_vision, load_world_model
from wm_engine.models.latents import LatentCache
from wm_engine.policies.base import Policy
from wm_engine.policies.controller import Controllers
from wm_engine.real.agent import Agent
from wm_engine.run.card import write_card
from wm_engine.run.config import Config, device_of, read_config
from wm_engine.run.folder import RunFolder

if TYPE_CHECKING:
    from wm_engine.run.state import LoopState


def publish(state: LoopState) -> None:
    """Write the present V, M and policy into ``models/``, and which round they are of.

    Three files do not change at once: in between, ``published.json`` does not match them, and nobody reads them.
    """
    folder, place = state.folder, state.place
    state.vision.model.save(folder.vision)
    state.world.save(folder.memory)
    state.learner.save_policy(folder.controller, state.learner.policy())
    place.published = place.round
    judged = [score for score in place.scores if score["round"] == place.round]
    write_published(
        folder,
        {
            "round": place.round,
            "task": state.config.env.task,
            "trained_in": "real" if state.config.controller.wants_real() else "dream",
            "chosen": state.config.judge.choose,
            "judged_rounds": len(place.scores),
            "judged": judged[-1] if judged else None,
            "learning_frames": place.learning_frames,
            "judged_frames": place.judged_frames,
            "minutes": (place.total_seconds + sum(place.seconds.values())) / 60.0,
        },
    )


def write_published(folder: RunFolder, note: Mapping[str, Any]) -> None:
    """Write the note on what lies in ``models/``, with a digest of each model, and the card for people."""
    write_json(folder.published, dict(note) | {"digests": {p.name: file_fingerprint(p) for p in _models(folder)}})
    write_card(folder)


def count_judged(state: LoopState) -> None:
    """Correct how many rounds the published one was chosen among, where one was judged that is not published."""
    found = read_json(state.folder.published)
    found |= {"judged_rounds": len(state.place.scores), "judged_frames": state.place.judged_frames}
    write_json(state.folder.published, found)
    write_card(state.folder)


def _models(folder: RunFolder) -> tuple[Path, ...]:
    return folder.vision, folder.memory, folder.controller


def read_published(folder: RunFolder) -> dict[str, Any]:
    """Read what is published in a run folder; MissingRunError where nothing is, CorruptFileError where files are not
    those that were published together."""
    folder.existing()
    if not folder.published.exists():
        raise MissingRunError(
            f"{folder.root}: nothing is published yet. Let the run go on: wm-engine train --run {folder.root}"
        )
    found: dict[str, Any] = read_json(folder.published, "The run writes it again when it goes on.")
    for path in _models(folder):
        digest = file_fingerprint(path) if path.exists() else None
        if digest != found["digests"].get(path.name):
            raise CorruptFileError(
                f"{path}: {'missing' if digest is None else 'not the file that was published'}, as when publishing was "
                f"cut short. Let the run go on: wm-engine train --run {folder.root}"
            )
    return found


@dataclass(frozen=True, repr=False)
class LoadedRun:
    """A run, read: its published models, and states to dream from.

    folder, config : of the run; published : of which round the models are, and how they were chosen
    vision, world, controller : V, M and the policy
    """

    folder: RunFolder
    config: Config
    published: Mapping[str, Any]
    vision: Vision
    world: WorldModel
    controller: Policy

    def __repr__(self) -> str:
        return f"LoadedRun({str(self.folder.root)!r})"

    def starts(self, count: int, seed: int = 0, mid_fraction: float | None = None) -> Starts:
        """Choose ``count`` recorded states to dream from; see :func:`wm_engine.dream.starts.recorded_starts`.

        They are of the newest episodes, as many as a round's starts are taken from, or ``count`` where that is fewer: V
        encodes them, which may take seconds. ``mid_fraction``: share of the states from the middle of episodes; None:
        the run's. Of imported models: latents float32 [count, Z] drawn from the posteriors that came with them.
        """
        if "imported" in self.published:
            return self._imported_starts(count, seed)
        store = RolloutStore.open(self.folder.rollouts, create=False)
        latents = LatentCache(self.vision, store, torch.device("cpu"), drawn=self.config.vision.drawn)
        replay = Replay(store, int(self.published["round"]), self.config.drive.holdout)
        s = self.config.controller
        episodes = [latents.read(index) for index in replay.training[-min(count, s.start_episodes) :]]
        middle = s.mid_fraction if mid_fraction is None else mid_fraction
        return recorded_starts(self.world, episodes, count, middle, seed, s.burn_in)

    def _imported_starts(self, count: int, seed: int) -> Starts:
        check_int("count", count, least=1)
        parts, _ = load_tensors(self.folder.starts)
        rng = np.random.default_rng(seed)
        chosen = torch.from_numpy(rng.integers(len(parts["mean"]), size=count))
        noise = torch.from_numpy(rng.standard_normal((count, parts["mean"].shape[1]), dtype=np.float32))
        return Starts(parts["mean"][chosen] + torch.exp(0.5 * parts["log_variance"][chosen]) * noise)

    def engine(self, **options: Any) -> DreamEngine:
        """Make an engine that dreams controllers of the published one's shape; ``options`` are DreamEngine's.

        ConfigError where the policy is no controller.
        """
        if not isinstance(self.controller, Controllers):
            raise ConfigError(f"{self.folder.root}: its policy is a {type(self.controller).__name__}, not a controller")
        return DreamEngine(self.world, self.controller.spec, **({"device": device_of(self.config)} | options))

    def agent(self) -> Agent:
        """Return V, M and the policy, ready to act in real environments."""
        device = device_of(self.config)
        wanted = self.config.vision.encoding_precision()
        precision = choose_precision("vision.precision", wanted, device)
        return Agent(self.vision, self.world, self.controller, device, precision)


def load_run(root: str | os.PathLike[str]) -> LoadedRun:
    """Read a run's published models.

    Raises MissingRunError where there is no run, or nothing published yet, RunMismatchError for a run of the first
    edition, CorruptFileError where a file is damaged.
    """
    folder = RunFolder(Path(root))
    published = read_published(folder)
    config = read_config(folder.config)
    policy = learner_kind(config.controller.kind).load_policy(folder.controller)
    vision, world = load_vision(folder.vision), load_world_model(folder.memory)
    return LoadedRun(folder, config, published, vision, world, policy)
