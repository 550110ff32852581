"""The command line: help, exit statuses, and errors without tracebacks."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from wm_engine import cli
from wm_engine.config import resolve
from wm_engine.errors import StorageError
from wm_engine.pipeline import Summary
from wm_engine.runs import Manifest, RunFolder

COMMANDS = ["bench", "collect", "evaluate", "info", "profile", "report", "train"]


@pytest.fixture(autouse=True)
def _restore_logging():
    logger = logging.getLogger("wm_engine")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture
def call(capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(list(arguments))
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return call


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the pipeline; holds what it was called with."""
    calls: list[tuple[Path, object, dict]] = []
    monkeypatch.setattr(cli, "run_pipeline", lambda root, config, **options: calls.append((root, config, options)))
    scores = {
        "controller": {"mean": 312.44, "std": 120.31, "episodes": 20},
        "random": {"mean": -40.2, "std": 10.1, "episodes": 20},
        "dream": {"mean": 400.0},
    }
    times = [(0, "collect", 20.0), (0, "vision", 60.5)]
    monkeypatch.setattr(cli, "summarize", lambda root: Summary({0: scores}, 0, times))
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
        (["train", "--preset", "quick", "--iterations", "0"], "--iterations"),
        (["train", "--preset", "quick", "--stage", "dream"], "dream"),
        (["train", "--preset", "quick", "--round", "1"], "--stage"),
        (["train", "--run", "nowhere"], "nowhere is no run folder yet"),
        (["evaluate", "--run", "nowhere"], "nowhere: no run folder"),
        (["report", "--run", "nowhere"], "nowhere: no run folder"),
        (["evaluate"], "--run"),
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


def test_training_ends_with_times_scores_and_the_report(call, trained):
    status, out, _ = call("train", "--preset", "quick")
    assert status == 0
    assert out.splitlines()[-3:] == [
        "controller:     312.4 ± 120.3 over 20 episodes",
        "random policy:  -40.2 ± 10.1 over 20 episodes, on the same tracks",
        f"report: {Path('runs/quick/report/index.html')}",
    ]
    assert "80.5 s" in out


def test_a_choice_among_rounds_ends_with_its_fresh_score(call, trained, monkeypatch):
    scores = {
        "controller": {"mean": 300.0, "std": 10.0, "episodes": 20},
        "random": {"mean": -40.0, "std": 1.0, "episodes": 20},
        "dream": {"mean": None},
    }
    fresh = {"controller": scores["controller"] | {"mean": 250.0}, "random": scores["random"] | {"mean": -41.0}}
    monkeypatch.setattr(cli, "summarize", lambda root: Summary({0: scores, 1: scores}, 1, [], fresh))
    status, out, _ = call("train", "--preset", "quick")
    assert status == 0
    assert "round 1: real 300.0, dreamt not finite  <- chosen by real score" in out
    last = out.splitlines()[-4:]
    assert last[0].startswith("on fresh tracks")
    assert last[1] == "controller:     250.0 ± 10.0 over 20 episodes"
    assert last[2].startswith("random policy:  -41.0")


def test_evaluate_refuses_models_of_several_rounds(call, tmp_path):
    run = RunFolder(tmp_path)
    resolve("quick").write(run.config)
    for path in run.models().values():
        path.write_text("a model")
    Manifest(run.manifest).unpublish()
    status, _, err = call("evaluate", "--run", str(tmp_path))
    assert status == 2
    assert "not those of one round" in err


def test_the_run_folder_is_named_after_the_preset_and_announced(call, trained):
    _, _, err = call("train", "--preset", "quick")
    assert trained[0][0] == Path("runs/quick")
    assert f"run folder: {Path('runs/quick')}" in err


def test_options_reach_the_pipeline(call, trained, tmp_path):
    call(
        *("train", "--preset", "quick", "--run", str(tmp_path / "a"), "--set", "seed=4", "--iterations", "2"),
        *("--stage", "vision", "--round", "1", "--on-change", "keep", "--ray", "auto"),
    )
    root, config, options = trained[0]
    assert root == tmp_path / "a"
    assert config == resolve("quick", ["seed=4", "iterations=2"])
    assert options == {"only": "vision", "round_index": 1, "on_change": "keep", "ray": "auto"}


def test_collect_is_the_first_stage_alone(call, trained, tmp_path):
    status, _, _ = call("collect", "--preset", "quick", "--run", str(tmp_path))
    assert status == 0
    assert trained[0][2] == {"only": "collect", "round_index": None, "on_change": "refuse"}


def test_keep_drops_episodes_before_it_collects(call, trained, monkeypatch, tmp_path):
    resolve("quick").write(tmp_path / "config.toml")
    dropped = []
    monkeypatch.setattr(cli, "drop_episodes", lambda root, keep: dropped.append((root, keep, len(trained))))
    assert call("collect", "--run", str(tmp_path), "--keep", "7")[0] == 0
    assert dropped == [(tmp_path, 7, 0)]
    assert len(trained) == 1


def test_show_prints_the_configuration_and_does_nothing(call, trained, tmp_path):
    status, out, _ = call("train", "--preset", "quick", "--run", str(tmp_path / "a"), "--set", "seed=77", "--show")
    assert status == 0
    assert "seed = 77" in out
    assert trained == []


def test_a_run_goes_on_with_its_own_configuration(call, trained, tmp_path):
    resolve("quick", ["seed=9"]).write(tmp_path / "config.toml")
    assert call("train", "--run", str(tmp_path), "--iterations", "3")[0] == 0
    assert trained[0][1] == resolve("quick", ["seed=9", "iterations=3"])


def test_quiet_logs_warnings_only(call, trained):
    _, _, err = call("--quiet", "train", "--preset", "quick")
    assert err == ""


def _raise(error: BaseException):
    def run(*_args, **_options):
        raise error

    return run


def test_an_error_that_can_be_mended_is_status_2(call, monkeypatch):
    monkeypatch.setattr(cli, "run_pipeline", _raise(StorageError("runs/quick: no space left")))
    status, _, err = call("train", "--preset", "quick")
    assert status == 2
    assert "wm-engine: error: runs/quick: no space left" in err


def test_ctrl_c_says_that_the_run_can_go_on(call, monkeypatch):
    monkeypatch.setattr(cli, "run_pipeline", _raise(KeyboardInterrupt()))
    status, _, err = call("--quiet", "train", "--preset", "quick")
    assert status == 130
    assert len(err.strip().splitlines()) == 1
    assert "the same command goes on where this one stopped" in err


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr(cli, "run_pipeline", _raise(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "--preset", "quick"])


def test_evaluate_needs_a_controller(call, tmp_path):
    resolve("quick").write(tmp_path / "config.toml")
    status, _, err = call("evaluate", "--run", str(tmp_path))
    assert status == 2
    assert "controller.safetensors: not there yet" in err


def test_a_damaged_configuration_of_a_run_is_one_clear_error(call, tmp_path):
    (tmp_path / "config.toml").write_text("[env\nid =")
    for command in ("report", "evaluate", "train"):
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
