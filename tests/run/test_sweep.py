"""Sweeps on a toy run: every value has trainings of its own, a kill changes nothing, and what is wrong is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from fleets import PickledFleet

import wm_engine as wm
from wm_engine.errors import ConfigError, MissingRunError, RunBusyError, RunMismatchError
from wm_engine.files import lock_folder, read_json
from wm_engine.report import write_report
from wm_engine.run import sweep as module
from wm_engine.run.config import make_config, resolve
from wm_engine.run.folder import RunFolder
from wm_engine.run.loop import run_loop
from wm_engine.run.sweep import describe, plan_sweep, read_sweeps, run_sweep

TOY = str(Path(__file__).parents[1] / "toys" / "toy.toml")
OVER = "controller.sigma=0.5,1"


class Killed(BaseException):
    """Stands in for the end of the process: nothing catches it."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of an MDN-RNN and evolution on the toy task."""
    root = tmp_path_factory.mktemp("trained") / "run"
    tables = resolve(TOY, ["rounds=2"]).tables()
    tables["memory"] = {
        "kind": "mdn_rnn",
        "hidden": 8,
        "mixtures": 2,
        "first_steps": 60,
        "steps": 5,
        "learning_rate": 0.03,
    }
    tables["controller"] = {
        "kind": "evolution", "population": 6, "dream_generations": 3, "dream_episodes": 4, "dream_steps": 12,
        "starts": 32, "sigma": 0.5, "mid_fraction": 0.5,
    }  # fmt: skip
    tables["judge"] |= {"controllers": 0, "dream_episodes": 8}
    tables["evaluate"] |= {"film": False, "episodes": 2}
    tables["env"] |= {"num_envs": 2}
    run_loop(root, make_config(tables))
    return root


@pytest.fixture
def root(trained, tmp_path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def sweep(root: Path, over: str = OVER, **options) -> dict:
    return run_sweep(root, plan_sweep(wm.load_run(root), over, **options))


def comparable(found: dict) -> str:
    """What a sweep came to, but for the clock."""
    for one in found["values"]:
        for training in one["trainings"]:
            training.pop("seconds")
    return json.dumps(found, sort_keys=True)


def policies(root: Path) -> dict[str, bytes]:
    found = (root / "sweeps").rglob("controller.safetensors")
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory) -> tuple[Path, dict]:
    """A sweep that nothing came between, and what it returned."""
    root = Path(shutil.copytree(trained, tmp_path_factory.mktemp("whole") / "run"))
    return root, sweep(root, seeds=2)


def test_every_value_and_seed_is_a_training_of_its_own(whole):
    root, found = whole
    assert [one["value"] for one in found["values"]] == [0.5, 1.0]
    assert all(len(one["trainings"]) == 2 for one in found["values"])
    assert len(set(policies(root).values())) == 4
    for row in describe(found):
        assert row["real"]["low"] <= row["real"]["mean"] <= row["real"]["high"]
        assert row["dreamt"]["low"] <= row["dreamt"]["mean"] <= row["dreamt"]["high"]
    assert read_sweeps(RunFolder(root))["controller.sigma"] == json.loads(json.dumps(found))


def test_all_values_of_a_seed_begin_alike_and_meet_the_same_real_episodes(whole):
    _, found = whole
    seeds = {tuple(training["real"]["seeds"]) for one in found["values"] for training in one["trainings"]}
    assert len(seeds) == 1


def test_nothing_that_the_run_published_changes(trained, whole):
    root, _ = whole
    for path in (RunFolder(trained).models, RunFolder(trained).rollouts, RunFolder(trained).checkpoints):
        for file in filter(Path.is_file, path.rglob("*")):
            assert file.read_bytes() == (root / file.relative_to(trained)).read_bytes()


@pytest.mark.parametrize("generations", [1, 9])
def test_a_sweep_that_was_killed_ends_with_the_same_bytes(root, whole, monkeypatch, generations):
    log, count = module.Recorder.log, [0]

    def killed(self, *arguments, **scalars):
        count[0] += 1
        if count[0] > generations:
            raise Killed
        log(self, *arguments, **scalars)

    monkeypatch.setattr(module.Recorder, "log", killed)
    with pytest.raises(Killed):
        sweep(root, seeds=2)
    monkeypatch.undo()
    left = list((root / "sweeps").rglob("*.safetensors"))
    assert left, "the toy keeps every unit"
    assert comparable(sweep(root, seeds=2)) == comparable(json.loads(json.dumps(whole[1])))
    assert policies(root) == policies(whole[0])


def test_what_is_done_is_not_done_again_and_values_and_seeds_may_be_added(root, whole, monkeypatch):
    sweep(root, "controller.sigma=0.5", seeds=1)
    trained: list[Path] = []
    learn = module._learn
    monkeypatch.setattr(module, "_learn", lambda state, *rest: trained.append(state) or learn(state, *rest))
    assert comparable(sweep(root, seeds=2)) == comparable(json.loads(json.dumps(whole[1])))
    assert len(trained) == 3


def test_a_fleet_gives_the_same_sweep(root, whole, monkeypatch):
    monkeypatch.setattr(module, "workers", lambda configs, ray: contextlib.closing(PickledFleet(2)))
    assert comparable(sweep(root, seeds=2)) == comparable(json.loads(json.dumps(whole[1])))


def test_a_longer_training_is_another_sweep(root):
    sweep(root, rounds=1)
    with pytest.raises(RunMismatchError, match=r"rounds: 1 -> 2(.|\n)*--name"):
        sweep(root, rounds=2)
    sweep(root, rounds=2, name="longer")
    assert read_sweeps(RunFolder(root)).keys() == {"controller.sigma", "longer"}


def test_words_and_settings_of_the_dream_can_be_swept(root):
    found = sweep(root, "controller.features=z,zh", rounds=1)
    assert [one["value"] for one in found["values"]] == ["z", "zh"]
    found = sweep(root, 'dream.backend="torch"', rounds=1, changes=["evaluate.episodes=2"])
    (row,) = describe(found)
    assert (row["value"], row["episodes"], row["real"]["low"]) == ("torch", 2, None)


def test_any_kind_of_learner_can_be_swept(tmp_path):
    run_loop(tmp_path, resolve(TOY, ["rounds=1", "evaluate.film=false", "judge.every=0"]))
    found = sweep(tmp_path, "controller.tries=2,4", changes=["judge.dream_episodes=8"])
    assert [len(one["trainings"]) for one in found["values"]] == [1, 1]


def test_learning_in_the_real_environment_can_be_swept(root):
    changes = ["controller.train_in=real", "controller.real_generations=1", "controller.real_frames=10"]
    found = sweep(root, changes=changes, rounds=1)
    score = read_json(root / "sweeps" / "controller.sigma" / "0.5" / "seed-0" / "score.json")
    assert score["ranking_frames"] > 0
    assert len(found["values"]) == 2


def test_the_report_has_its_table_and_plot(root):
    sweep(root, rounds=1, seeds=2)
    page = write_report(RunFolder(root))
    text = page.read_text(encoding="utf-8")
    assert 'src="sweep-controller.sigma.png"' in text
    assert (page.parent / "sweep-controller.sigma-dark.png").stat().st_size > 0
    published = RunFolder(root).published
    found = read_json(published)
    published.write_text(json.dumps(found | {"digests": found["digests"] | {"memory.safetensors": "another"}}))
    assert "sweep-controller" not in write_report(RunFolder(root)).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("over", "changes", "message"),
    [
        ("controller.temperature", [], "must look like section.key=value,value"),
        ("controller.temperature=", [], "must look like section.key=value,value"),
        ("memory.hidden=8,16", [], "V and M stay as they are"),
        ("controller.temprature=1", [], "nearest known one is controller.temperature"),
        ("controller.temperature=1,hot", [], "controller.temperature: must be a valid number"),
        ("controller.temperature=-1", [], "controller.temperature: must be greater than or equal to 0"),
        ("controller.temperature=1,1.0", [], "names 1.0 twice"),
        (OVER, ["memory.hidden=9"], "--set memory.hidden=9: must be of controller, dream"),
    ],
)
def test_what_is_no_sweep_is_refused_before_any_work(root, over, changes, message):
    with pytest.raises(ConfigError, match=message):
        sweep(root, over, changes=changes)
    assert not (root / "sweeps").exists()


def test_a_run_without_recorded_episodes_or_models_or_at_work_is_refused(root, tmp_path):
    plan = plan_sweep(wm.load_run(root), OVER)
    with lock_folder(root), pytest.raises(RunBusyError):
        run_sweep(root, plan)
    shutil.rmtree(RunFolder(root).rollouts)
    with pytest.raises(RunMismatchError, match="no recorded episodes"):
        sweep(root)
    with pytest.raises(MissingRunError):
        wm.load_run(tmp_path / "nothing")
