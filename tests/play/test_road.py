"""The road begins where the record says, and goes on under the actions it is given."""

from __future__ import annotations

import contextlib

import numpy as np


def test_the_road_comes_by_a_recorded_state_again(vectors):
    store = vectors.store
    with contextlib.closing(vectors.road()) as road:
        for episode, step in ((0, 0), (2, 5), (1, 3)):
            road.begin(episode, step)
            assert road.repeats
            assert (road.observation == store.observations(episode, step, step + 1)[0]).all()
            assert road.total == 0.0
        actions, rewards = store.actions_and_rewards(1)
        road.step(actions[3])
        assert road.total == rewards[3]
        assert (road.observation == store.observations(1, 4, 5)[0]).all()


def test_nothing_happens_after_the_end(vectors):
    with contextlib.closing(vectors.road()) as road:
        road.begin(0, 0)
        while not road.ended:
            road.step(np.eye(3, dtype=np.float32)[2])
        total = road.total
        road.step(np.eye(3, dtype=np.float32)[2])
        assert road.total == total > 0.5  # the right end has paid once


def test_a_road_that_is_not_the_recorded_one_is_told(vectors, monkeypatch):
    other = vectors.store.info(1)
    monkeypatch.setattr(vectors.store, "info", lambda index: other)
    with contextlib.closing(vectors.road()) as road:
        road.begin(0, 0)
        assert not road.repeats
