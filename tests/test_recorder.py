"""The record of a run: rows come back, a repeated step replaces its row, a torn line is left out."""

from __future__ import annotations

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from wm_engine.errors import StorageError
from wm_engine.recorder import Recorder, read_metrics


def test_rows_come_back_in_order(tmp_path):
    with Recorder(tmp_path) as recorder:
        recorder.log("vision", 1, loss=2.0)
        recorder.log("vision", 2, loss=1.0, kl=3)
        recorder.log("vision", 1, 1, loss=0.5)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["stage"], row["round"], row["step"], row["loss"]) for row in rows] == [
        ("vision", 0, 1, 2.0),
        ("vision", 0, 2, 1.0),
        ("vision", 1, 1, 0.5),
    ]
    assert rows[1]["kl"] == 3.0


def test_a_resumed_run_replaces_the_rows_it_repeats(tmp_path):
    for loss in (2.0, 1.5):
        with Recorder(tmp_path) as recorder:
            recorder.log("memory", 7, loss=loss)
            recorder.log("memory", 8, loss=loss - 1)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(7, 1.5), (8, 0.5)]


def test_a_line_torn_by_a_kill_does_not_swallow_the_next(tmp_path):
    with Recorder(tmp_path) as recorder:
        recorder.log("memory", 1, loss=1.0)
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"stage": "memory", "rou')
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    with Recorder(tmp_path) as recorder:
        recorder.log("memory", 2, loss=0.5)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_damaged_line_costs_that_line_alone(tmp_path):
    with Recorder(tmp_path) as recorder:
        recorder.log("memory", 1, loss=1.0)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'\xff\xfe\x00{"stage"\n[1, 2]\n7\n{"stage": "memory"}\n')
    with Recorder(tmp_path) as recorder:
        recorder.log("memory", 2, loss=0.5)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_missing_record_is_empty(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_run_with_nothing_to_say_adds_no_events(tmp_path):
    with Recorder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    with Recorder(tmp_path) as recorder:
        recorder.log("memory", 1, loss=1.0)
        recorder.log_point("calibration", 1, promised=1.0)
    assert len(list(tmp_path.glob("events.*"))) == 1


def test_every_round_draws_its_curves_anew(tmp_path):
    with Recorder(tmp_path) as recorder:
        for number in range(2):
            for place in (1, 4):
                recorder.log_point("calibration", place, number, promised=10.0 * number + place, paid=None)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["stage"], row["round"], row["step"], row["promised"], row["paid"]) for row in rows] == [
        ("calibration", number, place, 10.0 * number + place, None) for number in range(2) for place in (1, 4)
    ]
    events = EventAccumulator(str(tmp_path)).Reload()
    for number in range(2):
        found = [(event.step, event.value) for event in events.Scalars(f"calibration.{number}/promised")]
        assert found == [(place, 10.0 * number + place) for place in (1, 4)]


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        Recorder(tmp_path / "file" / "metrics")
    recorder = Recorder(tmp_path / "metrics")
    recorder.path.mkdir()
    with pytest.raises(StorageError, match=r"metrics\.jsonl"):
        recorder.log("memory", 1, loss=1.0)


def test_numbers_that_are_not_finite_are_null_for_any_reader(tmp_path):
    with Recorder(tmp_path) as recorder:
        recorder.log("evolution", 1, best=math.inf, mean=math.nan, std=1.0, rho=None)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    row = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert (row["best"], row["mean"], row["std"], row["rho"]) == (None, None, 1.0, None)


def test_every_line_is_json_with_its_place_and_time(tmp_path):
    with Recorder(tmp_path) as recorder:
        recorder.log("collect", 3, 2, frames_per_second=100.0)
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row.keys() == {"stage", "round", "step", "time", "frames_per_second"}


def test_tensorboard_has_the_finite_numbers_by_stage(tmp_path):
    """A step counts over all rounds, so a stage is one curve."""
    with Recorder(tmp_path) as recorder:
        recorder.log("vision", 1, loss=2.0)
        recorder.log("vision", 2, loss=math.nan, kl=None)
        recorder.log("vision", 3, 1, loss=1.0)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("vision/loss")] == [(1, 2.0), (3, 1.0)]
    assert events.Tags()["scalars"] == ["vision/loss"]
