"""What every kind of V and of world model shares: schedules, files, features."""

from __future__ import annotations

import math

import pytest
import torch
from models.drift import Drift
from recordings import same_weights

from wm_engine.errors import ConfigError, CorruptFileError
from wm_engine.files import save_tensors
from wm_engine.models.base import (
    LearningSettings,
    MemorySettings,
    VisionSettings,
    WorldState,
    load_vision,
    load_world_model,
    vision_kind,
    world_model_kind,
)
from wm_engine.models.identity import Identity
from wm_engine.models.mdn_rnn import MDNRNN
from wm_engine.models.vae import VAE


def test_the_learning_rate_falls_from_round_to_round_and_stops():
    settings = LearningSettings(learning_rate=0.1, learning_rate_decay=0.5, least_learning_rate=0.02)
    assert [settings.learning_rate_of(number) for number in range(5)] == [0.1, 0.05, 0.025, 0.02, 0.02]
    assert LearningSettings(learning_rate=0.1).learning_rate_of(9) == 0.1
    low = LearningSettings(learning_rate=1e-5, learning_rate_decay=0.5, least_learning_rate=1e-4)
    assert low.learning_rate_of(3) == 1e-5, "a rate that begins below the least stays as it is"
    assert settings.learning_rate_of(100_000) == 0.02


def test_the_first_round_has_a_budget_of_its_own():
    memory = MemorySettings(first_steps=7, steps=3)
    assert [memory.steps_in(number) for number in range(3)] == [7, 3, 3]
    vision = VisionSettings(first_steps=7, steps=3, every=2, until=5)
    assert [vision.steps_in(number) for number in range(7)] == [7, 0, 3, 0, 3, 0, 0]


def models():
    torch.manual_seed(0)
    vision = [VAE(3), Identity(4)]
    vision[1].fit(torch.randn(20, 4))
    worlds = [
        MDNRNN(4, 2, 8, 3, "shared"),
        MDNRNN(5, 3, 6, 2, "per_dim", residual=True),
        Drift(3, 2, 1, spread=0.5, wall=7.0),
    ]
    return [(load_vision, model) for model in vision] + [(load_world_model, model) for model in worlds]


@pytest.mark.parametrize(("load", "model"), models(), ids=lambda part: type(part).__name__)
def test_a_file_of_any_kind_is_read_back_by_what_it_names(tmp_path, load, model):
    model.train().save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert type(again) is type(model)
    assert all(getattr(again, name) == getattr(model, name) for name in model.SIZES)
    assert same_weights(again, model)
    assert not again.training


@pytest.mark.parametrize(("load", "model"), models(), ids=lambda part: type(part).__name__)
def test_a_file_of_another_kind_is_refused_by_its_name(tmp_path, load, model):
    path = tmp_path / "model.safetensors"
    model.save(path)
    other = load_world_model if load is load_vision else load_vision
    with pytest.raises(CorruptFileError, match=r"model\.safetensors: not a"):
        other(path)
    with pytest.raises(CorruptFileError, match=r"model\.safetensors: not a (VAE|MDNRNN) of this project"):
        (VAE if load is load_world_model else MDNRNN).load(path)


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"x": torch.zeros(2)}, {}),
        ({"x": torch.zeros(2)}, {"kind": "mdn_rnn"}),
        ({"x": torch.zeros(2)}, {"kind": "mdn_rnn", "latent": "two", "action": "1"}),
        (MDNRNN(2, 1, 3, 2).state_dict(), {"kind": "mdn_rnn", "latent": "0", "action": "1", "hidden": "3"}),
        ({}, {"kind": "controller"}),
    ],
)
def test_a_file_that_holds_no_world_model_is_corrupt(tmp_path, tensors, metadata):
    path = tmp_path / "model.safetensors"
    save_tensors(path, tensors, metadata)
    with pytest.raises(CorruptFileError, match=r"model\.safetensors: not a"):
        load_world_model(path)


def test_weights_of_other_sizes_than_the_file_names_are_corrupt(tmp_path):
    path = tmp_path / "model.safetensors"
    m = MDNRNN(4, 2, 8, 3)
    sizes = {name: str(getattr(m, name)) for name in m.SIZES} | {"hidden": "9"}
    save_tensors(path, m.state_dict(), {"kind": "mdn_rnn"} | sizes)
    with pytest.raises(CorruptFileError, match="not a MDNRNN of this project"):
        load_world_model(path)


def test_a_file_from_before_there_were_residual_ones_predicts_the_latent_itself(tmp_path):
    path, m = tmp_path / "model.safetensors", MDNRNN(4, 2, 8, 3)
    sizes = {name: str(getattr(m, name)) for name in m.SIZES}
    save_tensors(path, m.state_dict(), {"kind": "mdn_rnn"} | {k: v for k, v in sizes.items() if k != "residual"})
    assert load_world_model(path).residual is False
    save_tensors(path, m.state_dict(), {"kind": "mdn_rnn"} | sizes | {"residual": "1"})
    with pytest.raises(CorruptFileError, match=r"not a MDNRNN of this project .*'True' or 'False', but was '1'"):
        load_world_model(path)


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
@pytest.mark.parametrize(("load", "model"), models(), ids=lambda part: type(part).__name__)
def test_a_truncated_file_is_named(tmp_path, load, model, cut):
    path = tmp_path / "model.safetensors"
    model.save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CorruptFileError, match=r"model\.safetensors: damaged or truncated"):
        load(path)


def test_a_flipped_bit_is_caught(tmp_path):
    path = tmp_path / "m.safetensors"
    MDNRNN(4, 2, 8, 3).save(path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptFileError, match="checksum"):
        load_world_model(path)


def test_an_unknown_kind_names_its_setting():
    with pytest.raises(ConfigError, match=r"^vision\.kind: 'vea' is unknown; the nearest known one is 'vae'"):
        vision_kind("vea")
    with pytest.raises(ConfigError, match=r"^memory\.kind: 'rnn' is unknown; the nearest known one is 'mdn_rnn'"):
        world_model_kind("rnn")


def test_features_are_the_named_parts_of_the_state():
    state = WorldState(torch.randn(3, 4), torch.randn(3, 2), torch.randn(3, 2))
    m = MDNRNN(4, 1, 2, 1)
    assert torch.equal(m.features(state, "z"), state.z)
    assert torch.equal(m.features(state, "zh"), torch.cat([state.z, state.h], 1))
    assert torch.equal(m.features(state, "zhc"), torch.cat([state.z, state.h, state.c], 1))
    assert torch.equal(m.decode(state), state.z)
    part = state[1:]
    assert torch.equal(part.z, state.z[1:])
    assert torch.equal(part.c, state.c[1:])


def test_a_kind_without_units_of_rewards_learns_them_as_they_are():
    world = Drift()
    world.scale_rewards(3.0, 5.0)
    world.set_reward_units(3.0, 5.0)
    assert world.reward_units() == (0.0, 1.0)
    finished = world.finished()
    assert not finished.training
    assert same_weights(finished, world)
    finished.price.data.fill_(math.pi)
    assert world.price.item() == 1.0, "a copy"
