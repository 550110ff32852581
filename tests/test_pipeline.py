"""The pipeline: what is done is skipped, what was cut goes on, what differs is refused, the best round is published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from wm_engine import pipeline
from wm_engine.assess import scores_file
from wm_engine.config import Config, make_config, read_config
from wm_engine.dream.cpp_backend import CppBackend
from wm_engine.errors import (
    ConfigError,
    CorruptFileError,
    MissingDependencyError,
    MissingStageError,
    RunBusyError,
    RunMismatchError,
    StorageError,
)
from wm_engine.pipeline import check_published, run_pipeline, summarize
from wm_engine.rounds import Round
from wm_engine.runs import Manifest, RunFolder, file_fingerprint, lock_folder, write_json, write_text
from wm_engine.stages import STAGES, Artifact, Stage, file_artifact

MODELS = ("vision", "memory", "controller")


class Toy:
    """Stages that write a line each: its settings, and what stood in its input."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores
        self.log: list[str] = []
        self.chosen: list[int] = []
        self.cut_in = ""

    def stages(self) -> tuple[Stage, ...]:
        models = [self._stage(name, before) for name, before in zip(MODELS, ("", *MODELS), strict=False)]
        evaluate = Stage(
            "evaluate",
            ("seed",),
            inputs=lambda current: {"controller": file_artifact(current.folder.controller)},
            outputs=lambda current: {"scores": file_artifact(scores_file(current.folder))},
            work=self._evaluate,
            clear=lambda current: scores_file(current.folder).unlink(missing_ok=True),
        )
        return (*models, evaluate)

    def _stage(self, name: str, before: str) -> Stage:
        def path(current: Round) -> Path:
            return getattr(current.folder, name)

        def inputs(current: Round) -> dict[str, Artifact]:
            return {before: file_artifact(getattr(current.folder, before))} if before else {}

        def work(current: Round) -> None:
            self._note(name, current)
            source = getattr(current.folder, before).read_text() if before else ""
            write_text(path(current), f"{source}{name} {getattr(current.config, name).model_dump()} {current.index}\n")

        return Stage(
            name,
            ("seed", name),
            inputs=inputs,
            outputs=lambda current: {name: file_artifact(path(current))},
            work=work,
            clear=lambda current: path(current).unlink(missing_ok=True),
        )

    def _evaluate(self, current: Round) -> None:
        self._note("evaluate", current)
        score = {"mean": self.scores[current.index], "std": 0.0, "episodes": 1}
        write_json(scores_file(current.folder), {"controller": score, "random": score, "dream": score})

    def score_chosen(self, current: Round) -> bool:
        score = {"mean": self.scores[current.index] - 0.5, "std": 0.0, "episodes": 1}
        how = {"models": {name: file_fingerprint(path) for name, path in current.run.models().items()}}
        self.chosen.append(current.index)
        write_json(scores_file(current.run), {"controller": score, "random": score, "how": how})
        return True

    def _note(self, name: str, current: Round) -> None:
        self.log.append(f"{name}.{current.index}")
        if self.log[-1] == self.cut_in:
            raise KeyboardInterrupt


@pytest.fixture
def toy(monkeypatch) -> Toy:
    monkeypatch.setattr(pipeline, "write_report", lambda run: write_text(run.report / "index.html", "<html>"))
    toy = Toy([1.0, 3.0, 2.0])
    monkeypatch.setattr(pipeline, "score_chosen", toy.score_chosen)
    return toy


@pytest.fixture
def run(toy, tmp_path) -> Callable[..., list[str]]:
    """Run the toy stages in one folder; gives back what was worked on."""

    def run(config: Config | None = None, **options) -> list[str]:
        toy.log.clear()
        run_pipeline(tmp_path / "run", config or Config(), stages=toy.stages(), **options)
        return list(toy.log)

    return run


ROUND = ["vision.0", "memory.0", "controller.0", "evaluate.0"]


def config_of(**tables) -> Config:
    return make_config(tables, "test")


def test_a_second_run_has_nothing_to_do(run, tmp_path):
    assert run() == ROUND
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*.safetensors")}
    assert run() == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*.safetensors")} == before


def test_the_configuration_is_written_before_any_work(run, toy, tmp_path):
    toy.cut_in = "vision.0"
    with pytest.raises(KeyboardInterrupt):
        run(config_of(seed=5))
    assert read_config(tmp_path / "run" / "config.toml") == config_of(seed=5)


@pytest.fixture
def cut_with_one_thread(run, toy, threads_kept):
    """A run on one thread that was cut in M."""
    toy.cut_in = "memory.0"
    with pytest.raises(KeyboardInterrupt):
        run(config_of(threads=1))
    toy.cut_in = ""


@pytest.mark.usefixtures("cut_with_one_thread")
def test_going_on_with_other_threads_is_said(run, caplog):
    assert run(config_of(threads=1)) == ROUND[1:]
    assert "threads" not in caplog.text
    assert run(config_of(threads=2, iterations=2)) == [name.replace(".0", ".1") for name in ROUND]
    assert caplog.text.count("threads: were 1 in vision of round 0; 1 in memory of round 0;") == 1
    assert "and are now 2. Results depend on their number in the last bits" in caplog.text
    caplog.clear()
    assert run(config_of(threads=1, iterations=2)) == []
    assert caplog.text == "", "nothing is left to do, so nothing can differ"


@pytest.mark.usefixtures("cut_with_one_thread")
def test_an_unfinished_stage_that_goes_on_with_other_threads_is_named(run, caplog):
    assert run(config_of(threads=3)) == ROUND[1:]
    assert "threads: were 1 in vision of round 0; 1 in memory of round 0, unfinished, and are now 3" in caplog.text


@pytest.mark.parametrize("place", range(4))
def test_a_run_that_was_cut_goes_on_there(run, toy, place):
    toy.cut_in = ROUND[place]
    with pytest.raises(KeyboardInterrupt):
        run()
    toy.cut_in = ""
    assert run() == ROUND[place:]


def test_more_iterations_go_on_and_the_best_real_score_is_published(run, tmp_path):
    root = RunFolder(tmp_path / "run")
    assert run() == ROUND
    assert root.controller.read_text() == root.iteration(0).controller.read_text()
    assert run(config_of(iterations=3)) == [name.replace(".0", f".{k}") for k in (1, 2) for name in ROUND]
    for name in MODELS:
        assert getattr(root, name).read_text() == getattr(root.iteration(1), name).read_text()
    summary = summarize(root.root)
    assert summary.chosen == 1
    assert {index: scores["controller"]["mean"] for index, scores in summary.rounds.items()} == {0: 1.0, 1: 3.0, 2: 2.0}
    assert [(index, stage) for index, stage, _ in summary.seconds] == [
        (k, name.removesuffix(".0")) for k in range(3) for name in ROUND
    ]


def test_the_first_of_equal_rounds_is_published(run, toy, tmp_path):
    toy.scores = [2.0, 2.0]
    run(config_of(iterations=2))
    assert Manifest(tmp_path / "run" / "manifest.json").published == 0


def test_a_lost_publication_is_made_good(run, tmp_path):
    run()
    root = RunFolder(tmp_path / "run")
    root.controller.unlink()
    root.vision.write_text("half a copy")
    assert run() == []
    for name in MODELS:
        assert getattr(root, name).read_text() == getattr(root.iteration(0), name).read_text()


def test_a_publication_that_was_cut_is_refused_until_it_is_repaired(run, tmp_path, monkeypatch):
    run()
    root = RunFolder(tmp_path / "run")
    check_published(root.root)
    copy = pipeline.atomic_write

    def cut(path):
        if path == root.memory:
            raise KeyboardInterrupt
        return copy(path)

    monkeypatch.setattr(pipeline, "atomic_write", cut)
    with pytest.raises(KeyboardInterrupt):
        run(config_of(iterations=2))
    assert root.vision.read_text() == root.iteration(1).vision.read_text()
    assert root.memory.read_text() == root.iteration(0).memory.read_text()
    assert summarize(root.root).chosen is None
    with pytest.raises(CorruptFileError, match="not those of one round"):
        check_published(root.root)
    monkeypatch.setattr(pipeline, "atomic_write", copy)
    run(config_of(iterations=2))
    check_published(root.root)
    assert summarize(root.root).chosen == 1
    root.controller.write_text("another C")
    with pytest.raises(CorruptFileError, match="not those of one round"):
        check_published(root.root)


def test_the_choice_among_rounds_is_scored_afresh(run, toy, tmp_path):
    run()
    assert toy.chosen == []
    assert summarize(tmp_path / "run").fresh is None
    run(config_of(iterations=3))
    assert toy.chosen == [1]
    assert summarize(tmp_path / "run").fresh["controller"]["mean"] == 2.5
    toy.scores.append(9.0)
    toy.cut_in = "evaluate.3"
    with pytest.raises(KeyboardInterrupt):
        run(config_of(iterations=4))
    assert toy.chosen == [1]
    toy.cut_in = ""
    assert run(config_of(iterations=4), only="evaluate") == ["evaluate.3"]
    assert toy.chosen == [1, 3]
    assert summarize(tmp_path / "run").fresh["controller"]["mean"] == 8.5


def test_other_settings_are_refused_and_shown(run, tmp_path):
    run()
    before = (tmp_path / "run" / "config.toml").read_text()
    with pytest.raises(RunMismatchError) as error:
        run(config_of(memory={"hidden": 8}, seed=1))
    message = str(error.value)
    assert "memory.hidden: 256 -> 8   (memory of round 0)" in message
    assert (
        "seed: 0 -> 1   (vision of round 0, memory of round 0, controller of round 0, evaluate of round 0)" in message
    )
    assert "--on-change" in message
    assert (tmp_path / "run" / "config.toml").read_text() == before


def test_settings_of_what_is_not_begun_may_change(run):
    assert run(only="vision") == ["vision.0"]
    assert run(config_of(memory={"hidden": 8})) == ROUND[1:]


def test_settings_that_leave_results_alone_may_change(run):
    free = sorted(Config().vision.free)
    assert free
    run()
    value = getattr(Config().vision, free[0])
    assert run(config_of(vision={free[0]: value + 1})) == []


def test_keep_leaves_finished_stages_as_they_are(run, toy):
    toy.cut_in = "controller.0"
    with pytest.raises(KeyboardInterrupt):
        run()
    toy.cut_in = ""
    other = config_of(memory={"hidden": 8}, controller={"population": 8})
    assert run(other, on_change="keep") == ["controller.0", "evaluate.0"]
    assert run(other, on_change="keep") == []


def test_what_is_made_again_under_other_settings_takes_nothing_over(run, toy, tmp_path):
    run()
    other = config_of(memory={"hidden": 8})
    RunFolder(tmp_path / "run").iteration(0).memory.unlink()
    run(other, only="memory", on_change="keep")
    assert "'hidden': 8" in RunFolder(tmp_path / "run").iteration(0).memory.read_text()
    with pytest.raises(RunMismatchError, match="made from other inputs"):
        run(other)


def test_redo_does_again_what_changed_and_what_follows(run, tmp_path):
    run()
    other = config_of(memory={"hidden": 8})
    assert run(other, on_change="redo") == ROUND[1:]
    assert "'hidden': 8" in (tmp_path / "run" / "controller.safetensors").read_text()
    assert run(other) == []


def test_an_unfinished_stage_is_not_continued_with_other_settings(run, toy):
    toy.cut_in = "memory.0"
    with pytest.raises(KeyboardInterrupt):
        run()
    toy.cut_in = ""
    with pytest.raises(RunMismatchError, match="memory of round 0, unfinished"):
        run(config_of(memory={"hidden": 8}))


def test_a_deleted_artifact_is_made_again_and_nothing_else(run, tmp_path):
    run()
    folder = RunFolder(tmp_path / "run").iteration(0)
    content = folder.memory.read_text()
    folder.memory.unlink()
    assert run() == ["memory.0"]
    assert folder.memory.read_text() == content


def test_a_damaged_artifact_is_named_and_kept(run, tmp_path):
    run()
    folder = RunFolder(tmp_path / "run").iteration(0)
    folder.memory.write_text("damaged")
    with pytest.raises(CorruptFileError, match=r"memory\.safetensors.*memory of round 0.*Delete it"):
        run()
    assert folder.memory.read_text() == "damaged"


def test_other_inputs_are_refused_kept_or_done_again(run, tmp_path):
    run()
    root = RunFolder(tmp_path / "run")
    root.iteration(0).vision.write_text("another V")
    manifest = json.loads(root.manifest.read_text())
    manifest["stages"]["0/vision"]["outputs"]["vision"] = file_artifact(root.iteration(0).vision).digest()
    root.manifest.write_text(json.dumps(manifest))
    with pytest.raises(RunMismatchError, match=r"memory of round 0 was made from other inputs \(vision\)"):
        run()
    assert run(on_change="keep") == []
    assert run(on_change="redo") == ROUND[1:]


def test_a_stage_alone(run):
    assert run(only="vision") == ["vision.0"]
    assert run(only="vision") == []
    assert run(only="memory") == ["memory.0"]


def test_a_stage_before_its_time_is_an_error_that_names_what_is_missing(run):
    run(only="vision")
    with pytest.raises(MissingStageError, match="controller of round 0 needs memory of round 0, not done yet"):
        run(only="controller")
    with pytest.raises(
        MissingStageError, match="vision of round 1 needs memory of round 0, controller of round 0, eval"
    ):
        run(config_of(iterations=2), only="vision")


def test_a_stage_alone_whose_input_was_deleted_names_it(run, tmp_path):
    run()
    RunFolder(tmp_path / "run").iteration(0).memory.unlink()
    with pytest.raises(MissingStageError, match=r"controller of round 0 needs memory \(.*memory\.safetensors\)"):
        run(only="controller")


def test_a_stage_alone_takes_the_first_round_that_lacks_it(run):
    config = config_of(iterations=2)
    run(config)
    assert run(config_of(iterations=3), only="vision") == ["vision.2"]
    assert run(config, only="vision", round_index=0) == []
    with pytest.raises(MissingStageError, match="round 5"):
        run(config, only="vision", round_index=5)


def test_a_folder_of_other_files_is_left_alone(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(RunMismatchError, match="no run folder"):
        run()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"device": "abacus"}, ConfigError, "device: 'abacus' cannot be used here"),
        ({"dream": {"backend": "abacus"}}, ConfigError, "backend must be one of"),
        ({"dream": {"precision": "fp1"}}, ConfigError, "precision must be one of"),
    ],
)
def test_what_this_machine_cannot_do_is_refused_before_any_work(run, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        run(config_of(**changes))
    assert not (tmp_path / "run").exists()


def test_a_backend_that_is_not_installed_is_refused_before_any_work(run, monkeypatch):
    monkeypatch.setattr(CppBackend, "available", staticmethod(lambda: (False, "no compiler; install one")))
    with pytest.raises(MissingDependencyError, match=r"dream\.backend.*no compiler; install one"):
        run(config_of(dream={"backend": "cpp"}))


def test_a_mistyped_environment_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="Foo-v0"):
        run_pipeline(tmp_path / "run", config_of(env={"id": "Foo-v0"}))
    assert not (tmp_path / "run").exists()


def test_two_processes_cannot_share_a_run(run, tmp_path):
    run()
    with lock_folder(tmp_path / "run"), pytest.raises(RunBusyError):
        run()


def test_a_damaged_manifest_is_named(run, tmp_path):
    run()
    (tmp_path / "run" / "manifest.json").write_text('{"version": 1, "stages"')
    with pytest.raises(CorruptFileError, match=r"manifest\.json: not valid JSON.*Restore it from a copy") as error:
        run()
    assert "Delete it to have it made again" not in str(error.value)


def test_a_file_that_the_manifest_does_not_know_is_not_taken_over(run, tmp_path, monkeypatch):
    run(only="vision")
    root = RunFolder(tmp_path / "run")
    manifest = json.loads(root.manifest.read_text())
    del manifest["stages"]["0/vision"]
    root.manifest.write_text(json.dumps(manifest))
    root.iteration(0).vision.write_text("V of another configuration")
    work = Toy._note

    def note(self, name, current):
        assert not current.folder.vision.exists()
        work(self, name, current)

    monkeypatch.setattr(Toy, "_note", note)
    assert run(only="vision") == ["vision.0"]


def test_work_without_its_manifest_is_left_alone(run, tmp_path):
    run()
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(CorruptFileError, match=r"manifest\.json: missing.*iterations"):
        run()
    assert RunFolder(tmp_path / "run").iteration(0).memory.exists()


def test_a_run_folder_that_is_a_file_is_an_error(run, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match="run"):
        run()


def test_leftovers_of_killed_writes_are_swept(run, tmp_path):
    run()
    leftover = tmp_path / "run" / "iterations" / "00" / ".vision.safetensors.123.tmp"
    leftover.write_text("half")
    run()
    assert not leftover.exists()


def test_the_stages_are_the_designs():
    assert [stage.name for stage in STAGES] == ["collect", "vision", "memory", "controller", "evaluate"]
