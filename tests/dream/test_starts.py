"""Recorded states as beginnings of dreams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checker import check
from models.drift import Drift
from recordings import AFTER_THE_END, PixelVision, encoded, known_world

from wm_engine.dream import starts as module
from wm_engine.dream.starts import recorded_starts, states_at
from wm_engine.models.mdn_rnn import MDNRNN

FLAG = (AFTER_THE_END - 128.0) / 32.0


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    return encoded(PixelVision(logvar=-300.0), known_world(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def m():
    return MDNRNN(2, 3, hidden=5, mixtures=2)


def observed(m, episode, step):
    """(h, c) before a step, float64 and float32: the episode's steps before it, taken one by one."""
    states = []
    for dtype in (torch.float64, torch.float32):
        model = MDNRNN(m.latent, m.action, m.hidden, m.mixtures).to(dtype)
        model.load_state_dict(m.state_dict())
        state = model.initial(1)
        with torch.no_grad():
            for t in range(step):
                state = model.observe(episode.mu[None, t].to(dtype), episode.actions[None, t].to(dtype), state)
        states.append([part[0] for part in state])
    return states


def test_beginnings_of_episodes_have_no_memory(m, episodes):
    starts = recorded_starts(m, episodes, count=9, mid_fraction=0.0, seed=0)
    assert starts.z.shape == (9, 2)
    assert starts.z.dtype == starts.h.dtype == starts.c.dtype == torch.float32
    assert not starts.h.any()
    assert not starts.c.any()
    # Every episode of the known world begins at position 128.
    assert not starts.z[:, 0].any()


@pytest.mark.parametrize("lanes", [1, 3, 64])
def test_states_are_what_observing_one_by_one_leads_to(m, episodes, monkeypatch, lanes):
    monkeypatch.setattr(module, "_MOST_LANES", lanes)
    places = [(0, 0), (1, 5), (0, episodes[0].steps - 1), (2, 0), (7, 1), (1, 5), (4, episodes[4].steps)]
    owners, steps = (np.array(column) for column in zip(*places, strict=True))
    starts = states_at(m, episodes, owners, steps, seed=3)
    for place, (owner, step) in enumerate(places):
        exact, peer = observed(m, episodes[owner], step)
        assert torch.equal(starts.z[place], episodes[owner].mu[step])
        check(f"h at {owner}, {step}", starts.h[place], exact[0], peer[0])
        check(f"c at {owner}, {step}", starts.c[place], exact[1], peer[1])


def test_recorded_starts_are_states_of_the_episodes_and_come_from_all_of_them(m, episodes):
    starts = recorded_starts(m, episodes, count=300, mid_fraction=1.0, seed=1)
    places = [(owner, step) for owner, episode in enumerate(episodes) for step in range(episode.steps)]
    owners, steps = (np.array(column) for column in zip(*places, strict=True))
    known = states_at(m, episodes, owners, steps, seed=1)
    rows = {tuple(row.tolist()): place for row, place in zip(torch.cat([known.z, known.h], 1), places, strict=True)}
    found = [rows[tuple(row.tolist())] for row in torch.cat([starts.z, starts.h], 1)]
    assert {owner for owner, _ in found} == set(range(len(episodes)))
    assert len(set(found)) > 100


def test_latents_are_drawn_from_the_posterior(m, tmp_path):
    """As M met them in its training; the state was burnt in over the same draws."""
    episodes = encoded(PixelVision(logvar=-2.0), known_world(tmp_path, episodes=4))
    owners, steps = np.array([0, 0, 1]), np.array([2, 4, 3])
    one, same, other = (states_at(m, episodes, owners, steps, seed) for seed in (1, 1, 2))
    assert torch.equal(one.z, same.z)
    assert torch.equal(one.h, same.h)
    assert not torch.equal(one.z, other.z)
    assert not torch.equal(one.h, other.h)
    assert not torch.equal(one.z[0], episodes[0].mu[2])


def test_no_dream_begins_after_an_end(m, episodes):
    finals = torch.stack([episode.mu[-1] for episode in episodes])
    assert (finals[:, 1] == FLAG).any()
    starts = recorded_starts(m, episodes, count=500, mid_fraction=1.0, seed=2)
    assert not (starts.z[:, 1] == FLAG).any()


def test_the_mix_is_what_was_asked_for_and_well_mixed(m, episodes):
    starts = recorded_starts(m, [episodes[index] for index in (0, 2, 5)], count=40, mid_fraction=0.3, seed=3)
    burnt = starts.h.any(dim=1)
    # A start from the middle may fall on a first step, which has nothing before it.
    assert 8 <= int(burnt.sum()) <= 12
    assert burnt[:20].any()
    assert burnt[20:].any()


def test_equal_seeds_give_equal_starts(m, episodes):
    one, same, other = (recorded_starts(m, episodes, 16, 0.5, seed) for seed in (4, 4, 5))
    assert torch.equal(one.z, same.z)
    assert torch.equal(one.h, same.h)
    assert not torch.equal(one.h, other.h)


def test_starts_are_ordinary_tensors(m, episodes):
    starts = recorded_starts(m, episodes, 4, 0.5, 0)
    assert not any(part.is_inference() for part in (starts.z, starts.h, starts.c))


def test_a_world_model_without_a_hidden_state_has_none(episodes):
    starts = recorded_starts(Drift(2, 3), episodes, 12, 0.5, 0)
    assert starts.h is None
    assert starts.c is None
    assert starts.z.shape == (12, 2)


def test_any_kind_is_burnt_in_by_its_own_steps(episodes):
    """This one counts its steps, and sums the first actions."""
    owners, steps = np.array([0, 3, 3]), np.array([0, 4, 9])
    starts = states_at(Drift(2, 3, hidden=1), episodes, owners, steps, seed=0)
    assert starts.h[:, 0].tolist() == [0.0, 4.0, 9.0]
    sums = [episodes[owner].actions[:step, 0].double().sum() for owner, step in zip(owners, steps, strict=True)]
    check("summed actions", starts.c[:, 0], torch.stack(sums))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"mid_fraction": 1.5}, r"mid_fraction must be in \[0, 1\]"),
        ({"mid_fraction": -0.1}, "mid_fraction must be finite and at least 0"),
        ({"episodes": []}, "episodes must name at least one"),
    ],
)
def test_bad_arguments_are_refused(m, episodes, changes, message):
    arguments = {"world": m, "episodes": episodes, "count": 4, "mid_fraction": 0.5, "seed": 0} | changes
    with pytest.raises(ValueError, match=message):
        recorded_starts(**arguments)


def test_starts_without_state_are_the_same_places_with_nothing_remembered(m, episodes):
    whole, bare = (recorded_starts(m, episodes, 9, 1.0, seed=0, burn_in=burn_in) for burn_in in (True, False))
    assert whole.h.abs().sum() > 0
    assert bare.h is None
    assert bare.c is None
    assert torch.equal(bare.z, whole.z)
