"""CarRacing's own: tiles at their mean price."""

from __future__ import annotations

import numpy as np
from checker import check

from wm_engine.envs.tasks.car_racing import price_tiles


def episode(tiles: int, taken: list[int], repeat: int = 4) -> np.ndarray:
    """Rewards of steps that took so many of a track's tiles."""
    return (np.array(taken) * 1000.0 / tiles - 0.1 * repeat).astype(np.float32)


def test_equal_driving_is_paid_alike_on_every_track():
    taken = [0, 1, 2, 0, 3, 1]
    short, long = (price_tiles(episode(tiles, taken), 4) for tiles in (242, 350))
    check("short beside long", short, long.astype(np.float64), episode(242, taken) * 0 + long)
    assert (np.diff(short[[0, 1, 2, 4]]) > 3.0).all()


def test_what_is_no_tile_stays():
    assert np.array_equal(price_tiles(episode(300, [0, 0]), 4), episode(300, [0, 0]))
    lost = np.append(episode(300, [1, 0]), np.float32(-100.4))
    assert price_tiles(lost, 4)[-1] == np.float32(-100.4)


def test_an_episode_that_never_took_a_single_tile_says_no_price():
    assert np.array_equal(price_tiles(episode(300, [2, 0]), 4), episode(300, [2, 0]))
