"""What a round's assessment leaves behind: rows of every curve, and a fresh score of the round that was chosen."""

from __future__ import annotations

import numpy as np
import pytest

from wm_engine import assess
from wm_engine.assess import round_score, score_chosen, scores_file
from wm_engine.config import make_config
from wm_engine.evaluate import Scores
from wm_engine.records import Recorder, read_metrics
from wm_engine.rounds import Round
from wm_engine.runs import RunFolder, read_json, write_json


@pytest.fixture
def current(tmp_path):
    with Recorder(tmp_path / "metrics") as recorder:
        config = make_config({"iterations": 2, "evaluate": {"episodes": 5}}, "test")
        yield Round(RunFolder(tmp_path), 1, config, recorder)


def test_every_point_of_a_curve_is_a_row(current):
    memory = {
        "reward_r2": 0.5,
        "end_recall": None,
        "open_loop_starts": 7,
        "open_loop_horizon": [1, 2],
        "open_loop_most_likely": [0.1, 0.2],
        "open_loop_copy_last": [0.3, None],
        "reward_bins_predicted": [-1.0, 2.0, 3.0],
        "reward_bins_realised": [-1.5, 2.5, 3.5],
        "reward_bins_count": [4, 4, 3],
    }
    assess._log_fidelity(current, {"memory": memory, "correlation": {"rho": 0.25, "groups": {}}})
    rows = read_metrics(current.run.metrics / "metrics.jsonl")
    for row in rows:
        assert row.pop("iteration") == 1
        row.pop("time")
    assert rows == [
        {"stage": "fidelity", "step": 0, "reward_r2": 0.5, "end_recall": None, "open_loop_starts": 7.0, "rho": 0.25},
        {"stage": "fidelity.open_loop", "step": 1, "most_likely": 0.1, "copy_last": 0.3},
        {"stage": "fidelity.open_loop", "step": 2, "most_likely": 0.2, "copy_last": None},
        {"stage": "fidelity.reward_calibration", "step": 0, "predicted": -1.0, "realised": -1.5, "count": 4.0},
        {"stage": "fidelity.reward_calibration", "step": 1, "predicted": 2.0, "realised": 2.5, "count": 4.0},
        {"stage": "fidelity.reward_calibration", "step": 2, "predicted": 3.0, "realised": 3.5, "count": 3.0},
    ]


def test_the_chosen_round_is_scored_on_tracks_that_chose_no_round(current, monkeypatch):
    driven: list[tuple[str, list[int]]] = []

    def scored(name, settings):
        driven.append((name, settings.seeds()))
        count = settings.episodes
        return Scores(np.arange(count) + 1.0, np.ones(count), np.array(settings.seeds()), np.zeros(count, dtype=bool))

    monkeypatch.setattr(assess, "make_agent", lambda folder, config: folder)
    monkeypatch.setattr(assess, "evaluate_agent", lambda agent, env, settings, fleet: scored(agent.root, settings))
    monkeypatch.setattr(assess, "evaluate_random", lambda env, settings, fleet: scored("random", settings))
    for path in current.run.models().values():
        path.write_text("a model")

    assert score_chosen(current)
    assert [name for name, _ in driven] == [current.run.root, "random"]
    assert driven[0][1] == driven[1][1]
    assert len(set(driven[0][1])) == 5
    assert not set(driven[0][1]) & set(current.config.evaluate.seeds())
    scores = read_json(scores_file(current.run))
    assert scores["round"] == 1
    assert scores["controller"]["mean"] == 3.0
    (row,) = read_metrics(current.run.metrics / "metrics.jsonl")
    assert (row["stage"], row["controller_mean"]) == ("evaluate.chosen", 3.0)

    assert not score_chosen(current)
    assert len(driven) == 2
    current.run.memory.write_text("the model of another round")
    assert score_chosen(current)
    assert len(driven) == 4


def test_a_score_that_is_not_finite_is_none(tmp_path):
    folder = RunFolder(tmp_path)
    assert round_score(folder) is None
    write_json(scores_file(folder), {"controller": {"mean": float("nan")}})
    assert round_score(folder) is None
    write_json(scores_file(folder), {"controller": {"mean": 2.0}})
    assert round_score(folder) == 2.0
