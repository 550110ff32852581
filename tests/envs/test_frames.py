import numpy as np
import pytest

from wm_engine.envs import preprocess


def test_a_flat_picture_keeps_its_colour():
    frames = np.full((2, 96, 96, 3), (102, 204, 40), dtype=np.uint8)
    small = preprocess(frames, rows=84)
    assert small.shape == (2, 64, 64, 3)
    assert small.dtype == np.uint8
    assert (small == np.array([102, 204, 40])).all()


def test_rows_below_are_left_out():
    frames = np.zeros((1, 96, 96, 3), dtype=np.uint8)
    frames[:, 84:] = 255
    assert preprocess(frames, rows=84).max() == 0
    assert preprocess(frames).max() == 255


def test_pictures_of_another_size():
    assert preprocess(np.zeros((2, 40, 60, 3), np.uint8), size=(32, 48)).shape == (2, 32, 48, 3)


def test_it_is_the_antialiased_bilinear_reduction():
    # Reference in float64: a triangle filter of half-width 1.5 input pixels (96 to 64), weights normalised.
    frames = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3), dtype=np.uint8)
    centres = (np.arange(64) + 0.5) * 1.5
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(96)[None] + 0.5 - centres[:, None]) / 1.5)
    weights /= weights.sum(axis=1, keepdims=True)
    expected = np.einsum("yh,xw,nhwc->nyxc", weights, weights, frames.astype(np.float64))
    assert np.abs(preprocess(frames) - expected).max() <= 1.5  # one rounding to uint8 a direction, plus weights


def test_a_frame_does_not_depend_on_its_batch():
    frames = np.random.default_rng(1).integers(0, 256, (5, 96, 96, 3), dtype=np.uint8)
    whole = preprocess(frames, 84)
    assert all((preprocess(frames[i : i + 1], 84)[0] == whole[i]).all() for i in range(5))


def test_the_input_is_left_alone_even_where_it_is_read_only():
    frames = np.random.default_rng(2).integers(0, 256, (1, 96, 96, 3), dtype=np.uint8)
    before = frames.copy()
    frames.flags.writeable = False
    preprocess(frames, rows=84)
    preprocess(frames)
    assert (frames == before).all()


@pytest.mark.parametrize(
    ("frames", "error", "words"),
    [
        (np.zeros((1, 96, 96, 3), np.float32), TypeError, "uint8"),
        ([[0]], TypeError, "uint8"),
        (np.zeros((96, 96, 3), np.uint8), ValueError, r"\[N, height, width, 3\]"),
        (np.zeros((1, 96, 96, 4), np.uint8), ValueError, r"\[1, 96, 96, 4\]"),
        (np.zeros((0, 96, 96, 3), np.uint8), ValueError, r"\[0, 96, 96, 3\]"),
    ],
)
def test_bad_frames_are_named(frames, error, words):
    with pytest.raises(error, match=words):
        preprocess(frames)
