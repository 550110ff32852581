"""Pictures of what is observed: pictures as they are, vectors as traces, codes as coloured cells."""

from __future__ import annotations

import colorsys
from collections import deque
from typing import Protocol

import numpy as np

from wm_engine.spaces import Codes, Observations, Pixels

_WIDTH, _HEIGHT = 256, 192
_MOST_TRACES = 16
_PAPER, _RULE = (18, 22, 30), (44, 52, 66)
_CELL = 8


class View(Protocol):
    """Turns one observation after the other into pictures of one size."""

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Return a picture uint8 [height, width, 3] of an observation: uint8 pictures, vectors or codes."""
        ...


def make_view(space: Observations, bounds: tuple[np.ndarray, np.ndarray]) -> View:
    """Make a view of a space. ``bounds``: of vectors, between which values the recorded episodes stay, [size] each."""
    if isinstance(space, Pixels):
        return _as_it_is
    if isinstance(space, Codes):
        return Cells(space)
    return Traces(*bounds)


def _as_it_is(observation: np.ndarray) -> np.ndarray:
    return observation


def _colours(count: int) -> np.ndarray:
    """Colours that differ in hue, uint8 [count, 3]."""
    rows = [colorsys.hsv_to_rgb(0.57 + 0.61803 * index, 0.55, 1.0) for index in range(count)]
    return (np.array(rows) * 255).round().astype(np.uint8)


class Traces:
    """Draws each dimension of a vector as a trace over the last pictures, the newest at the right end.

    low, high : [size], the lower and upper end of each trace; of more than 16 dimensions the first are drawn
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        count = min(len(low), _MOST_TRACES)
        self._low, self._span = low[:count], np.maximum(high[:count] - low[:count], 1e-6)
        self._colours, self._lane = _colours(count), _HEIGHT // count
        self._rows: deque[np.ndarray] = deque(maxlen=_WIDTH // 2)

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        share = np.clip((observation[: len(self._low)] - self._low) / self._span, 0.0, 1.0)
        self._rows.append(((1.0 - share) * (self._lane - 5)).round().astype(int) + 2)
        picture = np.empty((_HEIGHT, _WIDTH, 3), np.uint8)
        picture[:] = _PAPER
        rows = np.stack(self._rows)
        first = _WIDTH - 2 * len(rows)
        for index, colour in enumerate(self._colours):
            top = index * self._lane
            picture[top + self._lane - 1] = _RULE
            for place, row in enumerate(rows[:, index]):
                before = rows[max(place - 1, 0), index]
                column = first + 2 * place
                picture[top + min(row, before) : top + max(row, before) + 2, column : column + 2] = colour
        return picture


class Cells:
    """Draws a grid of codes, each code in a colour of its own."""

    def __init__(self, space: Codes) -> None:
        self._colours = _colours(space.count)
        self._colours[0] = _PAPER

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        grid = np.atleast_2d(np.rint(observation).astype(int)).clip(0, len(self._colours) - 1)
        return self._colours[grid.reshape(grid.shape[0], -1)].repeat(_CELL, axis=0).repeat(_CELL, axis=1)
