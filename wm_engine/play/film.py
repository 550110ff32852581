"""A recording of what a visitor saw, as an MP4."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import numpy as np

from wm_engine.real.scoring import write_mp4

_LEAST_HEIGHT = 384
_GAP = 8


class Film:
    """Takes pictures one by one, and gives the bytes of an MP4 (H.264) when it ends.

    Pictures are encoded as they come, into a temporary folder that goes with the film: memory does not grow.

    Parameters
    ----------
    rate : pictures a second; panels : how many pictures stand side by side
    most_seconds : of a film; pictures that come later are left out
    """

    def __init__(self, rate: float, panels: int, most_seconds: int = 300) -> None:
        self._rate, self._panels, self._most = rate, panels, int(rate * most_seconds)
        self.pictures = 0
        self._folder, self._encoder = contextlib.ExitStack(), contextlib.ExitStack()
        self._path = Path()

    def add(self, pictures: list[np.ndarray]) -> None:
        """Add the pictures of one moment, uint8 [height, width, 3] each, all of one size; missing panels stay dark."""
        if self.pictures == self._most:
            return
        height, width = pictures[0].shape[:2]
        scale = max(1, _LEAST_HEIGHT // height)
        whole = np.zeros((height * scale, self._panels * (width * scale + _GAP) - _GAP, 3), np.uint8)
        for index, picture in enumerate(pictures[: self._panels]):
            left = index * (width * scale + _GAP)
            whole[:, left : left + width * scale] = picture.repeat(scale, axis=0).repeat(scale, axis=1)
        if not self.pictures:
            self._begin()
        self._write(whole)
        self.pictures += 1

    def _begin(self) -> None:
        folder = self._folder.enter_context(tempfile.TemporaryDirectory(prefix="wm_engine-play-"))
        self._path = Path(folder) / "dream.mp4"
        self._write = self._encoder.enter_context(write_mp4(self._path, max(1, round(self._rate))))

    def finish(self) -> bytes:
        """End the film and return its bytes, none where it has no picture. StorageError where the disk is full."""
        try:
            self._encoder.close()
            return self._path.read_bytes() if self.pictures else b""
        finally:
            self._folder.close()

    def drop(self) -> None:
        """End the film and forget it."""
        with contextlib.suppress(Exception):
            self.finish()
