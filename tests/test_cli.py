"""The command line: help, exit statuses, and errors without tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wm_engine import cli
from wm_engine.errors import StorageError
from wm_engine.files import file_fingerprint, write_json
from wm_engine.main import wait_passively
from wm_engine.run.config import resolve
from wm_engine.run.folder import RunFolder

COMMANDS = [
    *("bench", "diagnose", "evaluate", "export", "import", "info", "play", "profile", "report", "sweep", "train"),
]


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Stands in for the loop and leaves what it would have left; holds what it was called with."""
    calls: list[tuple[Path, object, dict]] = []

    def run(root, config, **options):
        calls.append((root, config, options))
        folder = RunFolder(root)
        config.write(folder.config)
        scores = {
            "controller": {"mean": 312.44, "std": 120.31, "episodes": 20},
            "random": {"mean": -40.2, "std": 10.1, "episodes": 20},
            "baselines": {
                "a blind plan": {"mean": 7.0, "std": 1.0, "episodes": 20},
                "a peer": {"mean": 9.0, "std": 2.0, "episodes": 20, "learnt_from": 76543},
                "another": {"missing": "install it"},
            },
        }
        write_json(folder.scores, scores)
        folder.models.mkdir(parents=True)
        for path in (folder.vision, folder.memory, folder.controller):
            path.write_bytes(b"a model")
        digests = {path.name: file_fingerprint(path) for path in (folder.vision, folder.memory, folder.controller)}
        published = {
            "round": 3, "trained_in": "dream", "chosen": "best", "judged_rounds": 2, "judged": {"episodes": 8},
            "learning_frames": 76543, "judged_frames": 16000, "minutes": 12.34, "digests": digests,
        }  # fmt: skip
        write_json(folder.published, published)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "run_loop", run)
    monkeypatch.setattr(cli, "write_report", lambda folder: folder.report / "index.html")
    return calls


def test_the_help_names_every_command(call):
    status, out, _ = call("--help")
    assert status == 0
    assert all(f"  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(call, command):
    status, out, _ = call(command, "--help")
    assert status == 0
    assert "Example" in out
    assert f"wm-engine {command}" in out


def test_version(call):
    status, out, _ = call("--version")
    assert status == 0
    assert out.startswith("wm-engine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command"),
        (["fly"], "No such command 'fly'"),
        (["train"], "--preset"),
        (["train", "--preset", "quick", "--speed", "9"], "--speed"),
        (["train", "--preset", "quik"], "the nearest known one is 'quick'"),
        (["train", "--preset", "quick", "--set", "vision.stps=3"], "the nearest known one is vision.steps"),
        (["train", "--preset", "quick", "--set", "vision.steps=x"], "vision.steps: must be a valid integer"),
        (["train", "--preset", "quick", "--rounds", "0"], "--rounds"),
        (["train", "--preset", "quick", "--run", "a", "--set", "env.task=car_raceing"], "car_racing"),
        (["train", "--preset", "quick", "--set", "memory.kind=mdn_rn"], "the nearest known one is 'mdn_rnn'"),
        (["train", "--run", "nowhere"], "nowhere is no run folder yet"),
        (["evaluate", "--run", "nowhere"], "nowhere: no run folder"),
        (["report", "--run", "nowhere"], "nowhere: no run folder"),
        (["evaluate"], "--run"),
        (["sweep", "--run", "nowhere", "--over", "controller.sigma=1"], "nowhere: no run folder"),
        (["sweep", "--run", "nowhere"], "--over"),
        (["export", "--run", "nowhere", "--format", "onnx"], "nowhere: no run folder"),
        (["export", "--run", "nowhere", "--format", "tflite"], "--format"),
        (["import", "ha2018", "nowhere", "--run", "a"], "nowhere"),
    ],
)
def test_bad_input_is_one_clear_error_and_status_2(call, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(*arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("wm-engine: error: ")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_training_ends_with_scores_how_they_came_about_and_the_report(call, trained):
    status, out, _ = call("train", "--preset", "quick")
    assert status == 0
    assert out.splitlines()[-7:] == [
        "controller:     312.4 ± 120.3 over 20 episodes",
        "random policy:  -40.2 ± 10.1 over 20 episodes, on the same episodes",
        "a blind plan:   7.0 ± 1.0 over 20 episodes, on the same episodes",
        "a peer:         9.0 ± 2.0 over 20 episodes, on the same episodes, learnt from 76,543 real frames",
        "another:        not scored: install it",
        "Trained in dreams alone; the best of 2 rounds judged on 8 real episodes each is published; scored on 20 real "
        "episodes that no choice saw. Learnt from 76,543 real frames in 12.3 minutes; 16,000 more were driven for "
        "scores alone.",
        f"report: {Path('runs/quick/report/index.html')}",
    ]


def test_evaluate_refuses_models_that_were_not_published_together(call, trained):
    call("train", "--preset", "quick", "--run", "a")
    RunFolder(Path("a")).memory.write_bytes(b"another model")
    status, _, err = call("evaluate", "--run", "a")
    assert status == 2
    assert "memory.safetensors: not the file that was published" in err


@pytest.mark.parametrize("name", ["manifest.json", "iterations"])
def test_a_run_folder_of_the_first_edition_is_refused_in_words(call, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / "config.toml").write_text("[env]\nid = 'CarRacing-v3'\n")
    for command in (["train", "--preset", "quick"], ["evaluate"], ["report"]):
        status, out, err = call(*command, "--run", str(tmp_path))
        assert (status, out) == (2, "")
        assert "a run folder of wm_engine's first edition" in err


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_threads_wait_passively_unless_the_environment_says_otherwise(name):
    quiet: dict[str, str] = {}
    wait_passively(quiet)
    assert quiet == {"OMP_WAIT_POLICY": "PASSIVE"}
    told = {name: "whatever"}
    wait_passively(told)
    assert told == {name: "whatever"}


def test_torch_is_not_loaded_before_its_threads_are_told_how_to_wait():
    code = "import sys, wm_engine.main; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_run_folder_is_named_after_the_preset_and_announced(call, trained):
    _, _, err = call("train", "--preset", "quick")
    assert trained[0][0] == Path("runs/quick")
    assert f"run folder: {Path('runs/quick')}" in err


def test_options_reach_the_loop(call, trained, tmp_path):
    call(
        *("train", "--preset", "quick", "--run", str(tmp_path / "a"), "--set", "seed=4", "--rounds", "2"),
        *("--on-change", "keep", "--ray", "auto"),
    )
    root, config, options = trained[0]
    assert root == tmp_path / "a"
    assert config == resolve("quick", ["seed=4", "rounds=2"])
    assert options == {"on_change": "keep", "ray": "auto"}


def test_show_prints_the_configuration_and_does_nothing(call, trained, tmp_path):
    status, out, _ = call("train", "--preset", "quick", "--run", str(tmp_path / "a"), "--set", "seed=77", "--show")
    assert status == 0
    assert "seed = 77" in out
    assert trained == []


def test_a_run_goes_on_with_its_own_configuration(call, trained, tmp_path):
    resolve("quick", ["seed=9"]).write(tmp_path / "config.toml")
    assert call("train", "--run", str(tmp_path), "--rounds", "3")[0] == 0
    assert trained[0][1] == resolve("quick", ["seed=9", "rounds=3"])


def test_quiet_logs_warnings_only(call, trained):
    _, _, err = call("--quiet", "train", "--preset", "quick")
    assert err == ""


def _raise(error: BaseException):
    def run(*_args, **_options):
        raise error

    return run


def test_an_error_that_can_be_mended_is_status_2(call, monkeypatch):
    monkeypatch.setattr(cli, "run_loop", _raise(StorageError("runs/quick: no space left")))
    status, _, err = call("train", "--preset", "quick")
    assert status == 2
    assert "wm-engine: error: runs/quick: no space left" in err


def test_ctrl_c_says_that_the_run_can_go_on(call, monkeypatch):
    monkeypatch.setattr(cli, "run_loop", _raise(KeyboardInterrupt()))
    status, _, err = call("--quiet", "train", "--preset", "quick")
    assert status == 130
    assert len(err.strip().splitlines()) == 1
    assert "the same command goes on where this one stopped" in err


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr(cli, "run_loop", _raise(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "--preset", "quick"])


def test_evaluate_needs_something_published(call, tmp_path):
    resolve("quick").write(tmp_path / "config.toml")
    status, _, err = call("evaluate", "--run", str(tmp_path))
    assert status == 2
    assert "nothing is published yet" in err


def test_a_damaged_configuration_of_a_run_is_one_clear_error(call, tmp_path):
    (tmp_path / "config.toml").write_text("[env\nid =")
    for command in ("report", "train"):
        status, _, err = call(command, "--run", str(tmp_path))
        assert status == 2
        assert "config.toml: not valid TOML" in err


def test_info_names_backends_and_what_to_do_about_missing_ones(call):
    status, out, _ = call("info")
    assert status == 0
    for name in ("torch", "cpp", "gymnasium", "envpool", "cpu"):
        assert name in out


def test_info_as_json(call):
    status, out, _ = call("info", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["dream_backends"]["torch"]["available"] is True
    assert found["cpus"] >= 1
    for state in (*found["dream_backends"].values(), *found["environments"].values()):
        assert state["detail"]


def test_info_says_why_a_backend_is_missing(call, monkeypatch):
    from wm_engine.dream.cpp_backend import CppBackend

    monkeypatch.setattr(CppBackend, "available", staticmethod(lambda: (False, "no compiler was found; install g++")))
    _, out, _ = call("info")
    assert "no   no compiler was found; install g++" in out
