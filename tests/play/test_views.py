"""Pictures of whatever is observed."""

from __future__ import annotations

import numpy as np

from wm_engine.play.views import make_view
from wm_engine.spaces import Codes, Pixels, Vector

NONE = (np.zeros(0), np.ones(0))


def test_pictures_are_shown_as_they_are():
    picture = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    assert (make_view(Pixels(), NONE)(picture) == picture).all()


def test_a_trace_goes_up_and_down_with_its_number_and_moves_to_the_left():
    view = make_view(Vector(1), (np.zeros(1), np.ones(1)))
    paper = view(np.zeros(1))[0, 0]
    rows = []
    for value in (0.0, 0.5, 1.0, 9.0):
        picture = view(np.array([value]))
        drawn = (picture[:-2, -2:] != paper).any(axis=(1, 2))
        rows.append(np.flatnonzero(drawn)[0])
    assert rows[0] > rows[1] > rows[2] == rows[3]  # what is out of the bounds stays at the rim
    assert (picture[:-2, -10:] != paper).any(axis=(0, 2)).all()
    assert not (picture[:-2, :-10] != paper).any()
    for _ in range(300):  # no more than fits
        assert view(np.zeros(1)).shape == picture.shape


def test_vectors_longer_than_there_is_room_for_are_drawn_in_part():
    shapes = {
        make_view(Vector(size), (np.zeros(size), np.zeros(size)))(np.zeros(size)).shape for size in (1, 2, 7, 16, 300)
    }
    assert len(shapes) == 1


def test_codes_have_colours_of_their_own():
    picture = make_view(Codes((2, 3), 6), NONE)(np.arange(6).reshape(2, 3))
    assert picture.dtype == np.uint8
    assert len({tuple(colour) for colour in picture.reshape(-1, 3)}) == 6
