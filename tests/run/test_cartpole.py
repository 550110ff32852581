"""CartPole's preset, small, on the real environment: killed and given again, it ends with the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from run.test_loop import Killed, cut_after, differing, outcome

from wm_engine.files import read_json
from wm_engine.report import write_report
from wm_engine.run.config import resolve
from wm_engine.run.folder import RunFolder
from wm_engine.run.loop import run_loop

SMALL = (
    "rounds=2", "checkpoint_seconds=0", "estimate=false", "env.num_envs=2", "drive.first_episodes=6",
    "drive.episodes=2", "drive.frames=40", "memory.hidden=4", "memory.members=2", "memory.first_steps=4",
    "memory.steps=2", "memory.batch_size=2", "controller.population=4", "controller.dream_generations=2",
    "controller.dream_episodes=4", "controller.dream_steps=20", "controller.starts=8", "judge.starts=2",
    "evaluate.episodes=2", "evaluate.film=false", "evaluate.peers=false",
)  # fmt: skip


def run(root: Path, **options) -> RunFolder:
    run_loop(root, resolve("cartpole", SMALL), **options)
    return RunFolder(root)


@pytest.mark.slow
def test_a_small_run_that_was_killed_twice_ends_with_the_same_bytes(tmp_path):
    whole = run(tmp_path / "whole")
    broken = tmp_path / "broken"
    for step, round_index, units, saved in (("remember", 0, 3, True), ("dream", 1, 1, False)):
        with pytest.raises(Killed):
            run(broken, steps=cut_after(step, round_index, units, saved))
    assert differing(outcome(whole), outcome(run(broken))) == []
    scores = read_json(whole.scores)
    assert scores["baselines"] == {}
    assert scores["published"]["trained_in"] == "dream"
    page = write_report(whole).read_text()
    assert "random policy" in page
