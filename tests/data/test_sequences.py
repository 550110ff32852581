"""Encoded episodes side by side: padding, windows, burning in, drawing latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recordings import PixelVision, encoded, known_world

from wm_engine.data.sequences import EncodedEpisode, cut_windows, stack_windows


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    return encoded(PixelVision(), known_world(tmp_path_factory.mktemp("world")))


def numbered(steps, number, latent=2, actions=3):
    """An episode whose every entry tells the episode's number and the step."""
    at = 100.0 * number + torch.arange(steps + 1.0)
    columns = at.unsqueeze(1)
    return EncodedEpisode(
        columns.expand(-1, latent), -columns.expand(-1, latent), columns[:-1].expand(-1, actions), at[:-1], True
    )


def assert_lane(batch, lane, episode, start, stop):
    """Lane ``lane`` holds steps ``start`` to ``stop`` of an episode, and zeros after them."""
    steps = stop - start
    for name, count in (("mu", steps + 1), ("logvar", steps + 1), ("actions", steps), ("rewards", steps)):
        part, padded = getattr(batch, name)[:count, lane], getattr(batch, name)[count:, lane]
        assert torch.equal(part, getattr(episode, name)[start : start + count])
        assert not padded.any()
    assert batch.live[:, lane].tolist() == [step < steps for step in range(len(batch.live))]
    ended = episode.terminated and stop == episode.steps
    assert batch.ends[:, lane].tolist() == [float(ended and step == steps - 1) for step in range(len(batch.ends))]


def test_windows_are_parts_of_their_episode(episodes):
    whole = next(episode for episode in episodes if episode.terminated)
    steps = whole.steps
    for start, stop in ((0, 1), (2, 5), (steps - 1, steps)):
        window = whole.window(start, stop)
        assert window.steps == stop - start
        assert torch.equal(window.mu, whole.mu[start : stop + 1])
        assert torch.equal(window.logvar, whole.logvar[start : stop + 1])
        assert torch.equal(window.actions, whole.actions[start:stop])
        assert torch.equal(window.rewards, whole.rewards[start:stop])
        assert window.terminated == (stop == steps)
    cut_by_a_limit = next(episode for episode in episodes if not episode.terminated)
    assert not cut_by_a_limit.window(0, cut_by_a_limit.steps).terminated


def test_episodes_side_by_side_are_padded_with_zeros(episodes):
    batch = stack_windows(episodes)
    assert len(batch.live) == max(episode.steps for episode in episodes)
    assert len({episode.steps for episode in episodes}) > 1
    for lane, episode in enumerate(episodes):
        assert_lane(batch, lane, episode, 0, episode.steps)
    assert batch.before is None
    assert batch.continued is None


def test_a_length_of_zero_takes_whole_episodes(episodes):
    cut, stacked = cut_windows(episodes, 0, np.random.default_rng(0)), stack_windows(episodes)
    steps = len(stacked.live)
    assert len(cut.live) % 32 == 0  # of few lengths
    assert not cut.live[steps:].any()
    for name in ("mu", "actions", "rewards", "live"):
        kept = steps + (name == "mu")
        assert torch.equal(getattr(cut, name)[:kept], getattr(stacked, name))
        assert not getattr(cut, name)[kept:].any()
    assert cut.before is None


@pytest.mark.parametrize("length", [1, 4, 7, 100])
def test_a_window_begins_at_a_multiple_of_its_length_with_the_one_before_it(length):
    episodes = [numbered(steps, number) for number, steps in enumerate([11, 4, 5, 23, 1, 8])]
    firsts = [set() for _ in episodes]
    for seed in range(300):
        batch = cut_windows(episodes, length, np.random.default_rng(seed))
        before = iter(range(0 if batch.before is None else batch.before.live.shape[1]))
        for lane, episode in enumerate(episodes):
            first = int(batch.rewards[0, lane]) - 100 * lane
            firsts[lane].add(first)
            assert first % length == 0
            assert_lane(batch, lane, episode, first, min(first + length, episode.steps))
            continues = batch.continued is not None and bool(batch.continued[lane])
            assert continues == (first > 0)
            if continues:
                assert_lane(batch.before, next(before), episode, first - length, first)
        assert next(before, None) is None
    assert firsts == [set(range(0, episode.steps, length)) for episode in episodes], "every window is drawn"


def test_windows_follow_from_the_generator():
    episodes = [numbered(40, number) for number in range(8)]
    one, same, other = (cut_windows(episodes, 5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.mu, same.mu)
    assert torch.equal(one.before.mu, same.before.mu)
    assert not torch.equal(one.mu, other.mu)


def test_a_batch_moves_with_what_stands_before_it():
    batch = cut_windows([numbered(40, number) for number in range(6)], 5, np.random.default_rng(0))
    moved = batch.to(torch.device("meta"))
    assert all(value.device.type == "meta" for value in (moved.mu, moved.live, moved.continued, moved.before.actions))


def test_latents_are_drawn_anew_with_each_generator(episodes):
    batch = stack_windows(episodes)
    one, same, other = (batch.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_drawn_latents_follow_the_posterior():
    mu, logvar = torch.randn(6, 3), torch.randn(6, 3)
    batch = stack_windows([EncodedEpisode(mu, logvar, torch.zeros(5, 1), torch.zeros(5), False)])
    count = 4000
    draws = torch.stack([batch.sample(torch.Generator().manual_seed(seed))[:, 0] for seed in range(count)])
    standard = (draws - mu) / torch.exp(0.5 * logvar)
    # Five standard errors of a mean and of a variance of 18 * 4000 normals.
    assert abs(float(standard.mean())) < 5 / standard.numel() ** 0.5
    assert abs(float(standard.var()) - 1.0) < 5 * (2 / standard.numel()) ** 0.5
