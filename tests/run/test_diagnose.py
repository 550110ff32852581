"""The diagnosis of a whole run on the toy task: it drives, says what it found, and shows it in the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from wm_engine.cli import main
from wm_engine.files import load_tensors, read_json
from wm_engine.report import write_report
from wm_engine.run.config import resolve
from wm_engine.run.folder import RunFolder
from wm_engine.run.loop import run_loop

TOY = str(Path(__file__).parents[1] / "toys" / "toy.toml")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    root = tmp_path_factory.mktemp("toy")
    planner = ["judge.planner_horizon=6", "judge.planner_candidates=16"]
    run_loop(root, resolve(TOY, ["rounds=2", "controller.tries=4", "checkpoint_seconds=1e6", *planner]))
    return RunFolder(root)


def test_a_run_is_diagnosed_in_words_and_in_its_report_which_shows_no_other_models_diagnosis(run, capsys):
    assert main(["diagnose", "--run", str(run.root), "--episodes", "3", "--planner", "2"]) == 0
    found = read_json(run.diagnosis)
    assert found["words"] in capsys.readouterr().out
    assert found["models"] == read_json(run.published)["digests"]
    evidence = found["evidence"]
    assert evidence["episodes"] == 3
    assert len(evidence["promised"]) == len(evidence["paid"]) == len(evidence["replayed"]) == len(evidence["horizons"])
    assert found["planner"]["episodes"] == 2
    assert "Planning in M scores" in found["words"]
    assert found["frames"] > evidence["steps"]
    tensors, _ = load_tensors(run.diagnosis.with_suffix(".safetensors"))
    assert {name.partition("/")[2] for name in tensors} == set(found["strips"][0]["rows"])
    page = (run.report / "index.html").read_text(encoding="utf-8")
    assert "What is at fault?" in page
    assert (run.report / "diagnosis.png").exists()
    assert "diagnosis-1.png" in page
    text = run.diagnosis.read_text(encoding="utf-8")
    run.diagnosis.write_text(text.replace(read_json(run.published)["digests"]["memory.safetensors"], "other"))
    write_report(run)
    page = (run.report / "index.html").read_text(encoding="utf-8")
    assert "What is at fault?" not in page
    assert "wm-engine diagnose" in page


def test_a_folder_without_a_run_is_an_error(tmp_path, capsys):
    assert main(["diagnose", "--run", str(tmp_path / "none")]) == 2
    assert "no run folder" in capsys.readouterr().err
