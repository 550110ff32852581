"""Films: what was seen, as an MP4, and nothing left behind."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
from imageio_ffmpeg import count_frames_and_secs, read_frames

from wm_engine.play.film import Film


@pytest.fixture(autouse=True)
def _temporary(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_film_has_every_picture_side_by_side(tmp_path):
    film = Film(rate=30.0, panels=2)
    for _ in range(7):
        film.add([np.full((64, 64, 3), 200, np.uint8), np.full((64, 64, 3), 40, np.uint8)])
    data = film.finish()
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "film.mp4"
    path.write_bytes(data)
    assert count_frames_and_secs(str(path))[0] == film.pictures == 7
    frames = read_frames(str(path))
    width, height = next(frames)["size"]
    picture = np.frombuffer(next(frames), np.uint8).reshape(height, width, 3)
    frames.close()
    assert picture[:, : width // 3].mean() > 150 > 80 > picture[:, -width // 3 :].mean()


def test_a_film_is_no_longer_than_its_limit():
    film = Film(rate=2.0, panels=1, most_seconds=2)
    for _ in range(9):
        film.add([np.zeros((64, 64, 3), np.uint8)])
    assert film.pictures == 4
    film.drop()


@pytest.mark.parametrize("pictures", [0, 3])
def test_a_dropped_film_leaves_nothing_behind(tmp_path, pictures):
    film = Film(rate=30.0, panels=1)
    for _ in range(pictures):
        film.add([np.zeros((64, 64, 3), np.uint8)])
    film.drop()
    assert list(tmp_path.iterdir()) == []
