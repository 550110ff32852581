"""Transfer on a toy task whose best score is known: many small rounds reach it, one does not, and a planner does."""

from __future__ import annotations

from pathlib import Path

import pytest

from wm_engine.files import read_json
from wm_engine.recorder import read_metrics
from wm_engine.run.config import resolve
from wm_engine.run.folder import RunFolder
from wm_engine.run.loop import run_loop

LADDER = str(Path(__file__).parents[1] / "toys" / "ladder.toml")
BEST, STUCK = 1.0, 4 / 6


def scores(root: Path, *changes: str) -> dict:
    run_loop(root, resolve(LADDER, changes))
    return read_json(RunFolder(root).scores)


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """The loop, and what a planner makes of the same M."""
    root = tmp_path_factory.mktemp("loop")
    planner = ("judge.planner_episodes=2", "judge.planner_horizon=8", "judge.planner_candidates=64")
    return root, scores(root, *planner)


def test_many_small_rounds_reach_the_best_score(loop):
    assert round(loop[1]["controller"]["mean"], 5) == BEST


def test_one_round_of_as_many_frames_does_not(tmp_path):
    found = scores(tmp_path, "rounds=1", "drive.first_episodes=36", "memory.first_steps=360")
    assert found["controller"]["mean"] <= STUCK + 1e-6
    assert found["planner"] is None


def test_a_planner_in_the_loops_m_reaches_it_too(loop):
    root, found = loop
    assert round(found["planner"]["mean"], 5) == BEST
    (row,) = (row for row in read_metrics(root / "metrics" / "metrics.jsonl") if row["stage"] == "planner")
    assert (row["mean"], row["episodes"]) == (found["planner"]["mean"], 2)
