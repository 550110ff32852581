"""Ensembles: what each member learns, what a state holds, and what a file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checker import check
from models.drift import Drift
from models.test_mdn_rnn import as_dtype, random_episodes, random_model

from wm_engine import MDNRNN
from wm_engine.data.sequences import cut_windows, stack_windows
from wm_engine.dream.starts import recorded_starts
from wm_engine.errors import ConfigError, CorruptFileError
from wm_engine.files import save_tensors
from wm_engine.models.base import WorldState, load_world_model
from wm_engine.models.ensemble import Ensemble, build_world_model
from wm_engine.models.mdn_rnn import MDNRNNSettings
from wm_engine.models.trainer import Trainer
from wm_engine.rng import StepWords
from wm_engine.run.config import make_config
from wm_engine.spaces import Discrete, Spaces, Vector

SPACES = Spaces(Vector(4), Discrete(2))


def ensemble(count: int = 3, residual: bool = False) -> Ensemble:
    return Ensemble([random_model((4, 2, 8, 3), "per_dim", seed, residual) for seed in range(count)])


def test_memory_members_builds_an_ensemble_with_weights_of_its_own_each() -> None:
    settings = MDNRNNSettings(hidden=7, mixtures=2, members=3)
    m = build_world_model(4, SPACES, settings)
    assert isinstance(m, Ensemble)
    assert (m.latent, m.action, m.hidden, m.state_size) == (4, 2, 7, 21)
    weights = [member.state_dict()["lstm.weight_hh_l0"] for member in m.episode_models()]
    assert not torch.equal(weights[0], weights[1])
    one = build_world_model(4, SPACES, MDNRNNSettings())
    assert isinstance(one, MDNRNN)
    assert one.episode_models() == [one]


def test_a_state_is_all_members_and_a_dreamt_step_goes_on_in_its_own() -> None:
    m = ensemble().double()
    members = m.episode_models()
    z, action = torch.randn(5, 4).double(), torch.randn(5, 2).double()
    words = StepWords(0, torch.zeros(1).long(), torch.arange(5), m.blocks)
    h, c = m.initial(5)
    assert h.shape == c.shape == (5, 24)
    with torch.no_grad():
        h, c = m.observe(z, action, (h, c))
        for number, member in enumerate(members):
            own = member.observe(z, action, member.initial(5))
            assert torch.equal(h[:, 8 * number : 8 * number + 8], own[0])
            assert torch.equal(c[:, 8 * number : 8 * number + 8], own[1])
        episode = torch.tensor([4, 0, 2, 1, 5])  # of members 1, 0, 2, 1, 2
        state = WorldState(z, h, c, episode)
        after = m.imagine(state, action, words.at(0)[0], 1.0)
        for row, number in enumerate((1, 0, 2, 1, 2)):
            columns = slice(8 * number, 8 * number + 8)
            its = WorldState(z[row : row + 1], h[row : row + 1, columns], c[row : row + 1, columns])
            own_step = members[number].imagine(its, action[row : row + 1], words.at(0)[0, row : row + 1], 1.0)
            check("z", after.state.z[row], own_step.state.z[0], precision="fp64")
            check("h", after.state.h[row, columns], own_step.state.h[0], precision="fp64")
            check("reward", after.reward[row], own_step.reward[0], precision="fp64")
            seen = [after.state.z[row], after.state.h[row, columns], after.state.c[row, columns]]
            assert torch.equal(m.features(after.state, "zhc")[row], torch.cat(seen))
    assert after.state.episode is episode
    assert torch.equal(m.decode(after.state), after.state.z)


def test_on_the_road_a_controller_sees_the_first_members_hidden_state() -> None:
    m = ensemble()
    state = WorldState(torch.randn(2, 4), torch.randn(2, 24), torch.randn(2, 24))
    assert torch.equal(m.features(state, "zh"), torch.cat([state.z, state.h[:, :8]], 1))
    assert torch.equal(m.features(state[1:], "zhc"), torch.cat([state.z, state.h[:, :8], state.c[:, :8]], 1)[1:])
    assert torch.equal(m.features(state, "z"), state.z)


def test_recorded_starts_are_burnt_in_by_every_member() -> None:
    m, episodes = ensemble(), random_episodes([6, 9, 4], 4, 2)
    whole = recorded_starts(m, episodes, 8, 0.5, seed=1)
    assert whole.h is not None
    assert whole.h.shape == (8, 24)
    for number, member in enumerate(m.episode_models()):
        alone = recorded_starts(member, episodes, 8, 0.5, seed=1)
        assert torch.equal(alone.z, whole.z)
        assert torch.equal(alone.h, whole.h[:, 8 * number : 8 * number + 8])  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [0, 4])
def test_members_learn_from_sequences_of_their_own(length: int) -> None:
    m, settings = ensemble(2).double(), MDNRNNSettings(members=2, batch_size=3)
    episodes = random_episodes([8, 12, 5, 9, 12, 7], 4, 2)
    assert settings.sequences == len(episodes)
    rng = np.random.default_rng(1)
    batch = as_dtype(cut_windows(episodes, length, rng), torch.float64)
    assert (batch.before is not None) == (length > 0)
    value, scalars = m.loss(batch, torch.Generator(), settings)
    alone = [
        member.loss(batch.lanes(torch.arange(number, 6, 2)), torch.Generator(), settings)
        for number, member in enumerate(m.episode_models())
    ]
    check("loss", value, (alone[0][0] + alone[1][0]) / 2**0.5, precision="fp64")
    for name, mean in scalars.items():
        check(name, mean, (alone[0][1][name] + alone[1][1][name]) / 2, precision="fp64")
    value.backward()
    assert all(parameter.grad is not None for parameter in m.parameters())


def test_lanes_of_a_batch_keep_what_was_before_them() -> None:
    episodes = random_episodes([8, 12, 5, 9, 12, 7], 4, 2)
    batch = as_dtype(cut_windows(episodes, 4, np.random.default_rng(1)), torch.float64)
    assert batch.before is not None
    assert batch.continued is not None
    m, seen = random_model((4, 2, 8, 3), "shared").double(), 0
    whole = m._burnt_in(batch, torch.Generator())
    assert whole is not None
    for lane in range(6):
        part = batch.lanes(torch.tensor([lane]))
        assert torch.equal(part.mu, batch.mu[:, lane : lane + 1])
        assert torch.equal(part.live, batch.live[:, lane : lane + 1])
        burnt = m._burnt_in(part, torch.Generator())
        assert (burnt is not None) == bool(batch.continued[lane])
        if burnt is not None:
            seen += 1
            check("h", burnt[0], whole[0][lane : lane + 1], precision="fp64")
    assert 0 < seen < 6


def test_it_predicts_the_mean_of_its_members_and_learns_rewards_in_one_unit() -> None:
    m = ensemble().double()
    batch = as_dtype(stack_windows(random_episodes([5, 3], 4, 2)), torch.float64)
    m.scale_rewards(2.0, 3.0)
    assert m.reward_units() == (2.0, 3.0)
    with torch.no_grad():
        said = m.predict(batch, batch.mu)
        each = [member.predict(batch, batch.mu) for member in m.episode_models()]
        finished = m.finished().predict(batch, batch.mu)
    for name, value in said.items():
        check(name, value, (each[0][name] + each[1][name] + each[2][name]) / 3, precision="fp64")
        check(f"finished {name}", finished[name], value, precision="fp64")
    other = ensemble()
    other.set_reward_units(2.0, 3.0)
    assert {member.reward_units() for member in other.episode_models()} == {(2.0, 3.0)}


def test_a_trainer_goes_on_from_its_state() -> None:
    batch, settings = stack_windows(random_episodes([5, 3, 6], 4, 2)), MDNRNNSettings(members=3, batch_size=1)
    trainer = Trainer("memory", ensemble())
    trainer.step(trainer.model.loss(batch, torch.Generator(), settings)[0], 0.01, 1.0)
    again = Trainer("memory", ensemble())
    again.load_state(trainer.state())
    for each in (trainer, again):
        each.step(each.model.loss(batch, torch.Generator(), settings)[0], 0.01, 1.0)
    for ours, theirs in zip(trainer.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("members", [ensemble(2, residual=True), Ensemble([Drift(3, 2, 1), Drift(3, 2, 1)])])
def test_a_file_is_read_back(tmp_path: Path, members: Ensemble) -> None:
    path = tmp_path / "memory.safetensors"
    members.save(path)
    again = load_world_model(path)
    assert isinstance(again, Ensemble)
    assert again.metadata() == members.metadata()
    assert type(again.episode_models()[1]) is type(members.episode_models()[1])
    for name, value in members.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": "3"}, "not a Ensemble of this project"),
        ({"members": "two"}, "not a Ensemble of this project"),
        ({"of": "rnn"}, r"not a Ensemble of this project \(memory\.kind: 'rnn' is unknown"),
        ({"hidden": "9"}, "not a Ensemble of this project"),
        ({"kind": "mdn_rnn"}, "not a MDNRNN of this project"),
    ],
)
def test_a_file_that_holds_something_else_is_corrupt(tmp_path: Path, change: dict[str, str], message: str) -> None:
    m, path = ensemble(2), tmp_path / "memory.safetensors"
    save_tensors(path, m.state_dict(), m.metadata() | change)
    with pytest.raises(CorruptFileError, match=message):
        load_world_model(path)


def test_what_cannot_be_an_ensemble_is_refused() -> None:
    with pytest.raises(ValueError, match="members must be at least one world model, but were none"):
        Ensemble([])
    batch = stack_windows(random_episodes([5, 3], 4, 2))
    with pytest.raises(ValueError, match="batch must hold a sequence for each of 3 members, but held 2"):
        ensemble(3).loss(batch, torch.Generator(), MDNRNNSettings())
    with pytest.raises(ValueError, match="members must be of one kind and of the same sizes, but differed"):
        Ensemble([MDNRNN(4, 2, 8, 3), MDNRNN(4, 2, 8, 3, residual=True)])
    bad: list[tuple[dict[str, Any], str]] = [
        ({"members": 0}, "memory.members: must be greater than or equal to 1, but was 0"),
        ({"kind": "ensemble"}, "memory.kind: must be the kind of the members; memory.members makes an ensemble"),
    ]
    for change, message in bad:
        with pytest.raises(ConfigError, match=message):
            make_config({"memory": change})
