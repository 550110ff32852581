"""The categorical M: what it says of each cell, how it draws, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from checker import check

from wm_engine.data.sequences import EncodedEpisode, stack_windows
from wm_engine.errors import ConfigError, WMEngineError
from wm_engine.models.base import WorldState, load_world_model
from wm_engine.models.categorical import CategoricalSettings, CategoricalWorld
from wm_engine.models.trainer import Trainer
from wm_engine.spaces import Discrete, Pixels, Spaces

SETTINGS = CategoricalSettings(codes=5, width=6)


def made():
    torch.manual_seed(0)
    world = CategoricalWorld.build(9, Spaces(Pixels(), Discrete(3)), SETTINGS)
    assert isinstance(world, CategoricalWorld)
    return world


def batch():
    generator = torch.Generator().manual_seed(1)
    episodes = []
    for steps in (4, 3):
        z = torch.randint(0, 5, (steps + 1, 9), generator=generator).float()
        actions = torch.eye(3)[torch.randint(0, 3, (steps,), generator=generator)]
        rewards = torch.arange(float(steps))
        episodes.append(EncodedEpisode(z, torch.full_like(z, -30.0), actions, rewards, terminated=True))
    return stack_windows(episodes)


def state(count=4):
    z = torch.randint(0, 5, (count, 9), generator=torch.Generator().manual_seed(2)).float()
    return WorldState(z, torch.zeros(count, 0), torch.zeros(count, 0))


@torch.no_grad()
def test_a_dreamt_step_draws_each_cell_by_its_own_word():
    world, begin, action = made(), state(), torch.eye(3)[[0, 1, 2, 0]]
    words = torch.randint(0, 2**32, (4, 3, 4), generator=torch.Generator().manual_seed(3))
    dreamt = world.imagine(begin, action, words, 0.7)
    logits, _, _ = world.step(begin.z, action)
    shares = torch.softmax(logits / 0.7, -1)
    for lane in range(4):
        for cell in range(9):
            u = ((int(words[lane, cell // 4, cell % 4]) >> 9) + 0.5) * 2.0**-23
            chosen = next((k for k in range(5) if float(shares[lane, cell].cumsum(0)[k]) >= u), 4)
            assert int(dreamt.state.z[lane, cell]) == chosen
    assert torch.equal(world.imagine(begin, action, words, 0.0).state.z.long(), logits.argmax(-1))


def test_the_losses_are_those_of_its_own_predictions():
    world, records = made(), batch()
    value, parts = world.loss(records, torch.Generator().manual_seed(0), SETTINGS)
    said = world.predict(records, records.mu)
    assert torch.equal(parts["nll_per_dimension"], said["nll"][records.live].mean())
    weights = SETTINGS.model_copy(update={"reward_weight": 0.1, "end_weight": 0.1})
    weighed, _ = world.loss(records, torch.Generator().manual_seed(0), weights)
    rest = parts["reward_error"] + parts["end_loss"]
    exact = parts["nll_per_dimension"].double() + 0.1 * rest.double()
    check("loss", weighed, exact, parts["nll_per_dimension"] + 0.1 * rest)
    assert value > weighed


def test_it_learns_a_recorded_walk_by_heart():
    world, records = made(), batch()
    trainer = Trainer("memory", world)
    losses = []
    for step in range(60):
        value, _ = world.loss(records, torch.Generator().manual_seed(step), SETTINGS)
        losses.append(float(value.detach()))
        trainer.step(value, 1e-2, 1.0)
    assert losses[-1] < 0.5 * losses[0]


def test_rewards_mean_the_same_in_any_units():
    world, records = made(), batch()
    with torch.no_grad():
        world.outcome.weight[0] = 0.3
    before = world.predict(records, records.mu)["reward"]
    world.scale_rewards(2.0, 5.0)
    assert world.reward_units() == (2.0, 5.0)
    finished = world.finished()
    assert finished.reward_units() == (0.0, 1.0)
    exact = before.double()
    check("rescaled", world.predict(records, records.mu)["reward"], exact, (before - 2.0) / 5.0 * 5.0 + 2.0)
    check("finished", finished.predict(records, records.mu)["reward"], exact, (before - 2.0) / 5.0 * 5.0 + 2.0)


def test_a_file_gives_back_the_same_model(tmp_path):
    world = made()
    world.save(tmp_path / "m.safetensors")
    read = load_world_model(tmp_path / "m.safetensors")
    assert torch.equal(read.predict(batch(), batch().mu)["nll"], world.predict(batch(), batch().mu)["nll"])


def test_latents_that_are_no_codes_of_its_own_are_refused():
    with pytest.raises(
        WMEngineError, match=r"memory.codes: V gives latents from -2 to 7, but this M knows codes 0 to 4"
    ):
        made().tokens(torch.tensor([-2.0, 7.0]))
    with pytest.raises(ConfigError, match=r"latent must be the cells of a square grid, but was 10"):
        CategoricalWorld.build(10, Spaces(Pixels(), Discrete(3)), SETTINGS)
    with pytest.raises(ConfigError, match="has no hidden state, but 'zh' was asked for"):
        made().features(state(), "zh")
