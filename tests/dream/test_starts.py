"""Recorded states as beginnings of dreams."""

from __future__ import annotations

import pytest
import torch
from recordings import AFTER_THE_END, PixelVision, known_world

from wm_engine.dream.starts import recorded_starts
from wm_engine.memory.model import MDNRNN
from wm_engine.vision.latents import encode_store

FLAG = (AFTER_THE_END - 128.0) / 32.0


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return encode_store(PixelVision(logvar=-300.0), known_world(folder / "rollouts"), folder / "latents")


@pytest.fixture(scope="module")
def m():
    return MDNRNN(2, 3, hidden=5, mixtures=2)


def test_beginnings_of_episodes_have_no_memory(m, latents):
    starts = recorded_starts(m, latents, count=9, mid_fraction=0.0, seed=0)
    assert starts.z.shape == (9, 2)
    assert starts.z.dtype == starts.h.dtype == starts.c.dtype == torch.float32
    assert not starts.h.any()
    assert not starts.c.any()
    # Every episode of the known world begins at position 128.
    assert not starts.z[:, 0].any()


def test_states_from_the_middle_carry_what_came_before(m, latents):
    starts = recorded_starts(m, latents, count=300, mid_fraction=1.0, seed=1)
    states = {}
    with torch.no_grad():
        for episode in range(len(latents)):
            record, state = latents.read(episode), m.initial_state(1)
            for step in range(latents.steps[episode]):
                states[episode, step] = torch.cat([record.mu[step], state[0][0], state[1][0]])
                state = m.step(record.mu[None, step], record.actions[None, step], state)
    known = torch.stack(list(states.values()))
    drawn = torch.cat([starts.z, starts.h, starts.c], dim=1)
    nearest = torch.cdist(drawn, known, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    assert nearest.values.max() < 1e-5
    found = {list(states)[index] for index in nearest.indices.tolist()}
    assert {episode for episode, _ in found} == set(range(len(latents)))
    assert len(found) > 100


def test_no_dream_begins_after_an_end(m, latents):
    finals = torch.stack([latents.read(episode).mu[-1] for episode in range(len(latents))])
    assert (finals[:, 1] == FLAG).any()
    starts = recorded_starts(m, latents, count=500, mid_fraction=1.0, seed=2)
    assert not (starts.z[:, 1] == FLAG).any()


def test_the_mix_is_what_was_asked_for_and_well_mixed(m, latents):
    starts = recorded_starts(m, latents, count=40, mid_fraction=0.3, seed=3, episodes=[0, 2, 5])
    burnt = starts.h.any(dim=1)
    # A start from the middle may fall on a first step, which has nothing before it.
    assert 8 <= int(burnt.sum()) <= 12
    assert burnt[:20].any()
    assert burnt[20:].any()


def test_equal_seeds_give_equal_starts(m, latents):
    one, same, other = (recorded_starts(m, latents, 16, 0.5, seed) for seed in (4, 4, 5))
    assert torch.equal(one.z, same.z)
    assert torch.equal(one.h, same.h)
    assert not torch.equal(one.h, other.h)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"mid_fraction": 1.5}, r"mid_fraction must be in \[0, 1\]"),
        ({"mid_fraction": -0.1}, "mid_fraction must be finite and at least 0"),
        ({"episodes": []}, "episodes must name at least one"),
        ({"m": MDNRNN(3, 3, hidden=5, mixtures=2)}, "latents must have Z = 3"),
    ],
)
def test_bad_arguments_are_refused(m, latents, changes, message):
    arguments = {"m": m, "latents": latents, "count": 4, "mid_fraction": 0.5, "seed": 0} | changes
    with pytest.raises(ValueError, match=message):
        recorded_starts(**arguments)
