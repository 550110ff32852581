"""The order in which M reads episodes, padding, and burning in."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from checker import check
from recordings import PixelVision, known_world

from wm_engine.memory.model import MDNRNN
from wm_engine.memory.sequences import Window, burnt_in, gather, schedule, whole_episodes
from wm_engine.vision.latents import encode_store


@pytest.fixture
def latents(tmp_path):
    return encode_store(PixelVision(logvar=-300.0), known_world(tmp_path / "rollouts"), tmp_path / "latents")


@pytest.mark.parametrize(("lanes", "length"), [(1, 5), (3, 4), (7, 100)])
def test_every_lane_reads_episodes_from_beginning_to_end(lanes, length):
    episodes, steps = [4, 9, 2, 7], [11, 1, 20, 8]
    lengths = dict(zip(episodes, steps, strict=True))
    rounds = list(itertools.islice(schedule(episodes, steps, lanes, length, seed=1), 200))
    for lane in range(lanes):
        windows = [windows[lane] for windows in rounds]
        assert windows[0].fresh
        for before, after in itertools.pairwise(windows):
            if before.stop < lengths[before.episode]:
                assert (after.episode, after.start, after.fresh) == (before.episode, before.stop, False)
            else:
                assert (after.start, after.fresh) == (0, True)
        assert all(window.stop == min(window.start + length, lengths[window.episode]) for window in windows)


def test_every_episode_is_read_equally_often():
    episodes, steps = list(range(5)), [10, 12, 7, 20, 3]
    rounds = itertools.islice(schedule(episodes, steps, 2, 6, seed=0), 300)
    begun = Counter(window.episode for windows in rounds for window in windows if window.fresh)
    assert max(begun.values()) - min(begun.values()) <= 1


def test_lanes_begin_at_different_times_of_their_episodes():
    first = next(schedule(list(range(8)), [1000] * 8, 8, 64, seed=0))
    assert len({window.start for window in first}) == 8


def test_the_order_follows_from_the_seed():
    def rounds(seed):
        return list(itertools.islice(schedule(list(range(6)), [30] * 6, 2, 8, seed), 20))

    assert rounds(3) == rounds(3)
    assert rounds(3) != rounds(4)


def test_gathered_windows_are_padded(latents):
    episode = next(index for index in range(len(latents)) if latents.read(index).terminated)
    steps = latents.steps[episode]
    batch = gather(latents, [Window(episode, steps - 3, steps, False), Window(0, 0, 8, True)], 8)
    assert batch.live.sum(0).tolist() == [3, 8]
    assert batch.fresh.tolist() == [False, True]
    assert batch.ends[:, 0].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert batch.ends[:, 1].sum() == 0
    record = latents.read(episode)
    assert torch.equal(batch.mu[:4, 0], record.mu[-4:])
    assert torch.equal(batch.actions[:3, 0], record.actions[-3:])
    assert torch.equal(batch.rewards[:3, 0], record.rewards[-3:])
    for padded in (batch.mu[4:, 0], batch.logvar[4:, 0], batch.actions[3:, 0], batch.rewards[3:, 0]):
        assert not padded.any()


def test_latents_are_drawn_anew_each_time(tmp_path):
    latents = encode_store(PixelVision(logvar=-2.0), known_world(tmp_path / "r", episodes=2), tmp_path / "l")
    batch = gather(latents, [Window(0, 0, 8, True)], 8)
    one, other = (batch.sample(torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert not torch.equal(one, other)
    assert torch.equal(one, batch.sample(torch.Generator().manual_seed(0)))


def test_whole_episodes_are_all_read_once(latents):
    batches = list(whole_episodes(latents, [1, 3, 4, 6, 8], lanes=2))
    assert [batch.live.shape[1] for batch in batches] == [2, 2, 1]
    lived = torch.cat([batch.live.sum(0) for batch in batches])
    assert sorted(lived.tolist()) == sorted(latents.steps[index] for index in (1, 3, 4, 6, 8))


def test_burning_in_equals_stepping(latents, monkeypatch):
    monkeypatch.setattr("wm_engine.memory.sequences._BURN_IN_LANES", 2)
    m = MDNRNN(2, 3, hidden=7, mixtures=2)
    places = [(0, 0), (1, 5), (0, latents.steps[0] - 1), (2, 0), (3, 1)]
    with torch.no_grad():
        z, h, c = burnt_in(m, latents, places, torch.Generator().manual_seed(0))
        double = MDNRNN(2, 3, hidden=7, mixtures=2).double()
        double.load_state_dict(m.state_dict())
        for place, (episode, step) in enumerate(places):
            record = latents.read(episode)
            states = {}
            for model, dtype in ((double, torch.float64), (m, torch.float32)):
                state = model.initial_state(1)
                for t in range(step):
                    state = model.step(record.mu[None, t].to(dtype), record.actions[None, t].to(dtype), state)
                states[dtype] = state
            assert torch.equal(z[place], record.mu[step])
            for name, ours, reference, peer in zip(
                "hc", (h[place], c[place]), states[torch.float64], states[torch.float32], strict=True
            ):
                check(f"{name} at {episode}, {step}", ours, reference[0], peer[0])
