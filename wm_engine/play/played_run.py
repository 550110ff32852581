"""A run that is played: what all visitors share, none of which changes while they play."""

from __future__ import annotations

import functools
import math
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wm_engine.data.store import RolloutStore
from wm_engine.dream.starts import states_at
from wm_engine.errors import MissingRunError, WMEngineError
from wm_engine.files import read_json
from wm_engine.models.latents import LatentCache
from wm_engine.play.controls import Controls, controls_of
from wm_engine.play.dream import PlayedDream
from wm_engine.play.road import Road
from wm_engine.play.views import View, make_view
from wm_engine.run.published import LoadedRun
from wm_engine.spaces import Pixels, Vector

PICTURES_PER_SECOND = 30
"""The page shows at least so many: where dreamt steps are fewer, the latent moves in a straight line between them."""

THUMBNAILS = 12
_LATENT_BYTES = 64 * 2**20
_EPISODES_FOR_BOUNDS = 32
_MARGIN = 0.05


@dataclass(frozen=True)
class StartPoint:
    """Where a dream begins: the state before step ``step`` of recorded episode ``episode``, and the dream's seed."""

    episode: int
    step: int
    seed: int


class PlayedRun:
    """A run's models and recorded episodes, for any number of visitors on any threads.

    Raises MissingRunError for a run without recorded episodes: dreams begin from them.

    no_road : why there can be no road beside the dream, in words; None where there can
    temperature : that the controller was trained at
    steps_per_second : decisions of the environment's clock, 12.5 for CarRacing with actions repeated four times
    pictures_per_step : how many pictures show each step
    """

    def __init__(self, run: LoadedRun) -> None:
        self.run = run
        self.store = _recorded(run)
        self.spaces = self.store.spaces
        self.episodes = len(self.store.episodes(int(run.published["round"])))
        self.temperature = run.config.controller.dream_rules(int(run.published["round"])).temperature
        self._latents = LatentCache(run.vision, self.store, torch.device("cpu"), _LATENT_BYTES)
        self._lock = threading.Lock()
        names: tuple[str, ...] = ()
        rate, self._survival = 50.0, False
        self.no_road: str | None = None
        try:
            task = run.config.env.found()
            names, self._survival = task.action_names, task.reward == "survival"
            rate = task.frames_per_second / run.config.env.repeat
        except WMEngineError as error:
            self.no_road = str(error)
        self.steps_per_second = rate
        self.pictures_per_step = math.ceil(PICTURES_PER_SECOND / rate)
        self.controls: Controls = controls_of(self.spaces.actions, names)

    def describe(self) -> dict[str, Any]:
        """Return what a page needs to know first, as JSON-able values."""
        scores = self.run.folder.scores
        score = read_json(scores)["controller"] if scores.exists() else None
        return {
            "run": self.run.folder.root.resolve().name,
            "task": self.run.config.env.task,
            "controls": self.controls.plain(),
            "temperature": self.temperature,
            "episodes": self.episodes,
            "noRoad": self.no_road,
            "score": score and {name: score[name] for name in ("mean", "std", "episodes")},
        }

    def start_point(self, rng: np.random.Generator, beginning: bool) -> StartPoint:
        """Draw a start: the beginning of a recorded episode, or any step of any; with a seed for the dream."""
        lengths = np.array([self.store.info(index).steps for index in range(self.episodes)])
        seed = int(rng.integers(2**31))
        if beginning:
            return StartPoint(int(rng.integers(self.episodes)), 0, seed)
        place = int(rng.integers(lengths.sum()))
        episode = int(np.searchsorted(lengths.cumsum(), place, side="right"))
        return StartPoint(episode, place - int(lengths[:episode].sum()), seed)

    def check(self, point: StartPoint) -> None:
        """Refuse a start that was never recorded: ValueError."""
        if point.episode >= self.episodes:
            raise ValueError(f"episode must be 0 to {self.episodes - 1}, but was {point.episode}")
        steps = self.store.info(point.episode).steps
        if point.step >= steps:
            raise ValueError(f"step of episode {point.episode} must be 0 to {steps - 1}, but was {point.step}")

    def dream(self, point: StartPoint) -> PlayedDream:
        """Begin a dream; ValueError for a start that was never recorded."""
        self.check(point)
        with self._lock:
            record = self._latents.read(point.episode)
        start = states_at(self.run.world, [record], np.zeros(1, np.int64), np.array([point.step]), point.seed)
        return PlayedDream(self.run.vision, self.run.world, self.spaces, start, point.seed, self._survival)

    def road(self) -> Road:
        """Make a real environment; raises what Road does."""
        return Road(self.run.config.env, self.store)

    def view(self) -> View:
        """Make a view of what is observed."""
        return make_view(self.spaces.observations, self._bounds)

    def thumbnails(self, rng: np.random.Generator) -> list[tuple[StartPoint, np.ndarray]]:
        """Draw starts to choose from, in the order of their episodes, with recorded pictures of them."""
        points = [self.start_point(rng, beginning=False) for _ in range(THUMBNAILS)]
        points.sort(key=lambda point: (point.episode, point.step))
        return [(point, self._picture(point)) for point in points]

    def _picture(self, point: StartPoint) -> np.ndarray:
        view = self.view()
        first = point.step if isinstance(self.spaces.observations, Pixels) else 0
        shown = [view(seen) for seen in self.store.observations(point.episode, first, point.step + 1)]
        return shown[-1]

    @functools.cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Between which values vectors stay in recorded episodes spread over the run, with a margin; [size] each."""
        if not isinstance(self.spaces.observations, Vector):
            return np.zeros(0), np.ones(0)
        chosen = np.unique(np.linspace(0, self.episodes - 1, _EPISODES_FOR_BOUNDS).astype(int))
        seen = np.concatenate([self.store.observations(int(index)) for index in chosen]).astype(np.float64)
        low, high = seen.min(axis=0), seen.max(axis=0)
        return low - _MARGIN * (high - low), high + _MARGIN * (high - low)


def _recorded(run: LoadedRun) -> RolloutStore:
    try:
        store = RolloutStore.open(run.folder.rollouts, create=False)
    except FileNotFoundError:
        store = None
    if store is None or not len(store.episodes(int(run.published["round"]))):
        raise MissingRunError(
            f"{run.folder.rollouts}: no recorded episodes there, and dreams begin from them. Copy the whole run folder."
        )
    return store
