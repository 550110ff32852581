"""``wm_engine/SimpleCarRacing-v0``: drive round a closed track that a picture of 64 by 64 pixels shows whole."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

_TURN, _ACCELERATION, _DRAG, _TOP = 0.35, 0.12, 0.05, 1.6
_HALF_WIDTH = 5.0
"""Of the road, in pixels."""
_GRASS, _ROAD, _CAR, _NOSE = (90, 150, 80), (110, 110, 110), (200, 40, 40), (250, 220, 60)
_ROWS, _COLUMNS = np.mgrid[:64, :64].astype(np.float64) - 31.5
_ANGLES, _RADII = np.arctan2(_ROWS, _COLUMNS), np.hypot(_ROWS, _COLUMNS)


class SimpleCarRacing(gymnasium.Env):
    """A ring-shaped track with bends, and a car of two controls: steering in [-1, 1], and gas in [0, 1].

    A step pays how far round the track it took the car, 100 for a lap, less 0.05; leaving the road costs 5 and ends the
    episode, a whole lap ends it too. Truncated after 200 steps by ``gymnasium.make``. ``reset(seed=...)`` draws the
    track, and where on it the car stands.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - as gymnasium has it
    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Box(
        np.array([-1.0, 0.0], np.float32), np.array([1.0, 1.0], np.float32), dtype=np.float32
    )

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self._waves = np.zeros((2, 2))
        self._track = np.zeros((64, 64, 3), np.uint8)
        self._place, self._heading, self._speed, self._driven = np.zeros(2), 0.0, 0.0, 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._waves = self.np_random.uniform(-1.8, 1.8, (2, 2))
        on_road = np.abs(_RADII - self._middle(_ANGLES)) < _HALF_WIDTH
        self._track = np.where(on_road[..., None], np.array(_ROAD, np.uint8), np.array(_GRASS, np.uint8))
        angle = self.np_random.uniform(-np.pi, np.pi)
        self._place = self._at(angle)
        ahead = self._at(angle + 0.01) - self._place
        self._heading, self._speed, self._driven = float(np.arctan2(ahead[0], ahead[1])), 0.0, 0.0
        return self._picture(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        steer, gas = np.clip(action, self.action_space.low, self.action_space.high)
        self._speed = min(_TOP, self._speed + _ACCELERATION * float(gas) - _DRAG * self._speed)
        self._heading += _TURN * float(steer) * self._speed / _TOP
        before = self._angle()
        self._place = self._place + self._speed * np.array([np.sin(self._heading), np.cos(self._heading)])
        turned = float((self._angle() - before + np.pi) % (2.0 * np.pi) - np.pi)
        self._driven += turned
        off = bool(abs(np.hypot(*self._place) - self._middle(np.array(self._angle()))) > _HALF_WIDTH)
        reward = 100.0 * turned / (2.0 * np.pi) - 0.05 - (5.0 if off else 0.0)
        return self._picture(), reward, off or self._driven >= 2.0 * np.pi, False, {}

    def render(self) -> np.ndarray:
        """Draw the picture large enough for people, uint8 [384, 384, 3]."""
        return self._picture().repeat(6, axis=0).repeat(6, axis=1)

    def _middle(self, angles: np.ndarray) -> np.ndarray:
        """The radius of the road's middle at these angles, in pixels."""
        (a, b), (c, d) = self._waves
        bends = (
            a * np.sin(2.0 * angles) + b * np.cos(2.0 * angles) + c * np.sin(3.0 * angles) + d * np.cos(3.0 * angles)
        )
        return 21.0 + bends

    def _at(self, angle: float) -> np.ndarray:
        """The place (row, column) of the road's middle at an angle, from the picture's centre."""
        return float(self._middle(np.array(angle))) * np.array([np.sin(angle), np.cos(angle)])

    def _angle(self) -> float:
        return float(np.arctan2(self._place[0], self._place[1]))

    def _picture(self) -> np.ndarray:
        picture = self._track.copy()
        forward = np.array([np.sin(self._heading), np.cos(self._heading)])
        for at, colour, reach in ((0.0, _CAR, 1), (2.5, _NOSE, 0)):
            row, column = np.round(self._place + at * forward + 31.5).astype(int)
            picture[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1] = colour
        return picture
