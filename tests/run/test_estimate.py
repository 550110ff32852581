"""The estimate of a run's time: it is made of what was measured, changes nothing, and says when it was far off."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from wm_engine.recorder import Recorder
from wm_engine.run.config import make_config, resolve
from wm_engine.run.estimate import Estimate, estimate
from wm_engine.run.folder import RunFolder
from wm_engine.run.state import LoopState

TOY = str(Path(__file__).parents[1] / "toys" / "toy.toml")


@pytest.fixture
def state(tmp_path):
    tables = resolve(TOY).tables()
    tables["controller"] = {"kind": "evolution", "features": "z", "population": 6, "dream_episodes": 2}
    with Recorder(tmp_path / "metrics") as recorder:
        made = LoopState(make_config(tables), RunFolder(tmp_path), recorder)
        yield made
        made.close()


def test_every_round_is_expected_to_take_time_and_nothing_is_changed(state, caplog):
    before = {name: value.clone() for name, value in state.memory.model.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="wm_engine"):
        found = estimate(state)
    assert len(found.rounds) == state.config.rounds
    assert all(seconds > 0.0 for seconds in found.rounds)
    assert "minutes for 3 rounds on this machine" in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in state.memory.model.state_dict().items())
    assert len(state.store) == 0


@pytest.mark.parametrize(("seconds", "warned"), [(35.0, False), (25.0, False), (70.0, True), (10.0, True)])
def test_a_run_that_is_far_off_says_so_once(caplog, seconds, warned):
    expected = Estimate([20.0, 10.0, 10.0])
    with caplog.at_level(logging.WARNING, logger="wm_engine"):
        expected.check(1, seconds)
        expected.check(2, 3.0 * seconds)
        expected.check(2, 3.0 * seconds)
    said = [record for record in caplog.records if "the estimate was far off" in record.message]
    # Where the first check kept quiet, the second one, three times as far on, may speak; never twice.
    assert expected.warned == bool(said)
    assert len(said) <= 1
    assert (said and "of work so far where 0.5 were expected" in said[0].message) or not warned
