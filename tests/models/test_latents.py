"""Encoded episodes: made when they are asked for, kept while there is room, the same bits each time."""

from __future__ import annotations

import pytest
import torch
from checker import check
from recordings import AFTER_THE_END, PixelVision, known_world, shades

from wm_engine.data.sequences import stack_windows
from wm_engine.errors import WMEngineError
from wm_engine.models import latents as module
from wm_engine.models.latents import LatentCache
from wm_engine.models.vae import VAE

CPU = torch.device("cpu")
FIELDS = ("mu", "logvar", "actions", "rewards")


@pytest.fixture
def store(tmp_path):
    return known_world(tmp_path / "rollouts", episodes=10)


def episodes_read(store, monkeypatch):
    """Have ``store`` note which episodes are read whole."""
    seen, read = [], store.read
    monkeypatch.setattr(store, "read", lambda index: (seen.append(index), read(index))[1])
    return seen


def same(one, other):
    parts = all(torch.equal(getattr(one, name), getattr(other, name)) for name in FIELDS)
    return parts and one.terminated == other.terminated


def size_of(episode):
    return sum(getattr(episode, name).numel() * 4 for name in FIELDS)


def test_latents_are_what_the_vae_makes_of_the_frames(tmp_path):
    store, vae = shades(tmp_path / "rollouts", episodes=2), VAE(5)
    cache = LatentCache(vae, store, CPU)
    for index in range(len(store)):
        frames = torch.from_numpy(store.read(index).observations)
        with torch.inference_mode():
            mu, logvar = vae.double().encode(frames)
            peers = vae.float().encode(frames)
        episode = cache.read(index)
        assert episode.mu.dtype == episode.logvar.dtype == torch.float32
        check("mu", episode.mu, mu, peers[0])
        check("logvar", episode.logvar, logvar, peers[1])


def test_episodes_are_kept_whole(store):
    cache = LatentCache(PixelVision(), store, CPU)
    for index in range(len(store)):
        record, episode = store.read(index), cache.read(index)
        assert episode.steps == store.info(index).steps
        assert torch.equal(episode.mu[:, 0] * 32.0 + 128.0, torch.from_numpy(record.observations[:, 0, 0, 0]).float())
        assert torch.equal(episode.actions, torch.from_numpy(record.actions))
        assert torch.equal(episode.rewards, torch.from_numpy(record.rewards))
        assert episode.terminated == record.terminated
        assert (record.observations[-1, 0, 1, 0] == AFTER_THE_END) == record.terminated
    assert {store.info(index).terminated for index in range(len(store))} == {True, False}


def test_an_episode_is_encoded_once(store, monkeypatch):
    seen = episodes_read(store, monkeypatch)
    cache = LatentCache(PixelVision(), store, CPU)
    first = cache.read(3)
    assert cache.read(3) is first
    cache.read(4)
    assert seen == [3, 4]
    assert cache.encoded == sum(store.info(index).steps + 1 for index in (3, 4))


def test_the_least_recently_read_make_room(store, monkeypatch):
    sizes = {index: size_of(LatentCache(PixelVision(), store, CPU).read(index)) for index in range(4)}
    seen = episodes_read(store, monkeypatch)
    cache = LatentCache(PixelVision(), store, CPU, most_bytes=sum(sizes.values()) - 1)
    for index in (0, 1, 2, 0, 3):  # 3 takes the room of 1, the longest unread
        cache.read(index)
    assert seen == [0, 1, 2, 3]
    for index in (0, 2, 3):
        cache.read(index)
    assert seen == [0, 1, 2, 3]
    cache.read(1)
    assert seen == [0, 1, 2, 3, 1]


def test_an_episode_larger_than_the_bound_is_kept_alone(store, monkeypatch):
    seen = episodes_read(store, monkeypatch)
    cache = LatentCache(PixelVision(), store, CPU, most_bytes=1)
    for index in (0, 0, 1, 1, 0):
        cache.read(index)
    assert seen == [0, 1, 0]


def test_the_memory_that_is_kept_is_bounded(store):
    bound = 2 * max(size_of(LatentCache(PixelVision(), store, CPU).read(index)) for index in range(10))
    cache = LatentCache(PixelVision(), store, CPU, most_bytes=bound)
    for index in [*range(10), *range(0, 10, 2), *range(9, -1, -1)]:
        cache.read(index)
        assert sum(map(size_of, cache._kept.values())) == cache._bytes <= bound


def test_the_same_bits_come_back_whatever_was_read_before(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ENCODED_AT_ONCE", 5)
    store, vae = shades(tmp_path / "rollouts", episodes=4), VAE(3)
    alone = LatentCache(vae, store, CPU).read(2)
    small, large = LatentCache(vae, store, CPU, most_bytes=1), LatentCache(vae, store, CPU)
    for order in ((0, 1, 3, 2), (2, 2), (1, 2)):
        for index in order:
            ours, theirs = small.read(index), large.read(index)
            assert same(ours, theirs)
            if index == 2:
                assert same(ours, alone)


def test_another_v_is_asked_anew(store, monkeypatch):
    vision, seen = PixelVision(), episodes_read(store, monkeypatch)
    cache = LatentCache(vision, store, CPU)
    before = cache.read(0)
    vision.log_variance.fill_(-3.0)
    assert cache.read(0) is before
    cache.clear()
    after = cache.read(0)
    assert seen == [0, 0]
    assert torch.equal(after.logvar, torch.full_like(after.logvar, -3.0))
    assert cache._bytes == size_of(after)


def test_episodes_that_came_later_are_read_too(store):
    cache = LatentCache(PixelVision(), store, CPU)
    cache.read(9)
    index = store.append(store.read(0))
    assert same(cache.read(index), cache.read(0))


def test_latents_are_ordinary_numbers_on_the_cpu(store):
    episode = LatentCache(PixelVision(), store, CPU).read(0)
    for name in FIELDS:
        assert getattr(episode, name).device == CPU
        assert getattr(episode, name).dtype == torch.float32
    assert not episode.mu.requires_grad


def test_latents_that_are_not_finite_are_refused(store):
    with pytest.raises(WMEngineError, match=r"V encodes episode 4 to latents that are not finite.*learning_rate"):
        LatentCache(PixelVision(logvar=float("inf")), store, CPU).read(4)


def test_latents_that_are_not_drawn_are_the_posteriors_means(store):
    episode = LatentCache(PixelVision(logvar=0.0), store, CPU, drawn=False).read(0)
    batch = stack_windows([episode])
    assert torch.equal(batch.sample(torch.Generator()), batch.mu)
