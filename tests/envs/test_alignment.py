"""EnvPool's CarRacing held against gymnasium's, driven with the same actions: close enough to share models.

The same seed gives other tracks (docs/environments.md), so what is compared is the straight that every track begins
with.
"""

import contextlib

import numpy as np
import pytest

from wm_engine.envs import EnvSettings, backends, make_env

pytestmark = pytest.mark.skipif(backends()["envpool"] is not None, reason="EnvPool has no wheel for this machine")

SEEDS = range(6)
STEPS = 70
ZOOMED_IN = 50  # the camera comes down in the first second


@pytest.fixture(scope="module")
def straight():
    """Of each backend: frames [T+1, N, 64, 64, 3] and rewards [T, N] of a car going straight on, gently."""
    driven = {}
    for backend in ("gymnasium", "envpool"):
        with contextlib.closing(make_env(EnvSettings(backend=backend, action_repeat=1), len(SEEDS))) as env:
            frames, rewards = [env.reset(SEEDS)], []
            for _ in range(STEPS):
                step = env.step(np.tile(np.array([[0.0, 0.1, 0.0]], np.float32), (len(SEEDS), 1)))
                assert not step.ended.any()
                frames.append(step.observations)
                rewards.append(step.rewards)
        driven[backend] = np.stack(frames).astype(np.int16), np.stack(rewards).astype(np.float64)
    return driven


def tiles(rewards):
    """The number of tiles of every track: the first step pays for the two that the car stands on."""
    return 2000.0 / (rewards[0] + 0.1)


def test_a_step_pays_for_whole_tiles_less_a_tenth(straight):
    for _, rewards in straight.values():
        count = tiles(rewards)
        assert np.abs(count - np.rint(count)).max() < 1e-3
        assert (count > 200).all()
        assert (count < 420).all()
        paid = (rewards + 0.1) * count / 1000.0
        assert np.abs(paid - np.rint(paid)).max() < 1e-5
        assert (paid >= -1e-5).all()


def test_the_car_moves_alike(straight):
    # Under the same gas both cars reach the same tiles at the same steps.
    visits = [rewards > 0 for _, rewards in straight.values()]
    assert visits[0].sum() >= 4 * len(SEEDS)
    assert (visits[0] == visits[1]).mean() > 0.97
    assert (visits[0] == np.roll(visits[1], 3, axis=0)).mean() < 0.95  # which three steps more or less would fail


def test_frames_show_the_same_at_the_same_step(straight):
    ours, theirs = (frames for frames, _ in straight.values())
    difference = np.abs(ours - theirs)[ZOOMED_IN:]
    assert difference.mean() < 2.0  # of 255; measured 1.6
    assert (difference.max(axis=-1) > 32).mean() < 0.02  # outlines, which gymnasium draws smoother; measured 1.1 %

    def apart(lag, down, right):
        shown = np.roll(theirs, (-lag, down, right), axis=(0, 2, 3))
        return np.abs(ours - shown)[10 : STEPS - 5, :, 4:-4, 4:-4].mean()

    here = apart(0, 0, 0)
    assert all(here < apart(lag, 0, 0) for lag in (-2, -1, 1, 2))
    assert all(here < apart(0, down, right) for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)))


def test_flat_colours_are_equal(straight):
    places = {"grass": np.s_[ZOOMED_IN:, :, 50:60, :16], "road": np.s_[ZOOMED_IN:, :, 44:60, 36:38]}
    for name, place in places.items():
        ours, theirs = (np.median(frames[place], axis=(0, 1, 2, 3)) for frames, _ in straight.values())
        assert np.abs(ours - theirs).max() <= (0 if name == "grass" else 3), name  # gymnasium repaints visited tiles


def test_the_first_frames_show_the_field_from_afar(straight):
    first = [frames[0] for frames, _ in straight.values()]
    assert np.abs(first[0] - first[1]).mean() < np.abs(first[0] - straight["gymnasium"][0][-1]).mean() / 4
