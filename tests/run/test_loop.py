"""The loop on the toy task, world model and learner: it learns, goes on after a kill, and refuses what it must."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import wm_engine as wm
from wm_engine.data.store import RolloutStore
from wm_engine.errors import ConfigError, CorruptFileError, MissingRunError, RunMismatchError
from wm_engine.files import Checkpoints, read_json
from wm_engine.recorder import read_metrics
from wm_engine.report import write_report
from wm_engine.run import loop
from wm_engine.run.config import make_config, resolve
from wm_engine.run.folder import RunFolder
from wm_engine.run.loop import run_loop
from wm_engine.run.steps import STEPS

TOY = str(Path(__file__).parents[1] / "toys" / "toy.toml")


class Killed(BaseException):
    """Stands in for the end of the process: nothing catches it."""


def run(root: Path, *changes: str, **options) -> RunFolder:
    run_loop(root, resolve(TOY, changes), **options)
    return RunFolder(root)


def outcome(folder: RunFolder) -> dict[str, bytes]:
    """The bytes of everything that a run comes to but its clock: models, store, learner's state, and real scores."""
    files = [folder.vision, folder.memory, folder.controller]
    files += [path for path in folder.rollouts.rglob("*") if path.is_file()]
    found = {str(path.relative_to(folder.root)): path.read_bytes() for path in files}
    scores = read_json(folder.scores)
    parts = ("controller", "random", "baselines", "memory")
    found["scores"] = json.dumps([scores[name] for name in parts]).encode()
    place = Checkpoints(folder.checkpoints).latest()[2]["place"]
    kept = {name: place[name] for name in ("round", "step", "stored_frames", "judged_frames", "scores", "published")}
    return found | {"place": json.dumps(kept).encode()}


def differing(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    return [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> RunFolder:
    """A run that nothing came between."""
    return run(tmp_path_factory.mktemp("whole"))


def cut_after(step: str, round_index: int, units: int, saved: bool):
    """The loop's steps, of which one is killed after so many units, before or after that unit's checkpoint."""

    def cut(name, work):
        def killed(state):
            for done, _ in enumerate(work(state), start=1):
                if (name, state.place.round, done) == (step, round_index, units) and not saved:
                    raise Killed
                yield
                if (name, state.place.round, done) == (step, round_index, units):
                    raise Killed

        return name, killed

    return [cut(name, work) for name, work in STEPS]


def test_a_toy_learns_in_its_dreams(whole):
    scores = read_json(whole.scores)
    assert scores["controller"]["mean"] > 0.9 > scores["random"]["mean"]
    assert scores["baselines"]["always right"]["seeds"] == scores["controller"]["seeds"]
    published = read_json(whole.published)
    # The best of all three judged rounds, though the later ones did not take the first one's place.
    assert (published["trained_in"], published["judged_rounds"]) == ("dream", 3)
    assert published["judged_frames"] == Checkpoints(whole.checkpoints).latest()[2]["place"]["judged_frames"]


@pytest.mark.parametrize("saved", [False, True], ids=["before its checkpoint", "after it"])
@pytest.mark.parametrize(
    ("step", "round_index", "units"),
    [
        *(("drive", 0, 2), ("drive", 2, 1), ("see", 0, 1), ("remember", 1, 7)),
        *(("dream", 0, 3), ("dream", 1, 8), ("judge", 1, 1)),
    ],
)
def test_a_run_that_was_killed_ends_with_the_same_bytes(whole, tmp_path, step, round_index, units, saved):
    with pytest.raises(Killed):
        run(tmp_path, steps=cut_after(step, round_index, units, saved))
    assert differing(outcome(whole), outcome(run(tmp_path))) == []


def test_a_run_that_only_saves_between_rounds_ends_with_the_same_bytes(whole, tmp_path):
    rare = "checkpoint_seconds=1e6"
    for step, round_index, units in (("remember", 0, 4), ("dream", 1, 5), ("judge", 2, 1)):
        with pytest.raises(Killed):
            run(tmp_path, rare, steps=cut_after(step, round_index, units, saved=True))
    assert differing(outcome(whole), outcome(run(tmp_path, rare))) == []


def test_more_rounds_may_be_added_to_a_run_that_is_done(tmp_path, whole):
    run(tmp_path, "rounds=2")
    found, wanted = outcome(run(tmp_path, "rounds=3")), outcome(whole)
    # The second round is judged as the last one of the shorter run, which the longer one's settings do too.
    assert differing(wanted, found) == []


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(whole, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, steps=cut_after("dream", 1, 4, saved=True))
    newest = sorted(RunFolder(tmp_path).checkpoints.glob("*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-20])
    assert differing(outcome(whole), outcome(run(tmp_path))) == []


def test_checkpoints_that_are_all_damaged_are_an_error_that_names_one(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, steps=cut_after("dream", 0, 2, saved=True))
    for path in RunFolder(tmp_path).checkpoints.glob("*.safetensors"):
        path.write_bytes(b"nothing")
    with pytest.raises(CorruptFileError, match=r"\.safetensors"):
        run(tmp_path)


def test_other_settings_are_refused_and_may_be_kept(tmp_path):
    run(tmp_path, "rounds=1")
    with pytest.raises(RunMismatchError, match=r"controller\.tries: 8 -> 9(.|\n)*--on-change keep"):
        run(tmp_path, "controller.tries=9")
    run(tmp_path, "controller.tries=9", "rounds=2", on_change="keep")
    rows = [row for row in read_metrics(tmp_path / "metrics" / "metrics.jsonl") if row["stage"] == "controller"]
    assert [sum(row["round"] == index for row in rows) for index in range(2)] == [8, 9]


def test_other_settings_are_refused_before_the_first_checkpoint_too(whole, tmp_path):
    rare = "checkpoint_seconds=1e6"
    with pytest.raises(Killed):
        run(tmp_path, rare, steps=cut_after("drive", 0, 2, saved=True))
    assert not list(RunFolder(tmp_path).checkpoints.glob("*.safetensors"))
    with pytest.raises(RunMismatchError, match="seed: 0 -> 1"):
        run(tmp_path, rare, "seed=1")
    assert differing(outcome(whole), outcome(run(tmp_path, rare))) == []


def test_another_task_in_the_same_folder_is_refused(tmp_path):
    run(tmp_path, "rounds=1")
    with pytest.raises(RunMismatchError, match=r"Pendulum|Vector"):
        run(tmp_path, "env.task=Pendulum-v1", "controller.kind=toys.learner")


def test_a_run_does_not_go_on_with_another_backend_of_the_dream_unnoticed(tmp_path):
    tables = resolve(TOY, ["rounds=1"]).tables()
    tables["memory"] = {"kind": "mdn_rnn", "hidden": 8, "mixtures": 2, "first_steps": 2, "steps": 2}
    tables["controller"] = {"kind": "evolution", "population": 4, "dream_generations": 1, "dream_episodes": 2}
    tables["judge"] |= {"controllers": 0}
    run_loop(tmp_path, make_config(tables | {"dream": {"backend": "torch"}}))
    tables |= {"rounds": 2, "dream": {"backend": "cpp"}}
    with pytest.raises(RunMismatchError, match=r"dream\.backend: \"torch\" -> \"cpp\""):
        run_loop(tmp_path, make_config(tables))
    # The same settings, whose "auto" comes to another backend than before:
    store = Checkpoints(RunFolder(tmp_path).checkpoints)
    step, tensors, state = store.latest()
    state["place"]["backend"] = "cpp"
    store.save(step + 1, tensors, state)
    with pytest.raises(RunMismatchError, match="has dreamt with 'cpp', and would go on with 'torch'"):
        run_loop(tmp_path, make_config(tables | {"dream": {"backend": "torch"}}))


def test_a_world_model_of_other_spaces_than_the_tasks_is_refused(tmp_path, monkeypatch):
    from toys.world_model import LinearWorld

    monkeypatch.setattr(LinearWorld, "build", classmethod(lambda cls, latent, spaces, settings: cls(latent + 1, 3)))
    with pytest.raises(ConfigError, match=r"memory\.kind: .* dreams 3 latent dimensions .* V gives 2"):
        run(tmp_path)


def test_pictures_are_refused_by_the_identity_and_vectors_by_the_vae(tmp_path):
    with pytest.raises(ConfigError, match=r"vision\.kind: identity takes vectors.*vae"):
        run(tmp_path / "a", "env.task=car_racing")
    tables = resolve(TOY).tables()
    tables["vision"] = {"kind": "vae"}
    with pytest.raises(ConfigError, match=r"vision\.kind: a vae sees pictures.*identity"):
        run_loop(tmp_path / "b", make_config(tables))


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(RunMismatchError, match=r"thesis\.txt but no config\.toml"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_every_round_records_what_it_promised_and_what_it_took(whole):
    rows = read_metrics(whole.metrics / "metrics.jsonl")
    by_stage = {name: [row for row in rows if row["stage"] == name] for name in {row["stage"] for row in rows}}
    assert [row["round"] for row in by_stage["round"]] == [0, 1, 2]
    assert {f"{name}_seconds" for name, _ in STEPS} <= by_stage["round"][0].keys()
    assert [row["round"] for row in by_stage["forecast"]] == [1, 2]
    for row in by_stage["forecast"]:
        assert {"new_error", "new_nll_per_dimension", "promised", "paid", "rank"} <= row.keys()
    frames = [row["learning_frames"] for row in by_stage["round"]]
    store = RolloutStore.open(whole.rollouts, create=False)
    assert frames == [store.total_frames(index) for index in range(3)]


def test_a_run_is_read_back_with_all_that_it_published(whole):
    found = wm.load_run(whole.root)
    starts = found.starts(5, seed=1)
    assert starts.z.shape == (5, 2)
    assert starts.h is None
    assert found.world.latent == 2
    assert found.controller.features == "z"
    with pytest.raises(ConfigError, match="not a controller"):
        found.engine()


def test_a_folder_without_a_run_or_without_anything_published_is_named(tmp_path):
    with pytest.raises(MissingRunError, match="no run folder"):
        wm.load_run(tmp_path)
    with pytest.raises(Killed):
        run(tmp_path, steps=cut_after("drive", 0, 1, saved=True))
    with pytest.raises(MissingRunError, match="nothing is published yet"):
        wm.load_run(tmp_path)


def test_the_toys_have_a_report(whole):
    assert write_report(whole).read_text(encoding="utf-8").count("<section") > 2


def test_no_file_but_the_toys_own_knows_of_them():
    root = Path(loop.__file__).parents[1]
    assert not [path for path in root.rglob("*.py") if "toys" in path.read_text(encoding="utf-8")
                and path.name not in ("base.py", "kinds.py")]  # fmt: skip


def test_evolution_in_the_real_environment_is_the_same_loop(tmp_path):
    tables = resolve(TOY, ["rounds=2"]).tables()
    tables["controller"] = {
        "kind": "evolution", "features": "z", "train_in": "real", "population": 6, "real_generations": 4,
        "real_episodes": 2, "real_frames": 30, "sigma": 1.0,
    }  # fmt: skip
    tables["judge"] |= {"controllers": 0}
    run_loop(tmp_path, make_config(tables))
    published = read_json(RunFolder(tmp_path).published)
    assert published["trained_in"] == "real"
    rows = [row for row in read_metrics(tmp_path / "metrics" / "metrics.jsonl") if row["stage"] == "round"]
    store = RolloutStore.open(RunFolder(tmp_path).rollouts, create=False)
    assert rows[-1]["learning_frames"] > store.total_frames()
