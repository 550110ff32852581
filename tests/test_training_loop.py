"""The loop that V and M share: schedule, record, kill and resume."""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import subprocess
import sys

import pytest
import torch
from recordings import StopAfter, Stopped, same_weights
from torch import nn

from wm_engine import training
from wm_engine.errors import RunMismatchError, WMEngineError
from wm_engine.records import Recorder, read_metrics
from wm_engine.runs import Checkpoints
from wm_engine.training import TrainingSettings, fit, keyed_generator, learning_rate, repeatable

SETTINGS = TrainingSettings(
    steps=12, learning_rate=0.05, final_learning_rate=0.01, log_every=5, evaluate_every=4, checkpoint_seconds=0.0
)


def train(folder, checkpoints=None, settings=SETTINGS, at_step=lambda step: None, identity="data"):
    """Fit a line whose input depends on a carried tensor, so that every part of the state decides the result."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    carried = {"memory": torch.zeros(4, 3)}

    def loss(step, batch):
        at_step(step)
        noise = torch.randn(4, 3, generator=keyed_generator(7, step))
        carried["memory"] = (0.5 * carried["memory"] + noise + batch).detach()
        value = (model(carried["memory"]) - carried["memory"].sum(1, keepdim=True)).square().mean()
        return value, {"twice": 2.0 * value}

    with Recorder(folder / "metrics") as recorder:
        fit(
            "vision",
            model,
            settings,
            identity={"data": identity},
            batches=lambda step: itertools.count(step),
            loss=loss,
            units=lambda batch: 4,
            unit="frames",
            evaluate=lambda: {"training": float(model.training), "grad": float(torch.is_grad_enabled())},
            checkpoints=checkpoints or Checkpoints(folder / "checkpoints"),
            recorder=recorder,
            carried=carried,
        )
    return model, carried["memory"]


def test_learning_rate_falls_from_the_first_value_to_the_final_one():
    rates = [learning_rate(SETTINGS, step) for step in range(SETTINGS.steps + 1)]
    assert rates[0] == 0.05
    assert math.isclose(rates[6], 0.03)
    assert math.isclose(rates[-1], 0.01)
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(TrainingSettings(learning_rate=0.2), 999) == 0.2


def test_keyed_generators_depend_on_every_part_of_the_key():
    def draw(*key):
        return torch.randn(4, generator=keyed_generator(*key))

    assert torch.equal(draw(1, 2), draw(1, 2))
    assert not any(torch.equal(draw(1, 2), draw(*key)) for key in ((2, 1), (1, 3), (0, 2), (1, 2, 1), (1,)))


@pytest.mark.parametrize("step", [1, 7, 11])
def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path, step):
    model, memory = train(tmp_path / "whole")
    with pytest.raises(Stopped):
        train(tmp_path / "cut", StopAfter(tmp_path / "cut" / "checkpoints", step))
    begun = []
    resumed, resumed_memory = train(tmp_path / "cut", at_step=begun.append)
    assert begun[0] == step
    assert same_weights(model, resumed)
    assert torch.equal(memory, resumed_memory)


def test_a_training_killed_in_the_middle_of_a_step_ends_as_one_that_was_not(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from test_training_loop import train\n"
        "train(Path(sys.argv[1]), at_step=lambda step: step == 8 and os.kill(os.getpid(), signal.SIGKILL))"
    )
    path = f"import sys; sys.path.insert(0, {str(__file__).rpartition('/')[0]!r})\n"
    killed = subprocess.run([sys.executable, "-c", path + script, str(tmp_path / "cut")], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    begun = []
    resumed, memory = train(tmp_path / "cut", at_step=begun.append)
    model, whole_memory = train(tmp_path / "whole")
    assert begun == [8, 9, 10, 11]
    assert same_weights(model, resumed)
    assert torch.equal(memory, whole_memory)


def test_a_finished_training_is_not_repeated(tmp_path):
    model, _ = train(tmp_path)
    begun = []
    again, _ = train(tmp_path, at_step=begun.append)
    assert begun == []
    assert same_weights(model, again)


def test_checkpoints_of_another_training_are_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(RunMismatchError, match="checkpoints"):
        train(tmp_path, identity="other data")
    with pytest.raises(RunMismatchError, match="checkpoints"):
        train(tmp_path, settings=SETTINGS.model_copy(update={"learning_rate": 0.04}))
    train(tmp_path, settings=SETTINGS.model_copy(update={"log_every": 1}))


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_on_a_gpu_cudnn_keeps_to_what_repeats_itself_and_is_put_back(monkeypatch, kind):
    flags = torch.backends.cudnn
    for before in (False, True):
        monkeypatch.setattr(flags, "deterministic", before)
        monkeypatch.setattr(flags, "benchmark", not before)
        with repeatable(torch.device(kind)):
            expected = (True, False) if kind == "cuda" else (before, not before)
            assert (flags.deterministic, flags.benchmark) == expected
        assert (flags.deterministic, flags.benchmark) == (before, not before)


def test_every_step_of_a_training_is_repeatable(tmp_path, monkeypatch):
    within = []

    @contextlib.contextmanager
    def watched(device):
        within.append(device)
        yield
        within.append("end")

    monkeypatch.setattr(training, "repeatable", watched)
    train(tmp_path, at_step=lambda step: within.append(step))
    assert within == [torch.device("cpu"), *range(SETTINGS.steps), "end"]


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    with pytest.raises(WMEngineError, match=r"step \d+. Lower vision.learning_rate"):
        train(tmp_path, settings=SETTINGS.model_copy(update={"learning_rate": 1e30, "clip": 0.0}))


def test_the_record_holds_training_and_held_out_numbers(tmp_path):
    train(tmp_path)
    rows = {row["step"]: row for row in read_metrics(tmp_path / "metrics" / "metrics.jsonl")}
    assert sorted(rows) == [4, 5, 8, 10, 12]
    assert all(
        {"loss", "twice", "gradient_norm", "learning_rate", "frames_per_second"} <= row.keys() for row in rows.values()
    )
    assert rows[5]["twice"] == 2.0 * rows[5]["loss"]
    assert "held_out_training" not in rows[5]
    assert rows[4]["held_out_training"] == rows[12]["held_out_training"] == 0.0
    assert rows[8]["held_out_grad"] == 0.0
