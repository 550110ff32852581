"""One visitor: a dream, whoever is at its wheel, perhaps the road beside it, and perhaps a film. No sockets here."""

from __future__ import annotations

import copy
import math
import secrets
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from wm_engine.errors import WMEngineError
from wm_engine.play.dream import DreamtStep, PlayedDream
from wm_engine.play.film import Film
from wm_engine.play.messages import Act, Begin, BeginAt, Message, Switch, Temperature, Thumbnails, Wheel, packed
from wm_engine.play.played_run import PlayedRun, StartPoint
from wm_engine.play.road import Road


class Visit:
    """The state of one visitor. Calls take turns, so that they may come from any thread.

    Parameters
    ----------
    shared : the run; nothing of a visit is written there
    """

    def __init__(self, shared: PlayedRun) -> None:
        self._shared, self._policy = shared, copy.deepcopy(shared.run.controller)
        self._rng = np.random.default_rng(secrets.randbits(64))
        self._turn = threading.Lock()
        self._closed = False
        self._driving, self._paused = True, False
        self._action = np.array(shared.controls.idle, np.float32)
        self._temperature = shared.temperature
        self._road: Road | None = None
        self._film: Film | None = None
        self._point = shared.start_point(self._rng, beginning=False)
        self._dream: PlayedDream | None = None
        self._total, self._over = 0.0, True
        self._view = self._road_view = shared.view()

    @property
    def rests(self) -> bool:
        """Nothing is dreamt: the dream is over, or held."""
        return self._over or self._paused

    def welcome(self) -> list[bytes]:
        """Say what is played, and begin the first dream: messages for the page."""
        return [
            packed({"type": "welcome"} | self._shared.describe()),
            *self.hear(Begin(type="begin", where="anywhere")),
        ]

    def hear(self, message: Message) -> list[bytes]:
        """Do what a message asks for; returns messages for the page, a refusal in words where it cannot be done."""
        with self._turn:
            if self._closed:
                return []
            try:
                return self._heard(message)
            except (WMEngineError, ValueError) as error:
                return [packed({"type": "refused", "of": message.type, "text": str(error)})]

    def advance(self) -> list[bytes]:
        """Dream a step: one message for each picture that shows it; none where the visit rests."""
        with self._turn:
            if self._closed or self.rests or self._dream is None:
                return []
            action = self._dream.chosen_by(self._policy) if self._driving else self._action
            if not np.isfinite(action).all():
                self._over = True
                return [self._note("The controller's action was not a finite number: the dream ends here.")]
            return self._stepped(self._dream.step(action, self._temperature, self._shared.pictures_per_step))

    def close(self) -> None:
        """End the road and the film. Nothing happens afterwards."""
        with self._turn:
            self._closed = True
            if self._film is not None:
                self._film.drop()
            self._leave_road()
            self._film = self._dream = None

    def _heard(self, message: Message) -> list[bytes]:
        if isinstance(message, Act):
            return self._act(message.action)
        if isinstance(message, Temperature):
            self._temperature = message.value
        elif isinstance(message, Wheel):
            self._driving = message.who == "controller"
            self._action = np.array(self._shared.controls.idle, np.float32)
        elif isinstance(message, Switch):
            switches: dict[str, Callable[[bool], list[bytes]]] = {
                "pause": self._pause,
                "road": self._show_road,
                "record": self._record,
            }
            return switches[message.type](message.on)
        elif isinstance(message, Thumbnails):
            shown = self._shared.thumbnails(self._rng)
            places = [{"episode": point.episode, "step": point.step} for point, _ in shown]
            return [packed({"type": "thumbnails", "places": places}, [picture for _, picture in shown])]
        else:
            return self._begin(self._asked(message))
        return []

    def _act(self, action: list[float]) -> list[bytes]:
        size = len(self._action)
        if len(action) != size:
            raise ValueError(f"action must be {size} numbers, but were {len(action)}")
        self._action = self._shared.spaces.actions.clip(np.array(action, np.float32))
        return []

    def _pause(self, on: bool) -> list[bytes]:
        self._paused = on
        return []

    def _asked(self, message: Begin | BeginAt) -> StartPoint:
        seed = int(self._rng.integers(2**31)) if message.seed is None else message.seed
        if isinstance(message, BeginAt):
            return StartPoint(message.episode, message.step, seed)
        if message.where == "again":
            return self._point
        drawn = self._shared.start_point(self._rng, message.where == "beginning")
        return StartPoint(drawn.episode, drawn.step, seed)

    def _begin(self, point: StartPoint) -> list[bytes]:
        self._dream = self._shared.dream(point)
        self._point, self._total, self._over = point, 0.0, False
        self._view = self._shared.view()
        notes = self._begin_road()
        steps = self._shared.store.info(point.episode).steps
        begun = {"type": "begun", "episode": point.episode, "step": point.step, "seed": point.seed, "steps": steps}
        shown = self._shown({"end": 0.0, "reward": 0.0, "action": self._action.tolist()}, self._dream.observation())
        return [packed(begun), *notes, shown]

    def _show_road(self, on: bool) -> list[bytes]:
        self._leave_road()
        if not on:
            return []
        if self._shared.no_road is not None:
            raise ValueError(self._shared.no_road)
        self._road = self._shared.road()
        return self._begin(self._point)

    def _begin_road(self) -> list[bytes]:
        if self._road is None:
            return []
        self._road_view = self._shared.view()
        self._road.begin(self._point.episode, self._point.step)
        if self._road.repeats:
            return []
        return [
            self._note(
                "The environment here does not repeat this recorded episode to the bit, so the road is not where the "
                "dream begins: compare them with care."
            )
        ]

    def _leave_road(self) -> None:
        if self._road is not None:
            self._road.close()
        self._road = None

    def _stepped(self, step: DreamtStep) -> list[bytes]:
        if step.failed:
            self._over = True
            return [self._note("The dream's numbers are no longer finite: it ends here.")]
        before = None if self._road is None else self._road.observation
        if self._road is not None:
            self._road.step(step.action)
        self._total += step.reward
        self._over = step.ended
        facts = {"end": step.end, "reward": step.reward, "action": step.action.tolist()}
        last = len(step.observations) - 1
        # The road's picture changes when the dream has come as far.
        return [
            self._shown(facts | {"ended": step.ended and index == last}, seen, None if index == last else before)
            for index, seen in enumerate(step.observations)
        ]

    def _shown(self, facts: dict[str, Any], seen: np.ndarray, road_before: np.ndarray | None = None) -> bytes:
        pictures = [self._view(seen)]
        header = {"type": "picture", "steps": 0 if self._dream is None else self._dream.steps, "total": self._total}
        if self._road is not None:
            pictures.append(self._road_view(self._road.observation if road_before is None else road_before))
            header |= {"roadTotal": self._road.total, "roadEnded": self._road.ended}
        if self._film is not None:
            try:
                self._film.add(pictures)
            except OSError as error:  # the encoder is gone, as when the disk is full
                self._film.drop()
                self._film = None
                header["note"] = f"The recording has stopped, and is lost ({error})."
        return packed(header | {name: _plain(value) for name, value in facts.items()}, [*pictures])

    def _record(self, on: bool) -> list[bytes]:
        if on and self._film is None:
            rate = self._shared.steps_per_second * self._shared.pictures_per_step
            self._film = Film(rate, panels=1 if self._road is None else 2)
        elif not on and self._film is not None:
            film, self._film = self._film, None
            data = film.finish()
            if not data:
                raise ValueError("Nothing was recorded: no picture came while the film was on.")
            name = f"dream-{self._point.episode}-{self._point.step}-{self._point.seed}.mp4"
            return [packed({"type": "film", "name": name, "pictures": film.pictures}, [data])]
        return []

    def _note(self, text: str) -> bytes:
        return packed({"type": "note", "text": text})


def _plain(value: Any) -> Any:
    """JSON has no non-finite numbers: they become null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
