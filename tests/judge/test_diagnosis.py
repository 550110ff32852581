"""The diagnosis names planted faults of each kind in a small world of known rule, and none where there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from checker import check

from wm_engine.data.sequences import EncodedEpisode
from wm_engine.judge.diagnosis import Circumstances, diagnose, examine
from wm_engine.models.base import Imagined, MemorySettings, WorldModel, WorldState

WALL = 4.0


class Glider(WorldModel):
    """A glider on a line, whose speed cannot be seen: v' = v + a, x' = x + v', paid sin(3x'); beyond the wall it ends.

    M's hidden state is the speed. late : it says the reward of the step before; bonus : added to every reward; blind :
    it sees no end; frozen : it says that nothing changes
    """

    Settings = MemorySettings

    def __init__(self, late: bool = False, bonus: float = 0.0, blind: bool = False, frozen: bool = False) -> None:
        super().__init__()
        self.latent, self.action, self.hidden, self.blocks = 1, 1, 1, 1
        self.late, self.bonus, self.blind, self.frozen = late, bonus, blind, frozen

    @classmethod
    def build(cls, latent: int, spaces: Any, settings: Any) -> Glider:
        return cls()

    def initial(self, batch):
        return torch.zeros(batch, 1), torch.zeros(batch, 1)

    def observe(self, z, action, state):
        return state[0] + action, state[1]

    def _step(self, z, speed):
        after = z if self.frozen else z + speed
        reward = torch.sin(3.0 * (z if self.late else after))[..., 0] + self.bonus
        return after, reward, torch.full_like(reward, -9.0) if self.blind else after[..., 0] - WALL

    def imagine(self, state, action, words, temperature):
        speed = state.h + action
        z, reward, done = self._step(state.z, speed)
        return Imagined(WorldState(z, speed, state.c), reward, done)

    def predict(self, batch, z):
        after, reward, done = self._step(z[:-1], batch.actions.cumsum(0))
        return {"nll": (after - z[1:]).square().mean(-1), "reward": reward, "done": done}

    def loss(self, batch, generator, settings):
        raise NotImplementedError


class Push:
    """Push on evenly."""

    features = "z"

    def act(self, features, lanes):
        return torch.full((len(lanes), 1), 0.06)


def driven(begin: float) -> EncodedEpisode:
    """The real world: what :class:`Glider` knows, driven to the wall."""
    places, speed = [begin], 0.0
    while places[-1] <= WALL:
        speed += 0.06
        places.append(places[-1] + speed)
    mu = torch.tensor(places).unsqueeze(1)
    count = len(places) - 1
    return EncodedEpisode(
        mu, torch.full_like(mu, -300.0), torch.full((count, 1), 0.06), torch.sin(3.0 * mu[1:, 0]), True
    )


EPISODES = [driven(begin) for begin in np.linspace(-3.0, 1.0, 9)]
HOW = Circumstances(dream_steps=8)


def found(world: Glider, how: Circumstances = HOW):
    options = {"horizon": 8, "starts": 6, "temperature": 1.0, "survival": how.survival}
    evidence = examine(world, Push(), EPISODES, EPISODES[:3], **options)
    return evidence, diagnose(evidence, how)


def test_a_true_dream_has_no_fault():
    evidence, diagnosis = found(Glider())
    assert diagnosis.names == []
    # It knows the rule: promise, replay and payment are one, and nothing of how places change is left over.
    for returns in (evidence.promised, evidence.replayed):
        check("returns", torch.tensor(returns), torch.tensor(evidence.paid))
    assert evidence.skill > 0.999 > evidence.stateless_skill
    assert (evidence.ends, evidence.ends_seen, evidence.false_ends) == (9, 9, 0)
    assert max(evidence.reward_at_lag, key=evidence.reward_at_lag.get) == 0
    assert "Nothing of this is at fault" in diagnosis.words


@pytest.mark.parametrize(
    ("world", "how", "name", "said", "setting"),
    [
        (Glider(late=True), HOW, "shifted rewards", "1 step earlier", "reward[t] must be what action[t] was paid"),
        (Glider(bonus=0.8), HOW, "shifted rewards", "off by +0.8", "memory.steps up"),
        (Glider(blind=True), HOW, "unweighted ends", "Of 9 real ends M saw 0", "memory.end_weight="),
        (Glider(frozen=True), HOW, "a frozen M", "knows 0%", "memory.steps=100"),
        (Glider(), replace(HOW, stateless=True), "starts without state", "hidden state", "controller.burn_in=true"),
    ],
    ids=["late", "bonus", "blind", "frozen", "stateless"],
)
def test_a_planted_fault_is_named_first_and_said_in_words(world, how, name, said, setting):
    _, diagnosis = found(world, how)
    assert diagnosis.names[0] == name or (world.frozen and name in diagnosis.names)
    assert said in diagnosis.words
    assert any(setting in tried for tried in diagnosis.settings)


def test_one_fault_is_not_taken_for_another():
    for world, how, names in (
        (Glider(blind=True), HOW, {"unweighted ends"}),
        (Glider(), replace(HOW, stateless=True), {"starts without state"}),
    ):
        assert set(found(world, how)[1].names) == names


def test_a_search_that_exploits_m_is_told_from_a_wrong_m():
    evidence, _ = found(Glider())
    paid = evidence.paid[-1]
    flattered = [*evidence.promised[:-1], paid + 5.0]
    exploited = diagnose(replace(evidence, promised=flattered), HOW)
    assert exploited.names == ["the search exploits M"]
    assert "controller.temperature=1.3" in exploited.settings
    wrong = diagnose(replace(evidence, promised=flattered, replayed=flattered), HOW)
    assert wrong.names == ["M is wrong along the winner's road"]


def test_what_is_known_of_the_search_is_said():
    evidence, _ = found(Glider())
    how = replace(HOW, rank=(0.8, 0.7, 0.9), rank_near=(0.1, -0.2, 0.4), at_bound=0.9)
    diagnosis = diagnose(evidence, how)
    assert diagnosis.names == ["the step size runs away", "the order around the best is noise"]
    assert "0.80 (95 % interval 0.70 to 0.90)" in diagnosis.words
    assert "0.10 (95 % interval -0.20 to 0.40)" in diagnosis.words


@pytest.mark.parametrize(
    ("planner", "said"),
    [((90.0, 2.0), "the search or C that falls short"), ((51.0, 2.0), "M or the horizon"), ((9.0, 2.0), "no judge")],
)
def test_a_planner_beside_c_tells_m_from_the_search(planner, said):
    evidence, _ = found(Glider())
    assert said in diagnose(evidence, replace(HOW, controller=(50.0, 2.0), planner=planner)).words


def test_where_every_step_is_worth_one_m_s_rewards_are_not_looked_at():
    assert found(Glider(bonus=0.8), replace(HOW, survival=True))[1].names == []


def test_no_episodes_are_an_error():
    with pytest.raises(ValueError, match="episodes must be some"):
        examine(Glider(), Push(), [], [], horizon=8, starts=4, temperature=1.0)
