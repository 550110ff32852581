"""Which episodes are learnt from: those of the rounds so far, new and old mixed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from wm_engine.data.replay import Replay, draw_frames
from wm_engine.data.store import Episode, RolloutStore, split_episodes
from wm_engine.spaces import Discrete, Spaces, Vector

HOLDOUT = 0.25


def stored(folder, lengths, rounds):
    """Episodes of a vector that tells the episode's number and the step."""
    store = RolloutStore.open(folder, Spaces(Vector(2), Discrete(2)), chunk_steps=4)
    for index, (steps, number) in enumerate(zip(lengths, rounds, strict=True)):
        seen = np.stack([np.full(steps + 1, index), np.arange(steps + 1)], axis=1).astype(np.float32)
        still = np.zeros(steps, np.int32)
        store.append(Episode(seen, still, np.zeros(steps, np.float32), False, True, index, "test", number))
    return store


@pytest.fixture
def store(tmp_path):
    return stored(tmp_path, [3] * 30, [0] * 10 + [1] * 8 + [2] * 12)


@pytest.mark.parametrize(("number", "count", "newest"), [(0, 10, 0), (1, 18, 10), (2, 30, 18), (7, 30, None)])
def test_a_round_sees_the_episodes_up_to_its_own(store, number, count, newest):
    replay = Replay(store, number, HOLDOUT)
    assert replay.episodes == list(range(count))
    assert (replay.training, replay.held_out) == split_episodes(count, HOLDOUT)
    assert replay.newest == ([] if newest is None else list(range(newest, count)))


def test_nothing_is_drawn_from_what_is_held_out(store):
    replay = Replay(store, 2, HOLDOUT)
    drawn = {index for seed in range(40) for index in replay.draw(np.random.default_rng(seed), 16, 0.5, 6)}
    spread = {index for seed in range(40) for index in replay.spread(np.random.default_rng(seed), 16)}
    assert drawn == set(replay.training)
    assert spread == set(replay.training)


@pytest.mark.parametrize(("share", "new"), [(0.0, 0), (0.3, 5), (0.5, 8), (1.0, 16)])
def test_a_share_of_a_batch_is_of_the_newest(store, share, new):
    replay, recent = Replay(store, 2, HOLDOUT), 4
    newest = set(replay.training[-recent:])
    rounds = [replay.draw(np.random.default_rng(seed), 16, share, recent) for seed in range(200)]
    assert all(len(drawn) == 16 for drawn in rounds)
    assert all(set(drawn[:new]) <= newest for drawn in rounds)
    counts = Counter(index for drawn in rounds for index in drawn[new:])
    if share < 1.0:
        assert counts.keys() == set(replay.training), "the rest is drawn from all"


def test_more_recent_episodes_than_there_are_is_all(store):
    replay = Replay(store, 0, HOLDOUT)
    drawn = {index for seed in range(40) for index in replay.draw(np.random.default_rng(seed), 8, 1.0, 64)}
    assert drawn == set(replay.training)


def test_what_is_drawn_follows_from_the_generator(store):
    replay = Replay(store, 2, HOLDOUT)
    for choose in (lambda rng: replay.draw(rng, 8, 0.5, 6), lambda rng: replay.spread(rng, 8)):
        assert choose(np.random.default_rng(1)) == choose(np.random.default_rng(1))
        assert choose(np.random.default_rng(1)) != choose(np.random.default_rng(2))


@pytest.mark.parametrize("count", [1, 2, 5, 12, 200])
def test_a_spread_is_half_new_and_never_twice_the_same(store, count):
    replay = Replay(store, 2, HOLDOUT)
    for seed in range(10):
        chosen = replay.spread(np.random.default_rng(seed), count)
        assert len(chosen) == len(set(chosen)) == min(count, len(replay.training))
        new = replay.training[-max(1, count // 2) :]
        assert chosen[: len(new)] == new


def test_frames_are_drawn_evenly_without_repetition(tmp_path):
    lengths = [2, 5, 9, 1]
    store = stored(tmp_path, lengths, [0] * 4)
    wanted = [0, 1, 3]
    all_places = {(index, step) for index in wanted for step in range(lengths[index] + 1)}
    counts: Counter[tuple[int, int]] = Counter()
    for seed in range(600):
        frames = draw_frames(store, wanted, np.random.default_rng(seed), 4)
        places = [(int(index), int(step)) for index, step in frames]
        assert len(set(places)) == 4
        counts.update(places)
    assert counts.keys() == all_places
    # Each of 11 places is drawn with chance 4/11, 600 times: five standard deviations.
    chance = 4 / len(all_places)
    assert all(abs(count - 600 * chance) < 5 * (600 * chance * (1 - chance)) ** 0.5 for count in counts.values())


def test_more_frames_than_there_are_is_all_of_them_in_random_order(tmp_path):
    store = stored(tmp_path, [3, 6], [0, 0])
    frames = draw_frames(store, [0, 1], np.random.default_rng(0), 100)
    places = [(int(index), int(step)) for index, step in frames]
    in_order = [(0, step) for step in range(4)] + [(1, step) for step in range(7)]
    assert sorted(places) == in_order
    assert places != in_order
    again = draw_frames(store, [0, 1], np.random.default_rng(0), 100)
    assert np.array_equal(frames, again)
