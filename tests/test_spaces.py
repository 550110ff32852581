"""Spaces: what they say of arrays, and how they are written into a file's header."""

import json

import numpy as np
import pytest

from wm_engine.spaces import Box, Codes, Discrete, Pixels, Spaces, Vector

BOX = Box((-1.0, 0.0), (1.0, 0.5))


@pytest.mark.parametrize(
    ("space", "shape", "dtype"),
    [
        (Pixels(), (64, 64, 3), np.uint8),
        (Pixels((8, 6, 3)), (8, 6, 3), np.uint8),
        (Vector(5), (5,), np.float32),
        (Codes((4, 2), 9), (4, 2), np.int32),
        (BOX, (2,), np.float32),
        (Discrete(3), (), np.int32),
    ],
)
def test_shape_and_type(space, shape, dtype):
    assert (space.shape, space.dtype) == (shape, dtype)


def test_a_box_clips_to_its_bounds():
    low, high = BOX.bounds
    assert (low.tolist(), high.tolist(), low.dtype, high.dtype) == ([-1, 0], [1, 0.5], np.float32, np.float32)
    clipped = BOX.clip(np.array([[-3.0, 0.2], [0.5, 9.0]]))
    assert np.array_equal(clipped, np.array([[-1.0, 0.2], [0.5, 0.5]], np.float32))
    assert clipped.dtype == np.float32
    assert BOX.size == 2


def test_a_box_is_stored_as_it_is():
    actions = np.random.default_rng(0).random((4, 2), dtype=np.float32)
    assert (BOX.to_stored(actions) == actions).all()
    assert (BOX.from_stored(BOX.to_stored(actions)) == actions).all()


def test_a_discrete_action_is_one_hot_to_models_and_a_number_in_the_store():
    space = Discrete(3)
    actions = np.array([[0.1, 0.9, 0.3], [2.0, -1.0, 2.0]], np.float32)
    stored = space.to_stored(actions)
    assert (stored.tolist(), stored.dtype) == ([1, 0], np.int32)
    assert space.from_stored(stored).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert space.clip(actions).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert space.clip(actions).dtype == space.bounds[0].dtype == np.float32
    assert [bound.tolist() for bound in space.bounds] == [[0] * 3, [1] * 3]
    one = space.to_stored(actions[0])
    assert (one.shape, one.dtype, int(one)) == ((), np.int32, 1)
    assert space.from_stored(one).tolist() == [0, 1, 0]
    assert space.size == 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Box((), ()), "low and high must be of one length of at least 1"),
        (lambda: Box((0.0,), (1.0, 2.0)), r"but had \(0\.0,\) and \(1\.0, 2\.0\)"),
        (lambda: Discrete(1), "count must be at least 2, but was 1"),
    ],
)
def test_impossible_spaces_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    "spaces",
    [Spaces(Pixels(), BOX), Spaces(Vector(4), Discrete(2)), Spaces(Codes((4, 4), 512), Box((0.1,), (0.2,)))],
)
def test_spaces_survive_a_file(spaces):
    assert Spaces.from_json(json.loads(json.dumps(spaces.to_json()))) == spaces


@pytest.mark.parametrize(
    "change",
    [
        {"actions": {"kind": "Pixels", "shape": [64, 64, 3]}},
        {"actions": {"kind": "Box", "low": [0.0]}},
        {"actions": {"kind": "Discrete", "count": 1}},
        {"observations": {"kind": "Sound"}},
        {"observations": {"shape": [3]}},
        {"observations": 3},
    ],
)
def test_a_description_that_is_none_is_named(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be described as one of "):
        Spaces.from_json(Spaces(Pixels(), BOX).to_json() | change)
