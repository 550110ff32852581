"""The gridworld preset, made small: the whole loop on the real GridWorld, with each M and learner, killed and not."""

from __future__ import annotations

from pathlib import Path

import pytest

from wm_engine.files import read_json
from wm_engine.run.config import resolve
from wm_engine.run.folder import RunFolder
from wm_engine.run.loop import run_loop
from wm_engine.run.steps import STEPS

pytestmark = pytest.mark.slow

SMALL = [
    *("rounds=2", "checkpoint_seconds=0", "estimate=false", "env.num_envs=2", "env.max_frames=12"),
    *("drive.first_episodes=4", "drive.first_frames=12", "drive.episodes=2", "vision.width=8", "vision.codes=16"),
    *("vision.codec_steps=3", "vision.first_steps=6", "vision.batch_size=8", "memory.first_steps=3", "memory.steps=2"),
    *("memory.batch_size=2", "controller.starts=8", "controller.start_episodes=4", "judge.every=2"),
    *("judge.episodes=2", "judge.horizon=3", "judge.starts=2", "judge.controllers=0"),
    *("evaluate.episodes=2", "evaluate.film=false"),
]
FAST = ["memory.hidden=8", "controller.population=4", "controller.dream_generations=2", "controller.dream_episodes=2"]
CATEGORICAL = ["vision.projection=0", "memory.kind=categorical", "memory.codes=16", "memory.width=4"]
GRADIENT = ["controller.kind=policy_gradient", "controller.updates=2", "controller.dreams=4"]
# What the preset says of one kind does not fit another's section.
OF_MDN_RNN = ("hidden", "mixtures")
OF_EVOLUTION = ("hidden_units", "population", "sigma", "sigma_max", "dream_generations", "dream_episodes")


class Killed(BaseException):
    """Stands in for the end of the process."""


def killing(step: str, round_index: int):
    """The loop's steps, the process ended after a unit of one."""

    def cut(name, work):
        def killed(state):
            for _ in work(state):
                yield
                if (name, state.place.round) == (step, round_index):
                    raise Killed

        return name, killed

    return [cut(name, work) for name, work in STEPS]


def outcome(folder: RunFolder) -> dict[str, bytes]:
    files = [folder.vision, folder.memory, folder.controller, *folder.rollouts.rglob("*")]
    return {str(path.relative_to(folder.root)): path.read_bytes() for path in files if path.is_file()}


@pytest.fixture(scope="module")
def presets(tmp_path_factory) -> dict[str, str]:
    """The preset as it is, and without what is one kind's alone, for the other M and the other learner."""
    text = Path("wm_engine/presets/gridworld.toml")
    lines = (Path(__file__).parents[2] / text).read_text().splitlines(keepends=True)
    left_out = (*OF_MDN_RNN, *OF_EVOLUTION)
    other = tmp_path_factory.mktemp("preset") / "other.toml"
    other.write_text("".join(line for line in lines if line.partition(" =")[0] not in left_out))
    return {"gridworld": "gridworld", "other": str(other)}


def test_a_run_that_was_killed_in_every_step_ends_with_the_same_bytes(tmp_path):
    config = resolve("gridworld", [*SMALL, *FAST])
    run_loop(tmp_path / "whole", config)
    for step, round_index in (("drive", 0), ("see", 0), ("remember", 1), ("dream", 1), ("judge", 1)):
        with pytest.raises(Killed):
            run_loop(tmp_path / "cut", config, steps=killing(step, round_index))
    run_loop(tmp_path / "cut", config)
    whole = RunFolder(tmp_path / "whole")
    assert outcome(whole) == outcome(RunFolder(tmp_path / "cut"))
    scores = read_json(whole.scores)
    assert scores["baselines"]["shortest path"]["mean"] >= scores["random"]["mean"]


def test_the_categorical_m_and_the_policy_gradient_go_through_the_same_loop(tmp_path, presets):
    run_loop(tmp_path / "run", resolve(presets["other"], [*SMALL, *CATEGORICAL, *GRADIENT]))
    scores = read_json(RunFolder(tmp_path / "run").scores)
    assert scores.keys() >= {"controller", "random", "baselines", "memory"}
