"""A dream that is played step by step is the dream of dream/imagination, to the bit."""

from __future__ import annotations

import numpy as np
import torch
from toys.learner import Tables
from toys.world_model import LinearWorld

from wm_engine.dream.imagination import imagine
from wm_engine.dream.types import Starts
from wm_engine.models.identity import Identity
from wm_engine.play.dream import PlayedDream
from wm_engine.play.played_run import StartPoint
from wm_engine.spaces import Discrete, Spaces, Vector

SPACES = Spaces(Vector(2), Discrete(3))


def played(dream, policy, steps, temperature=1.0):
    return [dream.step(dream.chosen_by(policy), temperature) for _ in range(steps)]


def test_a_played_dream_is_the_one_that_everybody_else_dreams():
    world = LinearWorld(2, 3)
    generator = torch.Generator().manual_seed(3)
    for value in world.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    policy, starts = Tables(torch.randn(1, 3, 3, generator=generator)), Starts(torch.randn(1, 2, generator=generator))
    want = imagine(world, policy, starts, steps=9, temperature=0.7, seed=11)
    got = played(PlayedDream(Identity(2), world, SPACES, starts, 11), policy, 9, 0.7)
    assert (np.stack([step.action for step in got]) == want.actions[:, 0].numpy()).all()
    assert [step.reward for step in got] == want.rewards[:, 0].tolist()
    assert (np.stack([step.observations[-1] for step in got]) == want.z[1:, 0].numpy()).all()


def test_survival_pays_one_a_step():
    dream = PlayedDream(Identity(2), LinearWorld(2, 3), SPACES, Starts(torch.zeros(1, 2)), 0, survival=True)
    assert [dream.step(np.eye(3)[0], 1.0).reward for _ in range(3)] == [1.0] * 3


def test_pictures_on_the_way_end_at_the_next_state(vectors):
    point = StartPoint(episode=1, step=2, seed=5)
    one, many = vectors.dream(point), vectors.dream(point)
    first = one.observation()
    step, steps = one.step(np.eye(3)[2], 1.0), many.step(np.eye(3)[2], 1.0, pictures=4)
    assert steps.observations.shape == (4, 2)
    assert (steps.observations[-1] == step.observations[0]).all()
    # The identity decodes a straight line to a straight line: every dimension moves one way.
    moves = np.diff(np.concatenate([first[None], steps.observations]), axis=0)
    assert (np.sign(moves) == np.sign(steps.observations[-1] - first)).all()


def test_numbers_that_are_not_finite_are_told(vectors):
    dream = vectors.dream(StartPoint(0, 0, 0))
    assert not dream.step(np.zeros(3), 1.0).failed
    assert dream.step(np.full(3, np.nan), 1.0).failed
