"""The run that is played: its recorded states, and what it refuses."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from play.playing import vectors_run

from wm_engine import load_run
from wm_engine.errors import MissingRunError
from wm_engine.play.played_run import PlayedRun


def test_starts_are_drawn_from_all_that_was_recorded(vectors):
    rng = np.random.default_rng(0)
    points = [vectors.start_point(rng, beginning=False) for _ in range(300)]
    lengths = [vectors.store.info(index).steps for index in range(vectors.episodes)]
    for point in points:
        vectors.check(point)
    assert {point.episode for point in points} == set(range(4))
    assert {point.step for point in points} == set(range(max(lengths)))
    assert {vectors.start_point(rng, beginning=True).step for _ in range(20)} == {0}


def test_a_dream_begins_at_the_recorded_state(pictures):
    rng = np.random.default_rng(1)
    point = pictures.start_point(rng, beginning=False)
    near = [pictures.dream(dataclasses.replace(point, seed=seed))._state for seed in range(64)]
    record = pictures.store.observations(point.episode, point.step, point.step + 1)[0]
    mean = np.stack([state.z.numpy()[0] for state in near]).mean(axis=0)
    import torch

    mu, logvar = pictures.run.vision.encode(torch.from_numpy(record[None]))
    # The mean of 64 draws from V's posterior lies within four of its standard errors.
    assert (np.abs(mean - mu.detach().numpy()[0]) < 4 * np.exp(0.5 * logvar.detach().numpy()[0]) / 8).all()


def test_a_run_without_recorded_episodes_is_refused(tmp_path):
    root = vectors_run(tmp_path / "run").run.folder.root
    shutil.rmtree(root / "rollouts")
    with pytest.raises(MissingRunError, match="no recorded episodes there, and dreams begin from them"):
        PlayedRun(load_run(root))
